"""Every kind of leaf comes back bit for bit, through jaxckpt and through plain Orbax."""

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as hnp
from orbax.checkpoint import v1

import jaxckpt

pytestmark = pytest.mark.sampled

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *(ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.int2, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    *(ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float4_e2m1fn),
]
TREES = pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")


def same(left: Any, right: Any) -> bool:
    """Whether two leaves have the same type, dtype, shape and bits."""
    if isinstance(left, jax.Array) and jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
        return left.dtype == right.dtype and same(jax.random.key_data(left), jax.random.key_data(right))
    if type(left) is not type(right):
        return False
    if isinstance(left, (jax.Array, np.ndarray, np.generic)):
        a, b = np.asarray(left), np.asarray(right)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(left, (float, complex)):
        return np.asarray(left).tobytes() == np.asarray(right).tobytes()
    return bool(left == right)


def assert_same(left: Any, right: Any) -> None:
    left_leaves, left_tree = jax.tree.flatten(left)
    right_leaves, right_tree = jax.tree.flatten(right)
    assert left_tree == right_tree
    for a, b in zip(left_leaves, right_leaves, strict=True):
        assert same(a, b), (a, b)


def bits(draw: Any, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of random bits (of valid ones: bool and sub-byte types do not use all of a byte)."""
    dtype = np.dtype(dtype)
    size = math.prod(shape)
    if dtype.kind == "b":
        return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8).reshape(shape) % 2 == 1
    raw = np.frombuffer(draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize)), np.uint8)
    if dtype.itemsize == 1 and dtype.name in ("int4", "int2", "float4_e2m1fn"):
        low = {"int4": 7, "int2": 1, "float4_e2m1fn": 6}[dtype.name]
        return (raw % (low + 1)).astype(np.float32).reshape(shape).astype(dtype)
    return raw.copy().view(dtype).reshape(shape)


@st.composite
def arrays(draw: Any) -> np.ndarray:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    return bits(draw, draw(st.sampled_from(DTYPES)), shape)


def to_jax(array: np.ndarray) -> Any:
    if array.dtype.itemsize == 8 and array.dtype.kind in "iuf":
        # JAX has 64 bits only if asked for them.
        return array
    return array if array.dtype == np.complex128 else jnp.asarray(array)


leaves = st.one_of(
    arrays(),
    arrays().map(to_jax),
    arrays().filter(lambda a: a.ndim == 0).map(lambda a: a[()]),
    st.integers(-(2**63), 2**64 - 1),
    st.booleans(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.integers(0, 2**32 - 1).map(jax.random.key),
    st.none(),
)


def trees_with(alphabet: str) -> st.SearchStrategy[Any]:
    """Trees whose mapping keys are made of the given characters."""
    keys = st.text(alphabet=alphabet, min_size=1, max_size=4)
    return st.recursive(
        leaves,
        lambda children: st.one_of(
            # Orbax cannot tell these two keys apart, so a save refuses them.
            st.dictionaries(keys, children, max_size=3).filter(
                lambda found: not any(f"{key}/" in found for key in found)
            ),
            st.lists(children, max_size=3),
            st.tuples(children, children),
        ),
        max_leaves=8,
    )


@pytest.mark.slow
@TREES
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees_with("ab/~ é"), asynchronous=st.booleans())
def test_any_tree_comes_back(tree: Any, asynchronous: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("trees")
    checkpoint = jaxckpt.Checkpoint(value=tree)
    path = checkpoint.save(directory / "ckpt", jaxckpt.CheckpointOptions(enable_async=asynchronous))
    checkpoint.sync()
    target = jaxckpt.Checkpoint(value=jax.tree.map(blank, tree))
    target.restore(path).assert_consumed()
    assert_same(target.value, tree)
    assert jaxckpt.verify(path).ok
    stored = jaxckpt.load_checkpoint(path).tree().get("value")
    assert_same(jax.tree.map(as_read, stored), jax.tree.map(as_read, unstructured(tree)))


def blank(leaf: Any) -> Any:
    """A target like `leaf`, with another value."""
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(123)
        return jnp.zeros_like(leaf)
    if isinstance(leaf, np.ndarray):
        return np.zeros_like(leaf)
    return type(leaf)(0) if isinstance(leaf, np.generic) else type(leaf)()


def unstructured(tree: Any) -> Any:
    """What a reader without targets makes of a tree: tuples are lists, empty ones aside."""
    if isinstance(tree, dict):
        return {key: unstructured(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)) and tree:
        return [unstructured(value) for value in tree]
    return tree


def as_read(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        return np.asarray(leaf)
    return leaf


@pytest.mark.slow
@TREES
@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
# Orbax itself cannot read a str below a key with "/" or "~".
@given(tree=st.dictionaries(st.text(alphabet="ab-é_>", min_size=1), trees_with("ab ?é+"), min_size=1, max_size=2))
def test_plain_orbax_reads_any_tree(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("orbax")
    path = jaxckpt.Checkpoint(value=tree).write(directory / "c")
    expected = jax.tree.map(as_orbax_reads, unstructured(tree))
    for restored in (v1.load(path), ocp.PyTreeCheckpointer().restore(path)):
        assert restored.keys() == {"value"}
        assert_same(jax.tree.map(as_read, restored["value"]), expected)


def as_orbax_reads(leaf: Any) -> Any:
    if isinstance(leaf, bytes):
        return np.frombuffer(leaf, np.uint8)
    if isinstance(leaf, np.generic):
        return np.asarray(leaf).item()
    return as_read(leaf)


@TREES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_orbax_restores_into_targets(dtype: Any, tmp_path: Path) -> None:
    array = np.arange(12).reshape(3, 4).astype(np.float32).clip(0, 1).astype(dtype)
    value = {"numpy": array, "jax": to_jax(array), "empty": np.zeros((0, 2), dtype)}
    path = jaxckpt.Checkpoint(value=value).write(tmp_path / "c")
    device = jax.devices()[1]
    target = {
        "numpy": np.zeros_like(array),
        "jax": jax.ShapeDtypeStruct((3, 4), value["jax"].dtype, sharding=jax.sharding.SingleDeviceSharding(device))
        if isinstance(value["jax"], jax.Array)
        else np.zeros_like(array),
        "empty": np.zeros((0, 2), dtype),
    }
    restored = v1.load(path, {"value": target})["value"]
    assert same(np.asarray(restored["numpy"]), array)
    assert same(np.asarray(restored["jax"]), array)
    assert restored["empty"].shape == (0, 2)


@TREES
def test_large_arrays_are_chunked_and_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    value = {
        "rows": jnp.asarray(rng.standard_normal((1237, 501), dtype=np.float32)),
        "flat": rng.integers(0, 2**60, 300_001),
        "fortran": np.asfortranarray(rng.standard_normal((400, 300))),
        "strided": rng.standard_normal((800, 300))[::2, ::3],
        "tall": jnp.asarray(rng.standard_normal((2, 3, 100_000)), jnp.bfloat16),
    }
    for compression in (None, "zstd"):
        settings_ = jaxckpt.OrbaxSettings(
            compression=compression, chunk_byte_size=100_000, target_data_file_size=500_000, memory_limit_bytes=900_000
        )
        path = jaxckpt.Checkpoint(value=value).write(tmp_path / "c", jaxckpt.CheckpointOptions(orbax=settings_))
        target = jaxckpt.Checkpoint(value=jax.tree.map(blank, value))
        target.read(path).assert_consumed()
        assert_same(target.value, value)
        for restored in (v1.load(path), ocp.PyTreeCheckpointer().restore(path)):
            assert_same(jax.tree.map(np.asarray, restored["value"]), jax.tree.map(np.asarray, value))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@TREES
def test_prng_keys(impl: str, tmp_path: Path) -> None:
    value = {"one": jax.random.key(7, impl=impl), "many": jax.random.split(jax.random.key(8, impl=impl), (2, 3))}
    path = jaxckpt.Checkpoint(key=value).write(tmp_path / "c")
    target = jaxckpt.Checkpoint(key={"one": jax.random.key(0, impl=impl), "many": value["many"][::-1]})
    target.read(path).assert_consumed()
    assert_same(target.key, value)
    abstract = jaxckpt.Checkpoint(key=jax.tree.map(lambda key: jax.ShapeDtypeStruct(key.shape, key.dtype), value))
    abstract.read(path).assert_consumed()
    assert_same(abstract.key, value)
    assert_same(v1.load(path)["key"], value)
    other = jaxckpt.Checkpoint(key={"one": jax.random.key(0, impl="rbg" if impl != "rbg" else "threefry2x32")})
    with pytest.raises(ValueError, match=r"key/one: the target is a PRNG key of implementation .*rbg"):
        other.read(path)


def mesh(*shape: int) -> jax.sharding.Mesh:
    devices = np.asarray(jax.devices()[: math.prod(shape)]).reshape(shape)
    return jax.sharding.Mesh(devices, ("x", "y")[: len(shape)])


P = jax.sharding.PartitionSpec
SHARDINGS = [
    jax.sharding.NamedSharding(mesh(8), P("x")),
    jax.sharding.NamedSharding(mesh(4, 2), P("x", "y")),
    jax.sharding.NamedSharding(mesh(4), P(None, "x")),
    jax.sharding.NamedSharding(mesh(2, 2), P()),
    jax.sharding.NamedSharding(mesh(2, 2), P(("x", "y"))),
    jax.sharding.SingleDeviceSharding(jax.devices()[3]),
]


@TREES
@pytest.mark.parametrize("rows", [8, 8 * 1000], ids=["small", "large"])
@pytest.mark.parametrize("saved", SHARDINGS, ids=str)
def test_shardings_change_between_save_and_restore(saved: Any, rows: int, tmp_path: Path) -> None:
    array = np.arange(rows * 16, dtype=np.float32).reshape(rows, 16)
    value = jax.device_put(array, saved)
    path = jaxckpt.Checkpoint(value=value).write(tmp_path / "c")
    for wanted in SHARDINGS:
        for target in (
            jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=wanted),
            jax.device_put(np.zeros_like(array), wanted),
        ):
            checkpoint = jaxckpt.Checkpoint(value=target)
            checkpoint.read(path).assert_consumed()
            assert checkpoint.value.sharding == wanted
            assert np.array_equal(np.asarray(checkpoint.value), array)
    restored = v1.load(path, {"value": jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=SHARDINGS[1])})
    assert np.array_equal(np.asarray(restored["value"]), array)
    # Every element is stored once, whatever the replication.
    assert sum(file.stat().st_size for file in (tmp_path / "c" / "d").iterdir()) < array.nbytes * 1.5 + 10_000


@pytest.mark.slow
@TREES
def test_another_number_of_devices_restores(tmp_path: Path) -> None:
    value = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), SHARDINGS[1])
    path = jaxckpt.Checkpoint(value=value).save(tmp_path / "ckpt")
    script = """
import sys, jax, numpy as np, jaxckpt
assert len(jax.devices()) == 1
c = jaxckpt.Checkpoint(value=jax.ShapeDtypeStruct((8, 8), np.float32))
c.restore(sys.argv[1]).assert_consumed()
assert np.array_equal(c.value, np.arange(64.0).reshape(8, 8))
assert jaxckpt.load_variable(sys.argv[1], "value").shape == (8, 8)
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, path], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


class Odd:
    """Nothing that can be stored."""


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (2**64, "does not fit into 64 bits"),
        (-(2**63) - 1, "does not fit into 64 bits"),
        (np.array(["text"]), "dtype <U4"),
        (np.array([1, "x"], dtype=object), "dtype object"),
        (np.zeros(2, "datetime64[s]"), "dtype datetime64"),
        (np.zeros(2, [("a", "i4")]), "dtype"),
        (np.zeros(2, ml_dtypes.uint4), "dtype uint4"),
        (jnp.zeros(2, jnp.uint4), "dtype uint4"),
        (np.ma.masked_array([1, 2], [True, False]), "mask would be lost"),
        (Odd(), "Odd"),
        (lambda: 1, "function"),
        ({1, 2}, "set"),
        (bytearray(b"x"), "bytearray"),
        (np.longdouble(1), "dtype"),
        (jax.ShapeDtypeStruct((2,), np.float32), "abstract array"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused_by_name(leaf: Any, message: str, tmp_path: Path) -> None:
    for asynchronous in (False, True):
        checkpoint = jaxckpt.Checkpoint(model={"good": np.ones(3), "bad": [leaf]})
        with pytest.raises(TypeError, match=rf"model/bad/0: .*{message}"):
            checkpoint.save(tmp_path / "d" / "ckpt", jaxckpt.CheckpointOptions(enable_async=asynchronous))
        assert checkpoint.save_counter == 0
        assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("text", ["\ud800", "caf\udce9", "x" * 100 + "\udfff"])
def test_a_str_that_is_not_text(text: str, tmp_path: Path) -> None:
    """Orbax could not read a checkpoint that holds it."""
    checkpoint = jaxckpt.Checkpoint(good="héllo 🦀", deep={"bad": text})
    for asynchronous in (False, True):
        with pytest.raises(ValueError, match=rf"^deep/bad: .*lone surrogate.*index {len(text) - 1}\b.*bytes"):
            checkpoint.write(tmp_path / "new", jaxckpt.CheckpointOptions(enable_async=asynchronous))
    assert list(tmp_path.iterdir()) == []
    checkpoint.deep["bad"] = text.encode("utf-8", "surrogatepass")
    assert jaxckpt.load_checkpoint(checkpoint.write(tmp_path / "new")).tree()["good"] == "héllo 🦀"


def test_keys_that_orbax_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(value={"a": {"b": np.ones(1)}, "a.b": np.zeros(1)})
    with pytest.raises(ValueError, match=r"'value/a.b' and 'value/a/b'|'value/a/b' and 'value/a.b'"):
        checkpoint.save(tmp_path / "ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a", "a~b", "a/c")], ids=["above", "below", "tilde"])
def test_a_str_whose_name_is_above_another_ones_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    """Orbax takes the name of a str for a JSON pointer."""
    checkpoint = jaxckpt.Checkpoint(value=dict.fromkeys(names, ""))
    with pytest.raises(ValueError, match="cannot tell the name of this str"):
        checkpoint.save(tmp_path / "ckpt")
    assert not list(tmp_path.iterdir())


def test_keys_are_compared_again_when_they_have_changed(tmp_path: Path) -> None:
    """That the names of a state are distinct is found out once; of another one, with as many leaves, anew."""
    good = {"a": {"b": np.ones(1)}, "c": np.zeros(1)}
    bad = {"a": {"b": np.ones(1)}, "a.b": np.zeros(1)}
    checkpoint = jaxckpt.Checkpoint(value=good)
    for _ in range(2):
        checkpoint.save(tmp_path / "ckpt")
        checkpoint.value = bad
        with pytest.raises(ValueError, match="both be stored"):
            checkpoint.save(tmp_path / "ckpt")
        checkpoint.value = good


def test_mappings_with_keys_of_several_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="value.*cannot be sorted"):
        jaxckpt.Checkpoint(value={1: 1, "b": 2}).save(tmp_path / "ckpt")


def test_traced_and_deleted_values_are_refused(tmp_path: Path) -> None:
    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        jaxckpt.Checkpoint(x=x).save(tmp_path / "ckpt")
        return x

    with pytest.raises(TypeError, match="x: this value is traced"):
        step(jnp.ones(3))
    donated = jnp.ones(3)
    donated.delete()
    with pytest.raises(ValueError, match="x: this array has been deleted"):
        jaxckpt.Checkpoint(x=donated).save(tmp_path / "ckpt")
    assert not list(tmp_path.iterdir())


def test_numpy_byte_order_is_kept(tmp_path: Path) -> None:
    value = np.arange(5, dtype=">f4")
    path = jaxckpt.Checkpoint(value=value).save(tmp_path / "ckpt")
    target = jaxckpt.Checkpoint(value=np.zeros(5, ">f4"))
    target.restore(path)
    assert target.value.dtype == np.dtype(">f4")
    assert np.array_equal(target.value, value)


def test_restored_numpy_arrays_can_be_written(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(small=np.ones(3), large=np.ones(100_000), empty=np.ones((0, 2)))
    checkpoint.restore(checkpoint.save(tmp_path / "ckpt"))
    checkpoint.small += 1
    checkpoint.large += 1
    assert checkpoint.small[0] == checkpoint.large[-1] == 2


def test_weak_types_and_freedom_to_move_are_kept(tmp_path: Path) -> None:
    committed = jax.device_put(jnp.ones(3), jax.devices()[2])
    checkpoint = jaxckpt.Checkpoint(weak=jnp.asarray(3.5), free=jnp.ones(3), fixed=committed)
    checkpoint.restore(checkpoint.save(tmp_path / "ckpt"))
    assert checkpoint.weak.weak_type
    assert checkpoint.weak.dtype == jnp.float32
    assert (checkpoint.weak * jnp.ones(1, jnp.bfloat16)).dtype == jnp.bfloat16
    assert not checkpoint.free.committed
    assert checkpoint.fixed.committed
    assert checkpoint.fixed.devices() == {jax.devices()[2]}


@TREES
@pytest.mark.parametrize("zarr3", [False, True], ids=["zarr2", "zarr3"])
@pytest.mark.parametrize("ocdbt", [False, True], ids=["files", "ocdbt"])
def test_what_plain_orbax_v0_wrote_restores(zarr3: bool, ocdbt: bool, tmp_path: Path) -> None:
    tree = {
        "sharded": jax.device_put(np.arange(64, dtype=np.float32).reshape(8, 8), SHARDINGS[1]),
        "one": jnp.arange(5, dtype=jnp.bfloat16),
        "numpy": np.arange(7),
        "key": jax.random.key(5),
        "int": 3,
        "float": 2.5,
        "text": "hello",
        "list": [1, {"a": np.ones(2)}],
    }
    path = str(tmp_path / "orbax")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave({"value": tree}))
    target = jaxckpt.Checkpoint(value=jax.tree.map(blank, tree))
    target.restore(path).assert_consumed()
    assert_same(target.value, tree)
    report = jaxckpt.verify(path)
    assert report.ok
    assert not report.checksummed
    assert "no checksums" in str(report)
    assert jaxckpt.load_checkpoint(path).tree()["value"]["list"][0] == 1


@TREES
@pytest.mark.parametrize("compressed", [False, True])
def test_what_plain_orbax_v1_wrote_restores(compressed: bool, tmp_path: Path) -> None:
    tree = {"value": {"w": jnp.arange(1000.0), "n": np.arange(7), "text": "hello", "int": 3}}
    path = str(tmp_path / "orbax")
    context = v1.Context()
    context.array.saving.use_compression = compressed
    with context:
        v1.save(path, tree)
    target = jaxckpt.Checkpoint(value=jax.tree.map(blank, tree["value"]))
    target.restore(path).assert_consumed()
    assert_same(target.value, tree["value"])
    assert jaxckpt.verify(path).ok
    assert [name for name, _ in jaxckpt.list_variables(path)] == ["value/int", "value/n", "value/text", "value/w"]


def test_no_warnings_leak(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = jaxckpt.Checkpoint(value={"a": jnp.ones(3), "b": "x"})
        checkpoint.restore(checkpoint.save(tmp_path / "ckpt")).assert_consumed()
