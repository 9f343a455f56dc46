"""Databases that TensorStore wrote, and damaged ones: our reader finds what TensorStore finds, and never anything else."""

import os
import random
import shutil
from pathlib import Path

import hypothesis
import pytest
import tensorstore as ts
from examples import examples
from hypothesis import strategies as st
from ocdbt_databases import by_tensorstore, by_us, chunk, open_index, read_place, store, write

from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.ocdbt import tree
from jaxckpt.storage.ocdbt.model import Place, UnknownFormatError

FLIPS = 2 * int(os.environ.get("JAXCKPT_FLIPS", "450"))
PLAIN = {"compression": None, "manifest_kind": "single"}


@hypothesis.given(
    writes=st.lists(
        st.tuples(st.sampled_from(["a", "a/b", "ab", "b/é", "layer/1", "layer/10", "z" * 300]), st.integers(-1, 3000)),
        max_size=25,
    ),
    node=st.sampled_from([100, 1000, 8 << 20]),
    inline=st.sampled_from([0, 20, 1024]),
    batch=st.integers(1, 10),
)
@hypothesis.settings(max_examples=examples(40))
def test_what_tensorstore_wrote(
    writes: list[tuple[str, int]], node: int, inline: int, batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A database of many versions, with keys that were replaced or deleted (size -1)."""
    directory = tmp_path_factory.mktemp("database")
    opened = store(directory, config={**PLAIN, "max_decoded_node_bytes": node, "max_inline_value_bytes": inline})
    opened.write("first", b"1").result()
    for start in range(0, len(writes), batch):
        with ts.Transaction() as transaction:
            for key, size in writes[start : start + batch]:
                value = None if size < 0 else bytes([size % 251]) * size
                opened.with_transaction(transaction).write(key, value).result()
    assert by_us(directory) == by_tensorstore(directory)


def test_many_keys_of_tensorstore(tmp_path: Path) -> None:
    opened = store(tmp_path, config={**PLAIN, "max_decoded_node_bytes": 500})
    with ts.Transaction() as transaction:
        for number in range(800):
            opened.with_transaction(transaction).write(f"layer/{number}", b"v" * (number % 40)).result()
    assert by_us(tmp_path) == by_tensorstore(tmp_path)
    assert ts.ocdbt.dump(opened.base).result()["versions"][-1]["root_height"] >= 2


def test_all_keys_deleted(tmp_path: Path) -> None:
    opened = store(tmp_path, config=PLAIN)
    opened.write("a", b"1").result()
    opened.write("a", None).result()
    assert by_us(tmp_path) == {}


def test_forms_that_are_left_to_tensorstore(tmp_path: Path) -> None:
    store(tmp_path, config={"compression": None, "manifest_kind": "numbered"}).write("a", b"1").result()
    with pytest.raises(UnknownFormatError):
        by_us(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("level", [-5, 0, 3, 19])
@pytest.mark.parametrize("node", [500, 100_000_000])
def test_compressed_nodes(node: int, level: int, tmp_path: Path) -> None:
    """As Orbax writes them. The size of their content is not written anywhere."""
    config = {"compression": {"id": "zstd", "level": level}, "max_decoded_node_bytes": node}
    opened = store(tmp_path, config=config)
    with ts.Transaction() as transaction:
        for number in range(4000):
            opened.with_transaction(transaction).write(f"layer_with_a_name/{number}", b"v" * (number % 400)).result()
    assert by_us(tmp_path) == by_tensorstore(tmp_path)


def merged_by_tensorstore(directory: Path, node: int) -> None:
    """Two databases, merged as Orbax merges those of several processes."""
    config = {**PLAIN, "max_decoded_node_bytes": node}
    whole = store(directory, config=config)
    transaction = ts.Transaction(atomic=True)
    for process in range(2):
        part = store(directory / f"ocdbt.process_{process}", config=config)
        with ts.Transaction() as writing:
            for number in range(100):
                size = 2000 if number % 3 == 0 else number
                part.with_transaction(writing).write(f"{process}/{number}", bytes([number]) * size).result()
        part.experimental_copy_range_to(whole.with_transaction(transaction)).result()
    transaction.commit_async().result()


@pytest.mark.parametrize("node", [300, 8 << 20])
def test_merged_databases(node: int, tmp_path: Path) -> None:
    merged_by_tensorstore(tmp_path, node)
    found = by_us(tmp_path)
    assert len(found) == 200
    assert found == by_tensorstore(tmp_path)


def outcome(directory: Path, expected: dict[str, bytes]) -> str:
    """Reads every key: each is right, or is an error. Anything else fails the test."""
    try:
        index = open_index(directory)
    except (DamagedError, UnknownFormatError):
        return "unreadable"
    result = "harmless"
    for key, value in expected.items():
        try:
            found = index.get(key)
            if isinstance(found, Place):
                found = read_place(directory, found)
        except (DamagedError, FileNotFoundError):
            result = "damaged"
            continue
        assert found == value, key
    return result


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "several nodes", "merged"])
def test_flipped_bits_of_the_index(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value is inline or checked by its reader, so any flip that is not noticed here must be harmless."""
    directory = tmp_path / "database"
    if kind == "merged":
        merged_by_tensorstore(directory, 1000)
    else:
        if kind == "several nodes":
            monkeypatch.setattr(tree, "NODE_BYTES", 300)
        write(directory, {f"layer/{number}": b"value %d" % number * (number % 9) for number in range(100)})
    expected = {key: value for key, value in by_tensorstore(directory).items() if len(value) < 1500}
    rng = random.Random(3)
    files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    found = dict.fromkeys(("unreadable", "damaged", "harmless"), 0)
    for turn in range(FLIPS):
        file = files[turn % len(files)]
        content = file.read_bytes()
        position, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        if turn % 10 == 9:
            file.write_bytes(content[:position])
        else:
            file.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
        found[outcome(directory, expected)] += 1
        file.write_bytes(content)
    assert found["unreadable"] > FLIPS // 50, found
    assert found["damaged"] > FLIPS // 50, found
    assert outcome(directory, expected) == "harmless"


def test_a_damaged_node_hides_only_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "NODE_BYTES", 300)
    values = {f"{number:04}": b"v" for number in range(100)}
    write(tmp_path, values)
    (file,) = (tmp_path / "d").iterdir()
    content = bytearray(file.read_bytes())
    # This byte is in the first leaf.
    content[30] ^= 1
    file.write_bytes(content)
    index = open_index(tmp_path)
    hidden = []
    for key, value in values.items():
        try:
            assert index.get(key) == value
        except DamagedError:
            hidden.append(key)
    assert hidden == sorted(values)[: len(hidden)]
    assert 0 < len(hidden) < 20
    assert index.get("no such key") is None
    with pytest.raises(DamagedError):
        list(index.entries())


def test_missing_and_exchanged_files(tmp_path: Path) -> None:
    write(tmp_path / "good", {"a": b"1", "b": chunk("b", b"2" * 3000)})
    for name in [*(file.name for file in (tmp_path / "good" / "d").iterdir())]:
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        (tmp_path / "bad" / "d" / name).unlink()
        assert outcome(tmp_path / "bad", by_tensorstore(tmp_path / "good")) == "damaged"
        shutil.rmtree(tmp_path / "bad")


def test_the_deadline(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"1"})
    with pytest.raises(TimeoutError, match="took longer"):
        open_index(tmp_path, seconds=-1)
