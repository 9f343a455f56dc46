"""What released versions of jaxckpt and Orbax wrote restores, bit for bit: the golden checkpoints of tests/golden.

`JAXCKPT_FLIPS` is the number of bits to flip in each of jaxckpt's (for long runs).
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from golden import make
from orbax.checkpoint import v1

import jaxckpt

pytestmark = pytest.mark.sampled

GOLDEN = Path(make.__file__).parent
EVERY = sorted(path for writer in GOLDEN.iterdir() for path in writer.glob("*/") if writer.is_dir())
# NNX objects are restored in place, and compared otherwise than values.
NNX = [path for path in EVERY if make.values_of(path.name) == "nnx"]
ALL = [path for path in EVERY if path not in NNX]
FLIPS = int(os.environ.get("JAXCKPT_FLIPS", "16"))
OWN = [path for path in ALL if path.parent.name.startswith("jaxckpt-")]
quiet_orbax = pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring")


def identifier(path: Path) -> str:
    return str(path.relative_to(GOLDEN))


@pytest.fixture(params=ALL, ids=identifier)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy: reading must not need to write, but if it does, not there."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def tree_directory(path: Path) -> Path:
    """Where the tree is: a manager of Orbax keeps a directory of steps."""
    return path / "5" if path.name == "v0_manager" else path


def values(path: Path) -> dict[str, Any]:
    return make.VALUES[make.values_of(path.name)]()


def is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def blank(leaf: Any) -> Any:
    """A target of the same kind, shape, dtype and sharding, with another value."""
    if is_key(leaf):
        impl = jax.random.key_impl(leaf)
        return jax.random.wrap_key_data(jnp.full_like(jax.random.key_data(leaf), 3), impl=impl)
    if isinstance(leaf, jax.Array):
        return jax.device_put(jnp.ones_like(leaf), leaf.sharding)
    if isinstance(leaf, np.ndarray):
        return np.ones_like(leaf)
    if isinstance(leaf, make.Position):
        return make.Position(type(leaf.state)())
    if isinstance(leaf, make.Iterator):
        return make.Iterator(None)
    return type(leaf)(3) if isinstance(leaf, (np.generic, int, float, complex)) else type(leaf)()


def bits(leaf: Any) -> Any:
    """What two equal leaves have in common: type, dtype, shape, sharding, and every bit."""
    if is_key(leaf):
        return ("key", str(jax.random.key_impl(leaf)), bits(jax.random.key_data(leaf)))
    if isinstance(leaf, jax.Array):
        return (jax.Array, leaf.sharding, bits(np.asarray(leaf)))
    if isinstance(leaf, (np.ndarray, np.generic)):
        return (type(leaf), leaf.dtype.name, leaf.shape, np.ascontiguousarray(leaf).tobytes())
    if isinstance(leaf, (make.Position, make.Iterator)):
        return (type(leaf), type(leaf.state), leaf.state)
    if isinstance(leaf, (float, complex)):
        return (type(leaf), np.asarray(leaf).tobytes())
    return (type(leaf), leaf)


def assert_same(found: Any, expected: Any, what: str = "") -> None:
    found_leaves, found_tree = jax.tree.flatten_with_path(found)
    expected_leaves, expected_tree = jax.tree.flatten_with_path(expected)
    assert found_tree == expected_tree
    for (name, one), (_, two) in zip(found_leaves, expected_leaves, strict=True):
        assert bits(one) == bits(two), f"{jax.tree_util.keystr(name)} {what}"


def as_read(value: Any) -> Any:
    """What a reader makes of a value, which has no targets: numpy arrays, dicts and lists."""
    if isinstance(value, make.Moments):
        return as_read(value._asdict())
    if isinstance(value, dict):
        return {str(key): as_read(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)) and value:
        return [as_read(child) for child in value]
    if is_key(value):
        return np.asarray(jax.random.key_data(value))
    return np.asarray(value) if isinstance(value, jax.Array) else value


def test_all_of_them_are_there() -> None:
    """Also those that a version before this one wrote; whoever removes one has to say so here."""
    assert {path.parent.name for path in OWN} >= {"jaxckpt-0.1.0"}
    assert {path.name for path in EVERY} >= {path.name for path in make.goldens()}
    assert len(NNX) >= 2
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file()) < 1_000_000


def test_restores_into_targets(golden: Path) -> None:
    expected = values(golden)
    checkpoint = jaxckpt.Checkpoint(**jax.tree.map(blank, expected))
    objects = {name: getattr(checkpoint, name) for name in expected if hasattr(expected[name], "state")}
    with pytest.raises(AssertionError):
        assert_same({name: getattr(checkpoint, name) for name in expected}, expected)
    if golden.name.startswith("v"):
        checkpoint.read(tree_directory(golden)).assert_consumed()
        assert checkpoint.save_counter == 0
    else:
        checkpoint.restore(golden).assert_consumed()
        assert checkpoint.save_counter == make.SAVE_COUNTER
    assert_same({name: getattr(checkpoint, name) for name in expected}, expected)
    assert all(getattr(checkpoint, name) is value for name, value in objects.items())


def test_restores_into_other_shardings(golden: Path) -> None:
    """One device, and rows over three: arrays were stored in other pieces than these."""
    expected = values(golden)
    mesh = jax.sharding.Mesh(jax.devices()[5:8], ("n",))

    def target(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or is_key(leaf):
            return blank(leaf)
        divisible = leaf.ndim and leaf.shape[0] % 3 == 0
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("n"))
        sharding = rows if divisible else jax.sharding.SingleDeviceSharding(jax.devices()[6])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    targets = jax.tree.map(target, expected)
    checkpoint = jaxckpt.Checkpoint(**targets)
    checkpoint.read(tree_directory(golden)).assert_consumed()
    for wanted, found, value in zip(
        jax.tree.leaves(targets),
        jax.tree.leaves({name: getattr(checkpoint, name) for name in expected}),
        jax.tree.leaves(expected),
        strict=True,
    ):
        if isinstance(wanted, jax.ShapeDtypeStruct):
            assert found.sharding == wanted.sharding
            assert bits(np.asarray(found)) == bits(np.asarray(value))


def read_tree(path: Path) -> dict[str, Any]:
    """What a reader without targets returns, the states of objects as those objects."""
    tree: dict[str, Any] = jaxckpt.load_checkpoint(path).tree()
    if "position" in tree:
        tree["position"], tree["cursor"] = make.Position(tree["position"]), make.Position(tree["cursor"])
        tree["iterator"] = make.Iterator(json.loads(tree["iterator"]))
    return tree


def test_reads_without_targets(golden: Path) -> None:
    tree = read_tree(tree_directory(golden))
    assert tree.pop("save_counter", None) == (None if golden.name.startswith("v") else make.SAVE_COUNTER)
    assert_same(tree, as_read(values(golden)))


def test_every_leaf_by_name(golden: Path) -> None:
    path = tree_directory(golden)
    reader = jaxckpt.load_checkpoint(path)
    assert jaxckpt.list_variables(path) == [(name, reader.shape(name)) for name in reader.keys()]
    for name in reader.keys():
        found = reader.get_tensor(name)
        assert found.shape == reader.shape(name)
        assert found.dtype == reader.dtype(name)
    kernel = values(golden).get("params")
    if kernel:
        assert bits(reader.get_tensor("params/embed")) == bits(np.asarray(kernel["embed"]))


def test_verifies(golden: Path) -> None:
    report = jaxckpt.verify(tree_directory(golden))
    assert report.ok, report
    assert report.leaves >= len(jaxckpt.load_checkpoint(tree_directory(golden)).keys())
    assert report.checksummed is not golden.name.startswith("v")


def test_the_command_line_verifies_all_of_them(tmp_path: Path, call: Callable[..., Any]) -> None:
    paths = [tree_directory(Path(shutil.copytree(path, tmp_path / f"{n}" / path.name))) for n, path in enumerate(ALL)]
    done = call("verify", *paths)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(str(path) in done.stdout for path in paths)


@quiet_orbax
@pytest.mark.parametrize("api", ["v0", "v1"])
@pytest.mark.parametrize("original", OWN, ids=identifier)
def test_plain_orbax_restores_what_jaxckpt_wrote(original: Path, api: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(original, tmp_path / original.name))
    expected = values(path)
    if api == "v0":
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.restore(path)
    else:
        found = v1.load(path)
    # It was a leaf of the tree once.
    assert found.pop("save_counter", None) == (None if path.name == "model_counter_beside" else make.SAVE_COUNTER)
    assert found.keys() == expected.keys()
    for name in ("params", "large", "line", "plane", "cube", "one", "ramp", "zeros", "few", "numpy", "jax"):
        if name not in expected:
            continue
        for one, two in zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True):
            assert bits(np.asarray(one))[1:] == bits(np.asarray(two))[1:]


@pytest.mark.parametrize("original", OWN, ids=identifier)
@pytest.mark.timeout(max(300, FLIPS * 3))
def test_flipped_bits_are_found_or_harmless(original: Path, tmp_path: Path) -> None:
    """By restore, by the reader and by verify, which agree, in every kind of leaf."""
    path = Path(shutil.copytree(original, tmp_path / original.name))
    rng = random.Random(original.name)
    expected = values(path)
    expected_tree = {**as_read(expected), "save_counter": make.SAVE_COUNTER}
    targets = jax.tree.map(blank, expected)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    found = 0
    for turn in range(FLIPS):
        # Small files as often as large ones, then by size.
        file = files[turn // 2 % len(files)] if turn % 2 else rng.choices(files, [f.stat().st_size for f in files])[0]
        content = file.read_bytes()
        bit = rng.randrange(len(content) * 8)
        file.write_bytes(flipped(content, bit))
        what = f"{file.relative_to(path)} bit {bit}"
        detected = []
        try:
            if not jaxckpt.verify(path).ok:
                detected.append("verify")
        except (jaxckpt.CheckpointError, FileNotFoundError):
            detected.append("verify")
        try:
            assert_same(read_tree(path), expected_tree, what)
        except jaxckpt.CheckpointError:
            detected.append("reader")
        checkpoint = jaxckpt.Checkpoint(**targets)
        before = [(leaf, bits(leaf)) for leaf in jax.tree.leaves(targets) if hasattr(leaf, "state")]
        try:
            checkpoint.restore(path).assert_consumed()
        except jaxckpt.CorruptCheckpointError:
            detected.append("restore")
            assert all(getattr(checkpoint, name) is targets[name] for name in targets), what
            assert all(bits(leaf) == state for leaf, state in before), what
            assert checkpoint.save_counter == 0, what
        else:
            assert_same({name: getattr(checkpoint, name) for name in expected}, expected, what)
            assert checkpoint.save_counter == make.SAVE_COUNTER, what
            # Objects were changed in place, so they are made again.
            targets = jax.tree.map(blank, expected)
        assert not detected or "verify" in detected, f"{what}: verify found nothing, but {detected} did"
        found += bool(detected)
        file.write_bytes(content)
    assert found > FLIPS // 4
    print(f"\n{original.name}: {found} of {FLIPS} flips found, the others are harmless")


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("original", [path for path in ALL if path not in OWN], ids=identifier)
def test_the_comparison_can_fail(original: Path, tmp_path: Path) -> None:
    """What plain Orbax wrote has few checksums: some flip of its data is an error, or other values."""
    path = Path(shutil.copytree(original, tmp_path / original.name))
    expected = values(path)
    file = max((file for file in path.rglob("*") if file.is_file() and "_METADATA" not in file.name), key=_size)
    content = file.read_bytes()
    for byte in range(0, len(content), max(1, len(content) // 20)):
        file.write_bytes(flipped(content, byte * 8 + 4))
        checkpoint = jaxckpt.Checkpoint(**jax.tree.map(blank, expected))
        try:
            checkpoint.read(tree_directory(path)).expect_partial()
            assert_same({name: getattr(checkpoint, name) for name in expected}, expected)
        except (jaxckpt.CheckpointError, ValueError, AssertionError):
            return
    pytest.fail("20 flips changed nothing")


def _size(file: Path) -> int:
    return file.stat().st_size


def nnx_states(values: dict[str, Any]) -> dict[str, Any]:
    """What is in NNX objects, as nested dicts."""
    return {name: nnx.to_pure_dict(nnx.state(value)) for name, value in values.items()}


def listed(tree: Any) -> Any:
    """The same as a reader has it: numpy arrays, and lists for sequences without holes."""
    if not isinstance(tree, dict):
        return as_read(tree)
    built = {key: listed(child) for key, child in tree.items()}
    return list(built.values()) if built and list(built) == list(range(len(built))) else built


@pytest.mark.slow
@pytest.mark.parametrize("original", NNX, ids=identifier)
def test_nnx_objects(original: Path, tmp_path: Path) -> None:
    """However their containers are described, the same objects and the same tree come back."""
    path = Path(shutil.copytree(original, tmp_path / original.name))
    expected = nnx_states(make.nnx_program())
    values = make.nnx_program()
    for value in values.values():
        nnx.update(value, jax.tree.map(blank, nnx.state(value)))
    checkpoint = jaxckpt.Checkpoint(**values)
    checkpoint.restore(path).assert_consumed()
    assert_same(nnx_states(values), expected)
    assert checkpoint.save_counter == make.SAVE_COUNTER
    tree = jaxckpt.load_checkpoint(path).tree()
    assert tree["model"]["layers"]["layers"].keys() == {0, 2}
    assert isinstance(tree["model"]["blocks"], list)
    assert tree["optimizer"]["opt_state"].keys() == {1}
    assert_same(tree, {**listed(expected), "save_counter": make.SAVE_COUNTER})
    assert jaxckpt.verify(path).ok
