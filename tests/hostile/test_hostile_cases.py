"""A stranger's checkpoint is only data: each kind of harm, with the error or the value that is right."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import orbax.checkpoint as ocp
import pytest
import zstandard
from golden import make
from hostile import cases, ocdbt
from hostile.ocdbt import Database, Tree, nodes
from hypothesis import given
from hypothesis import strategies as st

import jaxckpt
from jaxckpt._lib import bounds, documents, inner_path
from jaxckpt.storage.arrays import plausible, zarr_metadata
from jaxckpt.storage.commit import leases
from jaxckpt.storage.ocdbt import decode, zstd
from jaxckpt.storage.owner import Owner

GOLDEN = Path(make.__file__).parent
ORBAX = "orbax-0.12.8/v0_zarr3_ocdbt"
OURS = "jaxckpt-0.1.0/model"
FILES = "jaxckpt-0.1.0/chunks_files"
ZARR2 = "orbax-0.12.8/v0_zarr2_files"


def copy(base: str, directory: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / base, directory / "ckpt-1"))


def digests_again(path: Path) -> None:
    """Makes `_JAXCKPT` right for what lies there now."""
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    cases._renew_digests(files)
    if "_JAXCKPT" in files:
        (path / "_JAXCKPT").write_bytes(files["_JAXCKPT"])


def change(path: Path, name: str, edit: Callable[[Any], Any]) -> None:
    """Changes a JSON document; `edit` returns the new one, or None if it changed the old one."""
    file = path / name
    body, _, _ = file.read_bytes().partition(b"\n")
    document = json.loads(body)
    result = edit(document)
    content = json.dumps(document if result is None else result).encode() if not isinstance(result, bytes) else result
    if name == "_JAXCKPT":
        content += f"\n{google_crc32c.value(content):08x}\n".encode()
    file.write_bytes(content)
    if name != "_JAXCKPT":
        digests_again(path)


def change_database(path: Path, edit: Callable[[Database], None]) -> None:
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    database = ocdbt.decode(files, "")
    edit(database)
    cases._put_database(files, "", database, random.Random(1))
    for name, content in files.items():
        (path / name).write_bytes(content)
    digests_again(path)


def every_call(path: Path) -> list[BaseException | None]:
    """What every way to read the checkpoint as a whole ends in. Each must end at once."""
    found: list[BaseException | None] = []

    def manager() -> None:
        checkpoint = jaxckpt.Checkpoint(step=0)
        jaxckpt.CheckpointManager(checkpoint, path.parent, 3).restore_or_initialize()

    calls: list[Callable[[], Any]] = [
        lambda: jaxckpt.load_checkpoint(path).tree(),
        lambda: [jaxckpt.load_checkpoint(path).metadata(name) for name in jaxckpt.load_checkpoint(path).keys()],
        lambda: jaxckpt.Checkpoint(step=0).read(path),
        manager,
    ]
    for call in calls:
        try:
            call()
            found.append(None)
        except (jaxckpt.CheckpointError, ValueError, OSError) as error:
            found.append(error)
    report = jaxckpt.verify(path)
    found.append(None if report.ok else jaxckpt.CorruptCheckpointError(str(report)))
    return found


def assert_corrupt(path: Path, match: str = "") -> None:
    for error in every_call(path)[:1]:
        assert isinstance(error, jaxckpt.CorruptCheckpointError), error
        assert match in str(error), error
    report = jaxckpt.verify(path)
    assert not report.ok
    assert match in str(report)


def assert_skipped(path: Path, values: dict[str, Any]) -> None:
    """A manager goes back to the older, sound checkpoint."""
    directory = path.parent
    sound = jaxckpt.Checkpoint(**values).write(directory / "sound")
    os.rename(path, directory / "ckpt-2")
    os.rename(sound, directory / "ckpt-1")
    names = "".join(f'all_model_checkpoint_paths: "ckpt-{number}"\n' for number in (1, 2))
    (directory / "checkpoint").write_text(f'model_checkpoint_path: "ckpt-2"\n{names}')
    checkpoint = jaxckpt.Checkpoint(**values)
    manager = jaxckpt.CheckpointManager(checkpoint, directory, 5)
    with pytest.warns(UserWarning, match="Skipping the damaged"):
        assert manager.restore_or_initialize(skip_corrupt=True) == str(directory / "ckpt-1")


LEAF = {
    "key_metadata": [{"key": "x", "key_type": 2}],
    "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
}


def first_leaf(document: Any) -> Any:
    return next(iter(document["tree_metadata"].values()))


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: b"[" * 100_000,
        lambda document: b'{"tree_metadata": {}, "x": 1e400}',
        lambda document: b'{"tree_metadata": {}, "x": NaN}',
        lambda document: b'{"tree_metadata": {}, "x": ' + b"9" * 9000 + b"}",
        lambda document: [],
        lambda document: document.pop("tree_metadata") and None,
        lambda document: document.update(tree_metadata=[1]),
        lambda document: document.update(use_zarr3="yes"),
        lambda document: document.update(custom_metadata=3),
        lambda document: document["custom_metadata"].update(jaxckpt={"format": 10**400, "kinds": {}}),
        lambda document: document["custom_metadata"].update(jaxckpt={"format": "1", "kinds": {}}),
        lambda document: document["custom_metadata"].update(jaxckpt={"format": 1, "kinds": []}),
        lambda document: document["custom_metadata"].update(jaxckpt={"format": 1, "kinds": {"step": "unknown"}}),
        lambda document: first_leaf(document).update(key_metadata=None),
        lambda document: first_leaf(document).update(value_metadata="text"),
        lambda document: first_leaf(document)["value_metadata"].update(value_type=[1]),
        lambda document: first_leaf(document)["key_metadata"][0].update(key={"a": 1}),
        lambda document: document["tree_metadata"].update(again=first_leaf(document)),
        lambda document: document["tree_metadata"].update(
            deep={**LEAF, "key_metadata": [{"key": "x", "key_type": 2}] * 20_000}
        ),
    ],
)
def test_the_tree_metadata(edit: Callable[[Any], Any], tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)
    change(path, "_METADATA", edit)
    assert all(isinstance(error, jaxckpt.CorruptCheckpointError) for error in every_call(path))
    assert_corrupt(path, "_METADATA")


def test_a_leaf_below_a_leaf(tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)

    def below(document: Any) -> None:
        below = {**LEAF, "key_metadata": [{"key": "step", "key_type": 2}, {"key": "x", "key_type": 2}]}
        below["value_metadata"] = {"value_type": "Dict", "skip_deserialize": True}
        document["tree_metadata"]["below"] = below

    change(path, "_METADATA", below)
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="leaf lies"):
        jaxckpt.load_checkpoint(path).tree()


def test_a_sequence_with_an_index_that_is_not_a_number_is_a_dict(tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)

    def index(document: Any) -> None:
        for leaf in document["tree_metadata"].values():
            if leaf["key_metadata"][0]["key"] == "params" and leaf["key_metadata"][1]["key"] == "layers":
                leaf["key_metadata"][2]["key_type"] = 1
        document["tree_metadata"]["x"] = {
            "key_metadata": [{"key": "list", "key_type": 2}, {"key": "9" * 5000, "key_type": 1}],
            "value_metadata": {"value_type": "Dict", "skip_deserialize": True},
        }

    change(path, "_METADATA", index)
    assert jaxckpt.load_checkpoint(path).tree()["list"] == {"9" * 5000: {}}


def test_deep_trees_are_read(tmp_path: Path) -> None:
    """Deeper than Python's own room for recursion."""
    keys = [{"key": "x", "key_type": 2}] * bounds.TREE_LEVELS
    path = copy(OURS, tmp_path)
    empty = {"value_type": "Dict", "skip_deserialize": True}
    change(
        path,
        "_METADATA",
        lambda document: document["tree_metadata"].update(deep={"key_metadata": keys, "value_metadata": empty}),
    )
    node = jaxckpt.load_checkpoint(path).tree()
    for _ in range(bounds.TREE_LEVELS):
        node = node["x"]
    assert node == {}


@pytest.mark.parametrize("name", ["_strings.json", "_sharding", "array_metadatas/process_0"])
@pytest.mark.parametrize("content", [b"[" * 50_000, b"null", b"[1]", b"3", b'{"a": 1e400}', b"\xff", b'"text"'])
def test_other_documents(name: str, content: bytes, tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)
    change(path, name, lambda document: content)
    reader_errors = []
    try:
        reader = jaxckpt.load_checkpoint(path)
        for leaf in reader.keys():
            reader.metadata(leaf)
    except jaxckpt.CorruptCheckpointError as error:
        reader_errors.append(error)
    assert len(reader_errors) == 1
    assert name in str(reader_errors[0])


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: [],
        lambda document: document.update(format=2),
        lambda document: document["files"].update({"../x": [1, "named"]}),
        lambda document: document["files"].update({"/etc/passwd": [1, "00000000"]}),
        lambda document: document["files"].update({"a\0b": [1, "named"]}),
        lambda document: document["files"].update({"": [1, "named"]}),
        lambda document: document["files"].update(_METADATA=3),
        lambda document: document["files"].update(_METADATA=[1, 2, 3]),
        lambda document: document["files"].update(_METADATA=[1.5, "00000000"]),
        lambda document: document["files"].update(_METADATA=[None, "sample64 0000000000000000"]),
        lambda document: document["files"].update(_METADATA=[10, "sample65 0000000000000000"]),
        lambda document: document["files"].update(_METADATA=[10**400, "00000000"]),
        lambda document: b"{" * 50_000,
        lambda document: b'{"format": 1, "format": 1, "files": {}}',
    ],
)
def test_the_digests(edit: Callable[[Any], Any], tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)
    change(path, "_JAXCKPT", edit)
    assert_corrupt(path, "_JAXCKPT")


BAD_ZARR = [
    {"shape": [10**13]},
    {"shape": [10**15]},
    {"shape": [10**400]},
    {"shape": [2**63]},
    {"shape": [1] * 40},
    {"shape": [-1]},
    {"shape": [1.5]},
    {"shape": 3},
    {"shape": [True]},
    {"data_type": "string"},
    {"data_type": "json"},
    {"data_type": 3},
    {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 1]}}},
    {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**9, 10**9]}}},
    {"chunk_grid": {"name": "irregular"}},
    {"chunk_grid": None},
    {"codecs": []},
    {"codecs": [{"name": "unknown"}]},
    {"codecs": [{"name": "bytes"}] * 40},
    {"codecs": "bytes"},
    {"chunk_key_encoding": {"name": "x"}},
    {"zarr_format": 2},
]


@pytest.mark.parametrize("fields", BAD_ZARR, ids=str)
@pytest.mark.parametrize("base", [OURS, ORBAX])
def test_array_metadata(base: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """Of plain Orbax, TensorStore reads the chunks: it aborts on what it is not told the truth about."""
    path = copy(base, tmp_path)

    def claim(database: Database) -> None:
        for node in nodes(database.root):
            inline = [position for position, kind in enumerate(node.columns[1]) if not kind]
            for number, position in enumerate(inline):
                if node.keys[position].endswith(b"embed/zarr.json"):
                    node.values[number] = json.dumps({**json.loads(node.values[number]), **fields}).encode()
                    node.columns[0][position] = len(node.values[number])

    change_database(path, claim)
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="params/embed"):
        jaxckpt.load_checkpoint(path).get_tensor("params/embed")
    assert "params/embed" in str(jaxckpt.verify(path))


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [10**13, 20]},
        {"shape": [3 * 10**8, 1], "chunks": [1, 1]},
        {"chunks": [10**12, 10]},
        {"chunks": [0, 1]},
        {"dtype": "|O"},
        {"dtype": [["a", "<f4"]]},
        {"filters": [{"id": "x"}]},
        {"compressor": {"id": "lzma"}},
        {"compressor": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("complete", [True, False])
def test_zarr2_metadata(fields: dict[str, Any], complete: bool, tmp_path: Path) -> None:
    path = copy(ZARR2, tmp_path)
    change(path, "_METADATA", lambda document: document.update(store_array_data_equal_to_fill_value=complete))
    change(path, "params.embed/.zarray", lambda document: document.update(fields))
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="params/embed"):
        jaxckpt.load_checkpoint(path).get_tensor("params/embed")


def test_many_chunks_that_are_not_there_are_not_looked_for(tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)

    def claim(database: Database) -> None:
        for node in nodes(database.root):
            inline = [position for position, kind in enumerate(node.columns[1]) if not kind]
            for number, position in enumerate(inline):
                if node.keys[position].endswith(b"large/zarr.json"):
                    document = json.loads(node.values[number])
                    document["shape"] = [2 * 10**8]
                    document["data_type"] = "uint8"
                    document["codecs"][0] = {"name": "bytes"}
                    document["chunk_grid"]["configuration"]["chunk_shape"] = [1]
                    node.values[number] = json.dumps(document).encode()
                    node.columns[0][position] = len(node.values[number])

    change_database(path, claim)
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="large: .* claims 200000000 bytes"):
        jaxckpt.load_checkpoint(path).get_tensor("large")


def test_absent_chunks_count_as_the_fill_value(tmp_path: Path) -> None:
    """Old versions of Orbax left them out. Into a target of its shape an array is read whatever is absent."""
    path = copy(ZARR2, tmp_path)
    change(path, "_METADATA", lambda document: document.update(store_array_data_equal_to_fill_value=False))
    rows = bounds.ABSENT_BYTES // (20 * 4)
    change(path, "params.embed/.zarray", lambda document: document.update(shape=[rows + 100, 20], chunks=[5000, 10]))
    for chunk in (path / "params.embed").glob("[0-9]*"):
        chunk.unlink()
    change(path, "params.embed/.zarray", lambda document: document.update(fill_value=0))
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="restore it into a target of its shape"):
        jaxckpt.load_checkpoint(path).get_tensor("params/embed")
    checkpoint = jaxckpt.Checkpoint(params={"embed": np.ones((rows + 100, 20), np.float32)})
    checkpoint.read(path).expect_partial()
    assert not checkpoint.params["embed"].any()
    change(path, "params.embed/.zarray", lambda document: document.update(shape=[rows // 2, 20]))
    array = jaxckpt.load_checkpoint(path).get_tensor("params/embed")
    assert array.shape == (rows // 2, 20)
    assert not array.any()


def test_zeros_that_shrink_enormously_are_read(tmp_path: Path) -> None:
    ocp.PyTreeCheckpointer().save(tmp_path / "ckpt-1", {"zeros": np.zeros((1500, 1000, 4), np.float32)})
    assert sum(file.stat().st_size for file in (tmp_path / "ckpt-1").rglob("*") if file.is_file()) < 100_000
    array = jaxckpt.load_checkpoint(tmp_path / "ckpt-1").get_tensor("zeros")
    assert array.shape == (1500, 1000, 4)
    assert not array.any()
    assert jaxckpt.verify(tmp_path / "ckpt-1").ok


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_an_array_below_another_one(use_ocdbt: bool, tmp_path: Path) -> None:
    """Keys of plain Orbax may hold slashes: what lies below an array need not be its own."""
    values = {"a": np.arange(5), "a/b": np.arange(10**6, dtype=np.int32) * 77}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)
    ocp.Checkpointer(handler).save(tmp_path / "ckpt-1", args=ocp.args.PyTreeSave(values))
    reader = jaxckpt.load_checkpoint(tmp_path / "ckpt-1")
    assert np.array_equal(reader.get_tensor("a"), values["a"])
    assert np.array_equal(reader.get_tensor("a~1b"), values["a/b"])


def same_child(database: Database, height: int, width: int = 200) -> None:
    assert database.root is not None
    root: Tree = database.root
    for _ in range(height):
        root = cases._parent(root, width)
    database.root, database.height = root, root.height


@pytest.mark.parametrize("base", [OURS, ORBAX])
@pytest.mark.parametrize("height", [2, 20, 100])
def test_nodes_that_refer_to_one_child_again_and_again(base: str, height: int, tmp_path: Path) -> None:
    path = copy(base, tmp_path)
    change_database(path, lambda database: same_child(database, height))
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 1 << 20
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        jaxckpt.load_checkpoint(path).tree()
    if base == OURS:
        assert_skipped(path, {"step": 1})


def test_a_node_that_is_its_own_child(tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)

    def cycle(database: Database) -> None:
        same_child(database, 1)
        assert database.root is not None
        database.root.claims["self"] = 1

    change_database(path, cycle)
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        jaxckpt.load_checkpoint(path).tree()


@pytest.mark.parametrize("number", [2**20, 2**40, 2**64 - 1])
@pytest.mark.parametrize("what", ["files", "count", "prefix", "suffix"])
def test_counts_that_are_too_large(what: str, number: int, tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)

    def claim(database: Database) -> None:
        for node in nodes(database.root):
            node.claims[what] = number

    change_database(path, claim)
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        jaxckpt.load_checkpoint(path).tree()


def test_a_database_that_is_not_readable_is_looked_at_once(tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)
    change_database(path, lambda database: database.claims.update(versions=2**40))
    report = jaxckpt.verify(path)
    assert [Path(problem.where).name for problem in report.problems] == ["manifest.ocdbt"]


def test_keys_that_share_their_prefixes(tmp_path: Path) -> None:
    count, size = 20_000, 60_000
    key = b"k" * size
    keys = [key + number.to_bytes(4, "big") for number in range(3)]
    leaf = Tree(0, [], keys, [[0] * 3, [0] * 3, [], []])
    assert decode.decode_node(leaf.encode(), 0, "").keys == keys
    keys = [key, *(number.to_bytes(4, "big") for number in range(1, count))]
    content = Tree(0, [], keys, [[0] * count, [0] * count, [], []], claims={"prefix": size, "raw": 1}).encode()
    assert len(content) < 1 << 20
    with pytest.raises(documents.DamagedError, match="more memory"):
        decode.decode_node(content, 0, "")


def test_keys_that_do_not_ascend() -> None:
    for keys in ([b"b", b"a"], [b"a", b"a"]):
        with pytest.raises(documents.DamagedError, match="ascend"):
            decode.decode_node(Tree(0, [], keys, [[0, 0], [0, 0], [], []]).encode(), 0, "")


@pytest.mark.parametrize("base", [OURS, ORBAX])
def test_values_on_top_of_each_other(base: str, tmp_path: Path) -> None:
    """Many chunks at one place of a file would be more than is on disk."""
    path = copy(base, tmp_path)

    def alias(database: Database) -> None:
        for node in nodes(database.root):
            first = node.columns[3][:1] * len(node.columns[3])
            node.columns[3][:] = first
            places = [position for position, kind in enumerate(node.columns[1]) if kind]
            for position in places:
                node.columns[0][position] = node.columns[0][places[0]]
            node.columns[2][:] = node.columns[2][:1] * len(node.columns[2])
            # Enough of them that they are more than their file.
            for _ in range(40):
                for number in range(len(places)):
                    node.keys.append(b"z%d-%d" % (len(node.keys), number))
                    node.columns[0].append(node.columns[0][places[0]])
                    node.columns[1].append(1)
                    node.columns[2].append(node.columns[2][0])
                    node.columns[3].append(node.columns[3][0])
            order = sorted(range(len(node.keys)), key=node.keys.__getitem__)
            node.keys[:] = [node.keys[position] for position in order]
            node.columns[0][:] = [node.columns[0][position] for position in order]
            node.columns[1][:] = [node.columns[1][position] for position in order]

    change_database(path, alias)
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        jaxckpt.load_checkpoint(path).tree()


@pytest.mark.parametrize("name", [b"../outside", b"/etc/passwd", b"a\0b", b"d/../../outside", b""])
@pytest.mark.parametrize("base", [OURS, ORBAX])
def test_file_names_that_leave_the_checkpoint(base: str, name: bytes, tmp_path: Path) -> None:
    path = copy(base, tmp_path)
    shutil.copytree(path / "d", tmp_path / "outside")

    def rename(database: Database) -> None:
        for node in nodes(database.root):
            node.files[:] = [(name, 0)]

    change_database(path, rename)
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="file name"):
        jaxckpt.load_checkpoint(path).tree()


@pytest.mark.parametrize("key", ["..", "../outside", "/etc", "a\0b", "\ud800"])
def test_names_of_leaves_that_leave_the_checkpoint(key: str, tmp_path: Path) -> None:
    """Where every array is a directory, its name is a path."""
    path = copy(FILES, tmp_path)
    shutil.copytree(path / "line", tmp_path / "outside")

    def rename(document: Any) -> None:
        for leaf in document["tree_metadata"].values():
            if leaf["key_metadata"][0]["key"] == "line":
                leaf["key_metadata"][0]["key"] = key

    change(path, "_METADATA", rename)
    name = key.replace("/", "~1")
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="file name"):
        jaxckpt.load_checkpoint(path).get_tensor(name)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "socket": cases._socket,
    "link to a device": lambda file: file.symlink_to("/dev/zero"),
    "link to outside": lambda file: file.symlink_to("/etc/passwd"),
    "link to itself": lambda file: file.symlink_to(file.name),
    "sparse": lambda file: cases._sparse(file, 10**12),
}
PLACES = [
    (OURS, "_METADATA"),
    (OURS, "_JAXCKPT"),
    (OURS, "_strings.json"),
    (OURS, "array_metadatas/process_0"),
    (OURS, "manifest.ocdbt"),
    (OURS, "d/*"),
    (ORBAX, "_METADATA"),
    (ORBAX, "manifest.ocdbt"),
    (ORBAX, "ocdbt.process_0/d/*"),
    (FILES, "line/zarr.json"),
    (FILES, "line/c/0"),
    (ZARR2, "table/.zarray"),
    (ZARR2, "table/0"),
]


@pytest.mark.parametrize(("base", "name"), PLACES)
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_not_a_regular_file(kind: str, base: str, name: str, tmp_path: Path) -> None:
    path = copy(base, tmp_path)
    for file in list(path.glob(name)):
        file.unlink()
        SPECIAL[kind](file)
    with pytest.raises((jaxckpt.CheckpointError, OSError)) as caught:
        jaxckpt.load_checkpoint(path).tree()
    assert isinstance(caught.value, jaxckpt.CheckpointError), caught.value
    try:
        assert not jaxckpt.verify(path).ok
    except jaxckpt.CheckpointError:
        assert name == "_METADATA"


@pytest.mark.parametrize("kind", SPECIAL)
def test_the_description_of_a_checkpoint(kind: str, tmp_path: Path) -> None:
    """A manager can be made, and sorts the checkpoint by the time of its directory."""
    checkpoint = jaxckpt.Checkpoint(step=1)
    path = Path(checkpoint.save(tmp_path / "ckpt"))
    (tmp_path / "checkpoint").write_text("not a state file")
    (path / "_CHECKPOINT_METADATA").unlink()
    SPECIAL[kind](path / "_CHECKPOINT_METADATA")
    os.utime(path, (5.0, 5.0))
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, 3)
    assert manager.checkpoints == [str(path)]
    state = jaxckpt.get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.all_model_checkpoint_timestamps == [5.0]


@pytest.mark.parametrize(
    "text", ["1e400", "1e30", "NaN", '"x"', "true", "null", "-5", "9" * 400, "9" * 9000, "[" * 50_000, "[1]", "{}"]
)
def test_times_that_are_none(text: str, tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(step=1)
    path = Path(checkpoint.save(tmp_path / "ckpt"))
    (tmp_path / "checkpoint").unlink()
    (path / "_CHECKPOINT_METADATA").write_text(f'{{"commit_timestamp_nsecs": {text}}}')
    os.utime(path, (5.0, 5.0))
    assert jaxckpt.CheckpointManager(checkpoint, tmp_path, 3).checkpoints == [str(path)]
    state = jaxckpt.get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.all_model_checkpoint_timestamps == [5.0]


@pytest.mark.parametrize("kind", ["pipe", "directory", "socket", "link to a device", "link to itself", "sparse"])
def test_the_state_file(kind: str, tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(step=1)
    checkpoint.save(tmp_path / "ckpt")
    (tmp_path / "checkpoint").unlink()
    SPECIAL[kind](tmp_path / "checkpoint")
    assert jaxckpt.latest_checkpoint(tmp_path) is None
    assert jaxckpt.get_checkpoint_state(tmp_path) is None
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, 3)
    with pytest.raises(OSError, match=r"."):
        manager.restore_or_initialize()


def test_links(tmp_path: Path) -> None:
    """The checkpoint may be reached by one, files inside may be linked to each other, and hard links are files."""
    path = copy(OURS, tmp_path)

    def right(path: Path) -> bool:
        return jaxckpt.load_checkpoint(path).get_tensor("large").tobytes() == expected

    expected = jaxckpt.load_checkpoint(path).get_tensor("large").tobytes()
    (tmp_path / "link").symlink_to(path)
    assert right(tmp_path / "link")
    (file,) = (path / "d").iterdir()
    file.rename(path / "moved")
    file.symlink_to("../moved")
    assert right(path)
    file.unlink()
    os.link(path / "moved", tmp_path / "elsewhere")
    os.link(tmp_path / "elsewhere", file)
    assert right(path)
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="a link that leads out of the checkpoint"):
        jaxckpt.load_checkpoint(path).get_tensor("large")
    file.unlink()
    os.link(tmp_path / "elsewhere", file)
    (path / "d").rename(tmp_path / "d")
    (path / "d").symlink_to(tmp_path / "d")
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="a link that leads out of the checkpoint"):
        jaxckpt.load_checkpoint(path).get_tensor("large")


@pytest.mark.parametrize("base", [OURS, FILES, ZARR2, ORBAX])
def test_the_cache_of_the_hugging_face_hub(base: str, tmp_path: Path) -> None:
    """There every file is a link to a blob, outside of the checkpoint."""
    original = copy(base, tmp_path)
    home = tmp_path / "models--someone--model"
    snapshot = home / "snapshots" / "0123abc" / "checkpoint"
    (home / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(original.rglob("*"))):
        if file.is_file():
            shutil.copy(file, home / "blobs" / str(number))
            link = snapshot / file.relative_to(original)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(home / "blobs" / str(number))
    expected = jaxckpt.load_checkpoint(original).tree()
    found = jaxckpt.load_checkpoint(snapshot).tree()
    assert str(found) == str(expected)
    link = snapshot / "_METADATA"
    link.unlink()
    link.symlink_to(original / "_METADATA")
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="leads out"):
        jaxckpt.load_checkpoint(snapshot)


def test_a_metadata_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)
    os.truncate(path / "_METADATA", bounds.METADATA_FILE_BYTES + 1)
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="more than such a file may have"):
        jaxckpt.load_checkpoint(path)


def test_bytes_and_keys_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)
    change(path, "_METADATA", lambda document: document["custom_metadata"]["jaxckpt"]["kinds"].update(step="bytes"))
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="step.*cannot be bytes"):
        jaxckpt.Checkpoint(step=b"").read(path)
    path = copy(OURS, tmp_path / "key")

    def key(document: Any) -> None:
        for item in document["array_metadatas"]:
            if item["array_metadata"]["param_name"] == "large":
                item["array_metadata"]["ext_metadata"] = {"random_key_impl": "threefry2x32"}

    change(path, "array_metadatas/process_0", key)
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="large.*cannot be a PRNG key"):
        jaxckpt.load_checkpoint(path).metadata("large")


NOTE = {
    "action": "replace",
    "staged": "gs://bucket/run/ckpt-1.jaxckpt-tmp-01234567-1-2-89abcdef",
    "host": "01234567",
    "pid": 1,
    "start": 2,
    "token": "t",
    "time": 3.5,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"staged": "gs://bucket/other"},
        {"staged": "gs://other/run/ckpt-1.jaxckpt-tmp-01234567-1-2-89abcdef"},
        {"staged": "/etc"},
        {"staged": "gs://bucket/run/ckpt-2.jaxckpt-tmp-01234567-1-2-89abcdef"},
        {"staged": 3},
        {"action": "destroy"},
        {"action": ["save"]},
        {"pid": "1"},
        {"pid": -1},
        {"pid": 10**400},
        {"start": None},
        {"time": "now"},
        {"time": 10**400},
        {"host": None},
        {"token": 1},
    ],
    ids=str,
)
def test_notes_in_a_bucket(fields: dict[str, Any]) -> None:
    """What a lease calls staged is copied to the checkpoint, and removed: it must have been made for that."""
    directory = "gs://bucket/run/ckpt-1"
    assert leases._parsed(json.dumps(NOTE).encode(), directory) == leases.StoredLease(
        NOTE["action"],
        NOTE["staged"],
        Owner(NOTE["host"], NOTE["pid"], NOTE["start"], NOTE["token"]),
        NOTE["time"],  # type: ignore[arg-type]
    )
    assert leases._parsed(json.dumps({**NOTE, **fields}).encode(), directory) is None
    for content in (b"", b"[]", b"null", b"[" * 100_000, b'{"time": 1e400}', b"\xff"):
        assert leases._parsed(content, directory) is None


def test_names_of_files() -> None:
    for name in ("a", "d/0123", "ocdbt.process_0/d/01", "a..b", "...", "x/..y", "ünï ✓"):
        assert inner_path.checked_name(name) == name
    for name in ("", "/a", "..", "../a", "a/..", "a/../b", "a\0", "x" * 5000, "\ud800"):
        with pytest.raises(documents.DamagedError):
            inner_path.checked_name(name)


def test_zstd() -> None:
    body = bytes(range(256)) * 3000
    frame = ocdbt.zstd_frame(body)
    assert zstd.decompress(frame, 1 << 20) == body
    with pytest.raises(documents.DamagedError, match="decompress to up to"):
        zstd.decompress(frame, 1000)
    bomb = ocdbt.zstd_frame(bytes(100 << 20))
    assert len(bomb) < 4000
    with pytest.raises(documents.DamagedError, match="decompress to up to"):
        zstd.decompress(bomb, 8 << 20)
    for damaged in (b"", frame[:4], frame[:100], b"x" + frame[1:], frame[:-1], frame[:6] + b"\xff" * 20, frame + b"x"):
        with pytest.raises(documents.DamagedError):
            zstd.decompress(damaged, 1 << 20)
        with pytest.raises(documents.DamagedError):
            zstd.decompress_exactly(damaged, len(body))


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
def test_zstd_of_a_known_size(sized: bool) -> None:
    """The content has exactly the size that is needed, and a frame that holds more takes no memory for it."""
    frame = zstandard.ZstdCompressor(1, write_content_size=sized).compress(b"abc" * 1000)
    assert zstd.decompress_exactly(frame, 3000) == b"abc" * 1000
    for size in (1, 2999, 3001, 1 << 20):
        with pytest.raises(documents.DamagedError):
            zstd.decompress_exactly(frame, size)
    bomb = zstandard.ZstdCompressor(1, write_content_size=sized).compress(bytes(1 << 30))
    tracemalloc.start()
    try:
        with pytest.raises(documents.DamagedError):
            zstd.decompress_exactly(bomb, 3000)
        with pytest.raises(documents.DamagedError, match="more than the limit"):
            zstd.decompress(bomb, 3000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(min_size=1, max_size=300), st.integers(0, 1 << 20), st.integers(0, 7))
def test_zstd_that_is_flipped(body: bytes, at: int, bit: int) -> None:
    frame = bytearray(zstandard.ZstdCompressor(1).compress(body * 20))
    frame[at % len(frame)] ^= 1 << bit
    # Without a checksum a frame may decompress to something else, but never to another size.
    with contextlib.suppress(documents.DamagedError):
        assert len(zstd.decompress_exactly(bytes(frame), len(body) * 20)) == len(body) * 20


def test_zstd_that_is_skipped() -> None:
    """A skippable frame claims a size, but has no content."""
    with pytest.raises(documents.DamagedError):
        zstd.decompress_exactly(b"\x50\x2a\x4d\x18" + (100).to_bytes(4, "little") + bytes(100), 100)


def test_claims() -> None:
    """What a checkpoint holds justifies an array; a little more only where chunks may be absent or compressed."""
    info = zarr_metadata.ArrayInfo((1000, 1000), np.dtype(np.float32), None, (100, 1000))
    stored = plausible.Stored(11, 4_000_500, 400_000)
    plausible.check(info, None, stored, plausible.Absent(), is_complete=True)
    with pytest.raises(documents.DamagedError, match="chunks"):
        plausible.check(info, None, plausible.Stored(5, 4_000_500, 400_000), None, is_complete=True)
    with pytest.raises(documents.DamagedError, match="claims 4000000 bytes"):
        plausible.check(info, None, plausible.Stored(11, 500_000, 400_000), None, is_complete=True)
    plausible.check(info, None, plausible.Stored(1, 500, 500), plausible.Absent(), is_complete=False)
    with pytest.raises(documents.DamagedError, match="is 9999999 bytes long"):
        plausible.check(info, None, plausible.Stored(11, 10**8, 9_999_999), None, is_complete=True)


def test_the_command_line(tmp_path: Path) -> None:
    path = copy(OURS, tmp_path)
    change(path, "_sharding", lambda document: dict.fromkeys(document, "[" * 50000))
    for command in ("inspect", "verify", "list", "diff"):
        arguments = {"list": [tmp_path], "diff": [path, GOLDEN / OURS]}.get(command, [path])
        run = subprocess.run(
            [sys.executable, "-m", "jaxckpt", command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in run.stderr
        assert run.returncode == 0, run.stderr
