"""Databases that our writer makes: TensorStore reads all of them, and a write that fails ends at once and leaves nothing running."""

import errno
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import tensorstore as ts
from examples import examples
from hypothesis import strategies as st
from ocdbt_databases import by_tensorstore, by_us, chunk, nothing_left_behind, store, write

from jaxckpt._lib import checksum as checksums
from jaxckpt._lib.deadline import Deadline
from jaxckpt.storage.arrays.database import Chunk, Database
from jaxckpt.storage.ocdbt import tree
from jaxckpt.storage.ocdbt.data_file import DataFile
from jaxckpt.storage.ocdbt.model import Entry

KEYS = st.lists(
    st.sampled_from(["a", "b", "ab", "layer_1", "layer_10", "é", "c", "0", "x" * 200, "\U0001f600"]), max_size=5
)
VALUES = st.dictionaries(
    KEYS.map("/".join), st.tuples(st.booleans(), st.booleans(), st.integers(0, 5000), st.integers(0, 255)), max_size=60
)


@hypothesis.given(
    values=VALUES,
    node=st.sampled_from([64, 300, 2000, 4 << 20]),
    target=st.sampled_from([1, 3000, 1 << 20]),
    limit=st.sampled_from([None, 6000]),
    memory=st.sampled_from([0, 4000, 1 << 20]),
)
@hypothesis.settings(max_examples=examples(60), suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_tensorstore_reads_everything(
    values: dict[str, tuple[bool, bool, int, int]],
    node: int,
    target: int,
    limit: int | None,
    memory: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tree, "NODE_BYTES", node)
    directory = tmp_path_factory.mktemp("database")
    expected = {}
    written: dict[str, Any] = {}
    for key, (is_chunk, is_remote, size, byte) in values.items():
        content = bytes([byte]) * (size + is_chunk)
        written[key] = chunk(key, content, is_remote=is_remote) if is_chunk else content
        expected[key] = content
    with nothing_left_behind():
        write(directory, written, target_file_bytes=target, max_file_bytes=limit, memory_bytes=memory)
    found = by_tensorstore(directory)
    assert by_us(directory) == found
    assert found.keys() == expected.keys()
    for key, value in found.items():
        if isinstance(written[key], Chunk):
            assert value == checksums.sealed(expected[key])
        else:
            assert value == expected[key]
    if limit is not None and node <= limit:
        assert all(file.stat().st_size <= limit for file in (directory / "d").iterdir())


@pytest.mark.parametrize("node", [64, 1000])
def test_several_levels(node: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "NODE_BYTES", node)
    values = {f"layer/{number:05}/{'w' * (number % 7)}": b"%d" % number for number in range(1000)}
    write(tmp_path, values)
    assert by_tensorstore(tmp_path) == by_us(tmp_path) == values
    opened = store(tmp_path)
    some = opened.list(ts.KvStore.KeyRange("layer/00500", "layer/00510")).result()
    assert {key.decode() for key in some} == {key for key in values if "layer/00500" <= key < "layer/00510"}
    root = ts.ocdbt.dump(opened.base).result()["versions"][0]
    assert root["root_height"] >= 2
    assert root["root"]["statistics"]["num_keys"] == 1000


def test_statistics_are_those_of_tensorstore(tmp_path: Path) -> None:
    values = {"a": b"x" * 10, "b": b"y" * 5000}
    write(tmp_path / "ours", {"a": values["a"], "b": chunk("b", values["b"][:-4])})
    opened = store(tmp_path / "theirs", config={"compression": None, "max_inline_value_bytes": 1024})
    with ts.Transaction() as transaction:
        for key, value in values.items():
            opened.with_transaction(transaction).write(key, value).result()
    ours, theirs = (
        ts.ocdbt.dump(store(tmp_path / name).base).result()["versions"][-1]["root"]["statistics"]
        for name in ("ours", "theirs")
    )
    # Names of files may be of any length.
    ours.pop("num_tree_bytes"), theirs.pop("num_tree_bytes")
    assert ours == theirs


def test_a_database_of_nothing(tmp_path: Path) -> None:
    write(tmp_path, {})
    assert by_tensorstore(tmp_path) == by_us(tmp_path) == {}
    store(tmp_path).write("later", b"1").result()
    assert by_us(tmp_path) == {"later": b"1"}


def test_a_key_twice(tmp_path: Path) -> None:
    with nothing_left_behind(), pytest.raises(ValueError, match="key would be written twice"):
        Database(str(tmp_path), 100, None, 100, Deadline(60, "the test")).write(iter([[Entry(b"key", b"1")] * 2]))
    assert not (tmp_path / "manifest.ocdbt").exists()


class Broken(BaseException):
    pass


@pytest.mark.parametrize("number", [0, 7, 39])
@pytest.mark.parametrize("is_remote", [False, True])
def test_an_error_stops_the_write(number: int, is_remote: bool, tmp_path: Path) -> None:
    error = Broken("no data")
    loaded = []

    def load(position: int) -> np.ndarray:
        if position == number:
            raise error
        loaded.append(position)
        return np.full(5000, position, np.uint8)

    chunks = [Chunk(str(n), 5000, is_remote, lambda n=n: load(n)) for n in range(100)]  # type: ignore[misc]
    with nothing_left_behind(), pytest.raises(Broken) as caught:
        Database(str(tmp_path), 20_000, None, 1 << 20, Deadline(60, "the test")).write(iter(chunks))
    assert caught.value is error
    assert len(loaded) < 99
    assert not (tmp_path / "manifest.ocdbt").exists()


def test_an_error_of_what_makes_the_values(tmp_path: Path) -> None:
    error = Broken("no more")

    def values() -> Iterator[Chunk | Entry]:
        yield chunk("a", b"x" * 5000)
        raise error

    with nothing_left_behind(), pytest.raises(Broken) as caught:
        Database(str(tmp_path), 20_000, None, 1 << 20, Deadline(60, "the test")).write(values())
    assert caught.value is error


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
@pytest.mark.parametrize("calls_before", [0, 5])
def test_an_error_of_the_system(call: str, calls_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = getattr(os, call), []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > calls_before:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    values = {str(number): chunk(str(number), bytes(5000)) for number in range(100)}
    with nothing_left_behind(), pytest.raises(OSError, match="Input/output") as caught:
        write(tmp_path, values, target_file_bytes=20_000)
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    assert not (tmp_path / "manifest.ocdbt").exists()


def test_the_deadline(tmp_path: Path) -> None:
    """A source that never answers; when it does at last, its thread ends."""
    answer = threading.Event()

    def load() -> np.ndarray:
        answer.wait(60)
        return np.zeros(5000, np.uint8)

    timer = threading.Timer(1.5, answer.set)
    timer.start()
    with nothing_left_behind(), pytest.raises(TimeoutError, match=r"Saving took longer than 0\.5 s"):
        chunks = iter([Chunk("slow", 5000, True, load)])
        Database(str(tmp_path), 20_000, None, 1 << 20, Deadline(0.5, "Saving")).write(chunks)
    timer.join()


def test_few_chunks_of_other_processes_are_held(tmp_path: Path) -> None:
    """At most four, fetched at the same time."""
    lock, together = threading.Lock(), threading.Barrier(4)
    held, most = 0, 0

    def load(number: int) -> np.ndarray:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        if number < 4:
            # The barrier breaks unless four are fetched at the same time.
            together.wait(30)
        time.sleep(0.002)
        with lock:
            held -= 1
        return np.zeros(5000, np.uint8)

    chunks = [Chunk(str(n), 5000, True, lambda n=n: load(n)) for n in range(60)]  # type: ignore[misc]
    Database(str(tmp_path), 20_000, None, 1 << 30, Deadline(60, "the test")).write(iter(chunks))
    assert most == 4
    assert len(by_tensorstore(tmp_path)) == 60


def test_memory_is_bounded(tmp_path: Path) -> None:
    """No chunk is loaded before there is room for it."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def load() -> np.ndarray:
        nonlocal most
        data = np.zeros(5000, np.uint8)
        with lock:
            alive.append(weakref.ref(data))
            most = max(most, sum(reference() is not None for reference in alive))
        return data

    lock = threading.Lock()
    chunks = [Chunk(str(n), 5000, n % 2 == 0, load) for n in range(40)]
    Database(str(tmp_path), 20_000, None, 10_000, Deadline(60, "the test")).write(iter(chunks))
    assert len(by_us(tmp_path)) == 40
    assert most <= 2


def test_large_values_begin_at_aligned_positions(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    sizes = [65536, 3, 100_000, 65535, 70_001, 64, 65536]
    values = [np.random.default_rng(size).integers(0, 256, size, np.uint8) for size in sizes]
    file = DataFile(str(tmp_path))
    expected, places = [], []
    for value in values:
        expected.append(file.size_with(value.size + 4))
        places.append(file.append([value[:10_000], value[10_000:]], value.size + 4))
        assert file.size == expected[-1]
    file.close()
    assert os.path.getsize(file.path) == expected[-1]
    content = Path(file.path).read_bytes()
    end = 16
    for value, place in zip(values, places, strict=True):
        assert content[place.offset : place.offset + value.size] == value.tobytes()
        assert place.length == value.size + 4
        assert not any(content[end : place.offset])
        assert place.offset - end == (-end % 64 if value.size >= 65532 else 0)
        end = place.offset + place.length


def test_a_descriptor_that_was_given_away_is_not_closed_again(tmp_path: Path) -> None:
    """By then it may be another file's."""
    (tmp_path / "d").mkdir()
    file = DataFile(str(tmp_path))
    os.close(file.release())
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    file.close()
    os.write(other, b"still open")
    os.close(other)
    file = DataFile(str(tmp_path))
    descriptor = file.descriptor
    file.close()
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
