"""Checkpoints that TensorFlow wrote are read without TensorFlow, bit for bit, and go on in JAX."""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from from_tensorflow import written

import jaxckpt
from jaxckpt import cli

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# A key that no JAX program can have: the type has no numpy dtype.
UNREADABLE = "quantized"


@pytest.fixture(autouse=True)
def _no_tensorflow() -> Any:
    yield
    assert "tensorflow" not in sys.modules


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    if found.dtype == object or expected.dtype == object:
        return found.shape == expected.shape and found.tolist() == expected.tolist()
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.parametrize("name", written.NAMES)
def test_every_value_bit_for_bit(name: str, checkpoints: Path) -> None:
    checkpoint = written.read(checkpoints / name)
    reader = jaxckpt.load_checkpoint(checkpoint.prefix)
    assert len(reader) == len(checkpoint.values)
    for key, expected in checkpoint.values.items():
        assert key in reader
        if key == UNREADABLE:
            with pytest.raises(jaxckpt.CheckpointError, match="quantized: .* type qint8, which numpy does not have"):
                reader.get_tensor(key)
            continue
        found = reader.get_tensor(key)
        if checkpoint.dtypes[key] == "string" and expected.shape == ():
            text = expected.item()
            assert (found.tobytes() if found.dtype == np.uint8 else str(found[()]).encode()) == text
        else:
            assert same(found, expected), key
            assert reader.shape(key) == expected.shape
            assert reader.dtype(key) == expected.dtype
    names = {name.removesuffix(SUFFIX) for name in checkpoint.values}
    if name == "tree":
        names = {name.replace("a.Sb..c~d", "a~1b.c~0d") for name in names}
    assert set(reader.keys()) == names
    assert jaxckpt.list_variables(checkpoint.prefix) == sorted((key, reader.shape(key)) for key in reader.keys())


@pytest.mark.parametrize("name", written.NAMES)
def test_verify(name: str, checkpoints: Path) -> None:
    checkpoint = written.read(checkpoints / name)
    report = jaxckpt.verify(checkpoint.prefix)
    assert report.ok
    assert report.checksummed
    assert report.leaves == len(checkpoint.values)
    assert report.unread == ((UNREADABLE,) if name == "dtypes" else ())
    data = list(checkpoint.prefix.parent.glob(f"{checkpoint.prefix.name}.*"))
    assert report.files == len(data)


def test_the_tree(checkpoints: Path) -> None:
    checkpoint = written.read(checkpoints / "tree")
    tree = jaxckpt.load_checkpoint(checkpoint.prefix).tree()
    assert tree["save_counter"] == 3
    assert tree["step"] == np.int64(7)
    assert same(tree["model"]["named"]["a/b.c~d"], np.array([1.5, 2.5], np.float32))
    slots = written.read(checkpoints / "keras2_legacy")
    with pytest.warns(
        UserWarning, match=r"left out, because each lies below another leaf.*kernel/.OPTIMIZER_SLOT/optimizer/m"
    ):
        tree = jaxckpt.load_checkpoint(slots.prefix).tree()
    assert set(tree["model"]["layer_with_weights-0"]) == {"bias", "kernel"}
    texts = jaxckpt.load_checkpoint(written.read(checkpoints / "strings").prefix).tree()
    assert texts["text"] == "grüße"
    assert texts["bytes"] == b"\xff\x00\xfe"
    assert texts["array"].tolist() == [[b"a", b"bb"], [b"", ("€" * 100).encode()]]


class Dense(nnx.Module):
    def __init__(self, rows: int, columns: int) -> None:
        self.kernel = nnx.Param(jnp.zeros((rows, columns)))
        self.bias = nnx.Param(jnp.zeros(columns))


class Net(nnx.Module):
    """Has the names of `Net` in write.py."""

    def __init__(self) -> None:
        self.layers = nnx.List([Dense(4, 8), Dense(8, 2)])


@pytest.mark.slow
def test_a_run_goes_on_in_jax(checkpoints: Path, tmp_path: Path) -> None:
    """An NNX model and the moments of Adam, restored by the names that both programs share; then the step that TensorFlow took next."""
    directory = checkpoints / "tree"
    prefix = jaxckpt.latest_checkpoint(directory)
    assert prefix == str(directory / "ckpt-3")
    model = Net()
    # As Keras orders them: see NAMES in write.py.
    shapes = [(8,), (4, 8), (2,), (8, 2)]
    zeros = {str(number): jnp.zeros(shape) for number, shape in enumerate(shapes)}
    checkpoint = jaxckpt.Checkpoint(
        model=model,
        optimizer={"_iterations": jnp.int32(0), "_momentums": zeros, "_velocities": dict(zeros), "_learning_rate": 0.0},
        step=0,
        rate=0.0,
        epoch=np.int32(0),
    )
    checkpoint.restore(prefix).assert_existing_objects_matched()
    assert (checkpoint.step, checkpoint.save_counter, checkpoint.rate, checkpoint.epoch) == (7, 3, 0.125, 3)
    expected = written.read(directory).values
    # TensorFlow stores it as the optimizer's, and once under "tied": both names are the model's kernel.
    assert same(np.asarray(model.layers[0].kernel[...]), expected["model/tied" + SUFFIX])
    assert same(np.asarray(model.layers[1].kernel[...]), expected[f"optimizer/_trainable_variables/3{SUFFIX}"])

    names = ["layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel"]
    variables = [getattr(model.layers[int(name[7])], name[9:]) for name in names]
    params = {name: variable[...] for name, variable in zip(names, variables, strict=True)}
    stored = checkpoint.optimizer
    optimizer = optax.adam(stored["_learning_rate"], eps=1e-7)
    empty = optimizer.init(params)
    moments = [
        {name: stored[kind][str(number)] for number, name in enumerate(names)} for kind in ("_momentums", "_velocities")
    ]
    state = (empty[0]._replace(count=stored["_iterations"], mu=moments[0], nu=moments[1]), *empty[1:])
    gradients = {name: jnp.ones_like(params[name]) * (0.1 * (number + 1)) for number, name in enumerate(names)}
    updates, state = optimizer.update(gradients, state, params)
    after = {each["name"]: np.array(each["value"]) for each in json.loads((directory / "after.json").read_text())}
    for name, value in optax.apply_updates(params, updates).items():
        np.testing.assert_allclose(value, after[name], rtol=1e-5, atol=1e-6)

    # The run goes on with a manager in a directory of its own.
    checkpoint.optimizer = state
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path / "jax", max_to_keep=2)
    assert manager.save() == str(tmp_path / "jax/ckpt-4")
    assert jaxckpt.verify(manager.latest_checkpoint or "").ok


@pytest.mark.parametrize("name", ["tree", "keras3", "keras2", "keras2_legacy"])
def test_every_name_of_the_object_graph_works(name: str, checkpoints: Path) -> None:
    """A restore under another name, and a reader, give the same value."""
    checkpoint = written.read(checkpoints / name)
    reader = jaxckpt.load_checkpoint(checkpoint.prefix)
    assert reader.aliases()
    for alias, own in reader.aliases().items():
        assert alias in reader
        assert same(reader.get_tensor(alias), reader.get_tensor(own))
    keys = {
        "tree": ["model/layers/0/kernel", "optimizer/_momentums/1"],
        "keras3": ["model/_functional/_operations/1/_kernel", "optimizer/_velocities/0"],
        "keras2": ["model/layer_with_weights-0/kernel", "optimizer/_variables/1"],
        # As TensorFlow names a slot variable, and as fits into a tree.
        "keras2_legacy": [
            "model/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/v",
            "optimizer/m/model/layer_with_weights-0/kernel",
        ],
    }[name]
    for key in keys:
        value = np.zeros(reader.shape(key), reader.dtype(key))
        for part in reversed(key.split("/")[1:]):
            value = {part: value}
        target = jaxckpt.Checkpoint(**{key.split("/")[0]: value})
        status = target.read(checkpoint.prefix)
        status.assert_existing_objects_matched()
        assert key not in status.unexpected
        assert reader.aliases().get(key, key) not in status.unexpected
        (leaf,) = jax.tree.leaves(getattr(target, key.split("/")[0]))
        assert same(leaf, reader.get_tensor(key))


def test_two_targets_of_one_variable_may_have_different_dtypes(checkpoints: Path) -> None:
    names = ("_iterations", "_variables/0")
    target = jaxckpt.Checkpoint(optimizer={"_iterations": np.int64(0), "_variables": {"0": jnp.int32(0)}})
    target.read(written.read(checkpoints / "tree").prefix).expect_partial()
    found = target.optimizer["_iterations"], target.optimizer["_variables"]["0"]
    assert [int(value) for value in found] == [3, 3], names
    assert (found[0].dtype, found[1].dtype) == (np.int64, jnp.int32)


@pytest.mark.parametrize("kind", ["jax", "numpy"])
def test_restores_every_dtype(kind: str, checkpoints: Path) -> None:
    checkpoint = written.read(checkpoints / "dtypes")
    values = {
        key: value
        for key, value in checkpoint.values.items()
        if key != UNREADABLE and "uint2" not in key and "uint4" not in key
    }
    if kind == "jax":
        # JAX has no 64 bits here.
        values = {
            key: value
            for key, value in values.items()
            if "64" not in value.dtype.name and "128" not in value.dtype.name
        }
        targets: dict[str, Any] = {key: jnp.zeros(value.shape, value.dtype) for key, value in values.items()}
    else:
        targets = {key: np.zeros(value.shape, value.dtype) for key, value in values.items()}
    target = jaxckpt.Checkpoint(**targets)
    target.read(checkpoint.prefix).assert_existing_objects_matched()
    for key, expected in values.items():
        assert same(np.asarray(getattr(target, key)), expected), key


def test_restores_texts_and_bytes(checkpoints: Path) -> None:
    target = jaxckpt.Checkpoint(text="", empty="x", long="", bytes=b"")
    target.read(written.read(checkpoints / "strings").prefix).expect_partial()
    assert (target.text, target.empty, target.long, target.bytes) == ("grüße", "", "x" * 300, b"\xff\x00\xfe")
    target = jaxckpt.Checkpoint(text=b"", number=np.zeros(2, np.float32))
    target.read(written.read(checkpoints / "strings").prefix).expect_partial()
    assert target.text == "grüße".encode()
    with pytest.raises(jaxckpt.CheckpointError, match="array: .* holds an array of strings, which is not a leaf"):
        jaxckpt.Checkpoint(array=np.zeros(4)).read(written.read(checkpoints / "strings").prefix)


def test_restores_onto_several_devices(checkpoints: Path) -> None:
    mesh = jax.make_mesh((4,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    checkpoint = written.read(checkpoints / "small_shards")
    target = jaxckpt.Checkpoint(big=jax.device_put(jnp.zeros((40, 7)), sharding))
    target.read(checkpoint.prefix).expect_partial()
    assert same(np.asarray(target.big), checkpoint.values["big" + SUFFIX])
    assert target.big.sharding == sharding


def test_a_name_that_is_much_like_another(checkpoints: Path) -> None:
    prefix = written.read(checkpoints / "keras2").prefix
    status = jaxckpt.Checkpoint(model={"layer_with_weights-0": {"kernl": np.zeros((4, 8), np.float32)}}).read(prefix)
    with pytest.raises(AssertionError, match=r"kernl \(did you mean model/layer_with_weights-0/kernel\?\)"):
        status.assert_existing_objects_matched()
    with pytest.raises(KeyError, match="Did you mean 'model/layer_with_weights-0/kernel'"):
        jaxckpt.load_variable(prefix, "model/layer_with_weights-0/kernl")


def test_a_wrong_shape_or_dtype_changes_nothing(checkpoints: Path) -> None:
    prefix = written.read(checkpoints / "small_shards").prefix
    for value, match in (
        (np.zeros((40, 8), np.float32), r"\(40, 8\).*\(40, 7\)"),
        (np.zeros((40, 7)), "float64.*float32"),
    ):
        target = jaxckpt.Checkpoint(big=value, small=np.zeros(3, np.int32))
        with pytest.raises(ValueError, match=match):
            target.read(prefix)
        assert not target.small.any()
        assert not target.big.any()


def test_the_command_line(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = str(written.read(checkpoints / "tree").prefix)
    assert cli.main(["inspect", prefix]) == 0
    shown = capsys.readouterr().out
    assert "a~1b.c~0d" in shown
    assert "20 leaves" in shown
    assert "; 0 B on disk" not in shown
    # A directory stands for its latest checkpoint.
    assert cli.main(["inspect", str(checkpoints / "tree"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == prefix
    assert cli.main(["verify", prefix]) == 0
    assert "ok: 20 leaves" in capsys.readouterr().out
    assert cli.main(["diff", prefix, prefix]) == 0
    assert cli.main(["diff", prefix.replace("ckpt-3", "ckpt-2"), prefix]) == 1
    assert "optimizer/_momentums" not in capsys.readouterr().out
    strings = str(written.read(checkpoints / "strings").prefix)
    assert cli.main(["diff", strings, strings]) == 0


def copied(checkpoints: Path, name: str, target: Path) -> Path:
    """Returns the prefix of a copy that a test may change."""
    checkpoint = written.read(checkpoints / name)
    shutil.copytree(checkpoint.prefix.parent, target)
    return target / checkpoint.prefix.name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of a checkpoint."""
    return copied(written.GOLDEN, "tree", tmp_path / "tf")


@pytest.mark.slow
def test_every_flipped_byte_is_noticed(tree: Path) -> None:
    for suffix in (".index", ".data-00000-of-00001"):
        file = Path(f"{tree}{suffix}")
        content = file.read_bytes()
        for position in range(0, len(content), 7):
            file.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
            assert not jaxckpt.verify(tree).ok, (suffix, position)
        file.write_bytes(content)
    assert jaxckpt.verify(tree).ok


def test_the_damaged_leaf_is_named(tree: Path) -> None:
    file = Path(f"{tree}.data-00000-of-00001")
    content = file.read_bytes()
    at = content.index(written.golden("tree").values["model/tied" + SUFFIX].tobytes())
    file.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    report = jaxckpt.verify(tree)
    assert [problem.where for problem in report.problems] == ["model/tied"]
    target = jaxckpt.Checkpoint(model={"tied": np.zeros((4, 8), np.float32)}, step=0)
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="model/tied: .*checksum of its data does not match"):
        target.restore(tree)
    assert (target.step, target.save_counter) == (0, 0)
    # The others can be read.
    jaxckpt.Checkpoint(step=0).read(tree).expect_partial()


def _remove(prefix: Path) -> None:
    Path(f"{prefix}.data-00003-of-00005").unlink()


def _cut(prefix: Path) -> None:
    file = Path(f"{prefix}.data-00003-of-00005")
    file.write_bytes(file.read_bytes()[:-1])


def _cut_index(prefix: Path) -> None:
    file = Path(f"{prefix}.index")
    file.write_bytes(file.read_bytes()[:-1])


def _empty_index(prefix: Path) -> None:
    Path(f"{prefix}.index").write_bytes(b"")


def _link(prefix: Path) -> None:
    file = Path(f"{prefix}.data-00003-of-00005")
    file.unlink()
    file.symlink_to("/dev/zero")


def _compress(prefix: Path) -> None:
    from hostile import bundles

    entries = bundles.decode(Path(f"{prefix}.index").read_bytes())
    Path(f"{prefix}.index").write_bytes(bundles.encode(entries, kind=1))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_remove, r"data-00003-of-00005: this data file of the TensorFlow checkpoint is missing"),
        (_cut, r"data-00003-of-00005: this data file .* is too short: it has \d+ bytes"),
        (_cut_index, r"index: this file is damaged: it does not end as a table"),
        (_empty_index, r"index: this file is damaged: it does not end as a table"),
        (_link, r"a link that leads out of the checkpoint"),
        (_compress, r"its blocks are compressed \(snappy\)"),
    ],
    ids=["no-shard", "short-shard", "short-index", "empty-index", "link", "snappy"],
)
def test_damage(damage: Callable[[Path], None], match: str, tmp_path: Path) -> None:
    prefix = copied(written.GOLDEN, "small_shards", tmp_path / "tf")
    assert len(list((tmp_path / "tf").glob("*.data-*"))) == 5
    damage(prefix)
    target = jaxckpt.Checkpoint(big=np.ones((40, 7), np.float32))
    for call in (target.restore, target.read, jaxckpt.load_checkpoint, jaxckpt.list_variables):
        with pytest.raises(jaxckpt.CorruptCheckpointError, match=match):
            call(prefix)
    report = jaxckpt.verify(prefix)
    assert not report.ok
    assert target.big.all()


def test_the_format_v1_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v1"
    shutil.copytree(written.GOLDEN / "v1", path)
    for call in (jaxckpt.load_checkpoint, jaxckpt.verify, jaxckpt.Checkpoint(kernel=np.zeros((4, 4))).restore):
        with pytest.raises(
            jaxckpt.CheckpointError, match=r"a TensorFlow checkpoint in the format V1.*saves in the format V2"
        ):
            call(path / "ckpt")


def test_a_part_or_a_directory_instead_of_the_prefix(tree: Path) -> None:
    for part in (".index", ".data-00000-of-00001"):
        with pytest.raises(jaxckpt.CheckpointError, match=rf"a part of the TensorFlow checkpoint.*'{tree}'"):
            jaxckpt.load_checkpoint(f"{tree}{part}")
    with pytest.raises(
        jaxckpt.CheckpointError, match=r"a directory of TensorFlow checkpoints \(ckpt-2, ckpt-3\).*ckpt-3'"
    ):
        jaxckpt.Checkpoint(step=0).restore(tree.parent)
    with pytest.raises(FileNotFoundError):
        jaxckpt.load_checkpoint(f"{tree}0")


def test_a_checkpoint_that_is_deleted_or_replaced_while_it_is_read(tree: Path) -> None:
    reader = jaxckpt.load_checkpoint(tree)
    for file in tree.parent.glob("ckpt-2.*"):
        os.replace(file, tree.parent / file.name.replace("ckpt-2", "ckpt-3"))
    with pytest.raises(FileNotFoundError, match="replaced by another one"):
        reader.get_tensor("model/tied")
    reader = jaxckpt.load_checkpoint(tree)
    for file in tree.parent.glob("ckpt-3.*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="deleted while it was read"):
        reader.get_tensor("model/tied")


def test_a_managers_directory_of_tensorflow(tree: Path, tmp_path: Path) -> None:
    """The manager changes nothing there, and says how to go on; doing so works."""
    directory = tree.parent
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    checkpoint = jaxckpt.Checkpoint(step=0)
    with pytest.warns(UserWarning, match="holds TensorFlow checkpoints"):
        manager = jaxckpt.CheckpointManager(checkpoint, directory, 3)
    for call in (manager.restore_or_initialize, manager.save, lambda: checkpoint.save(directory / "ckpt")):
        with pytest.raises(jaxckpt.CheckpointError, match="holds TensorFlow checkpoints") as caught:
            call()
        assert f"checkpoint.restore('{tree}')" in str(caught.value)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    checkpoint.restore(str(tree)).expect_partial()
    assert checkpoint.step == 7
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path / "mine", 3)
    assert manager.restore_or_initialize() is None
    assert manager.save() == str(tmp_path / "mine/ckpt-4")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_the_iterator_yields_tensorflows_checkpoints(tree: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(jaxckpt.checkpoints_iterator(tree.parent, timeout=5)) == str(tree)
        assert jaxckpt.latest_checkpoint(tree.parent) == str(tree)
        assert jaxckpt.load_checkpoint(tree.parent).path == str(tree)


def synthetic(directory: Path, parts: list[tuple[int, int]], data: bytes, *, big_endian: bool = False) -> Path:
    """Writes a tensor "x" of int32 and shape (4, 6) in slices along the second axis, each given by its start and extent.

    The bytes of the slices follow one another in `data`.
    """
    from hostile import bundles

    from jaxckpt.storage.tensorflow import slices

    def shape(*extents: int) -> bytes:
        return bundles.message([(2, 2, bundles.message([(1, 0, extent)])) for extent in extents])

    listed, entries, at = [], [(b"", bundles.message([(1, 0, 1), (2, 0, int(big_endian))]))], 0
    for start, extent in parts:
        whole = bundles.message([(1, 2, b"")])
        listed.append((7, 2, whole + bundles.message([(1, 2, bundles.message([(1, 0, start), (2, 0, extent)]))])))
        size = 4 * extent * 4
        crc = bundles.masked(data[at : at + size])
        place = [(1, 0, 3), (2, 2, shape(4, extent)), (4, 0, at), (5, 0, size), (6, 5, crc)]
        entries.append((slices.key_of(b"x", [(0, None), (start, extent)]), bundles.message(place)))
        at += size
    entries.append((b"x", bundles.message([(1, 0, 3), (2, 2, shape(4, 6)), *listed])))
    (directory / "s.index").write_bytes(bundles.encode(sorted(entries)))
    (directory / "s.data-00000-of-00001").write_bytes(data)
    return directory / "s"


@pytest.mark.parametrize("big_endian", [False, True])
def test_slices_along_an_inner_axis_and_both_byte_orders(big_endian: bool, tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    order = ">" if big_endian else "<"
    data = b"".join(
        np.ascontiguousarray(part, f"{order}i4").tobytes() for part in (array[:, 4:], array[:, :1], array[:, 1:4])
    )
    prefix = synthetic(tmp_path, [(4, 2), (0, 1), (1, 3)], data, big_endian=big_endian)
    assert same(jaxckpt.load_variable(prefix, "x"), array)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([(0, 3), (2, 3)], "overlap"),
        ([(0, 3)], "not exactly the shape"),
        ([(0, 3), (3, 4)], "outside of the shape"),
        ([(0, 3), (3, 2)], "not exactly the shape"),
    ],
    ids=["overlap", "gap", "outside", "short"],
)
def test_slices_that_are_not_the_tensor(parts: list[tuple[int, int]], match: str, tmp_path: Path) -> None:
    prefix = synthetic(tmp_path, parts, bytes(200))
    with pytest.raises(jaxckpt.CorruptCheckpointError, match=match):
        jaxckpt.load_checkpoint(prefix)
