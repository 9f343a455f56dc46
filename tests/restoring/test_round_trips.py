"""Bit exact, every kind of leaf and key, through jaxckpt and plain Orbax in both directions, on any number of devices."""

import itertools
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from examples import examples
from hypothesis import strategies as st
from orbax.checkpoint import v1

import jaxckpt

pytestmark = pytest.mark.sampled

ROOT = Path(__file__).parents[2]
# Orbax says so on every restore without a target.
quiet_orbax = pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring")
NUMPY_DTYPES = [
    *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    *(np.float16, np.float32, np.float64, np.complex64, np.complex128),
]
ML_DTYPES = [
    *("bfloat16", "int2", "int4", "float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
]
DTYPES = [np.dtype(dtype) for dtype in NUMPY_DTYPES] + [np.dtype(getattr(ml_dtypes, name)) for name in ML_DTYPES]
ON_DEVICE = [dtype for dtype in DTYPES if dtype.itemsize < 8 or dtype == np.complex64]
SHAPES = st.one_of(st.just(()), st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple))


def any_bits(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An array of random bits: every nan payload, denormal and negative zero there is."""
    rng = np.random.default_rng(seed)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    # Some bits of their bytes are unused.
    if dtype.name in ("int2", "int4", "float4_e2m1fn"):
        return rng.integers(-2, 2, shape).astype(dtype)
    count = int(np.prod(shape))
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape).copy()


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(["numpy", "jax", "scalar"]))
    dtype = draw(st.sampled_from(DTYPES if kind != "jax" else ON_DEVICE))
    seed = draw(st.integers(0, 2**32))
    if kind == "scalar":
        return any_bits(dtype, (), seed)[()]
    array = any_bits(dtype, draw(SHAPES), seed)
    if kind == "numpy":
        return np.asfortranarray(array) if draw(st.booleans()) else array[..., ::-1] if array.ndim else array
    return jnp.asarray(array)


@st.composite
def prng_keys(draw: st.DrawFn) -> Any:
    impl = draw(st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"]))
    key = jax.random.key(draw(st.integers(0, 2**31)), impl=impl)
    return key if draw(st.booleans()) else jax.random.split(key, draw(st.sampled_from([1, 3, (2, 2)])))


# Null characters are among them, but not lone surrogates, which are not text.
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
leaves = st.one_of(
    arrays(),
    prng_keys(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.complex_numbers(),
    any_text,
    st.binary(max_size=50),
    st.none(),
)
odd_keys = st.sampled_from(
    ["", "/", ".", "..", "~", "~1", "a/b", "c", "0", "zarr.json", "a.b", "save_counter", "é", "🦀", " ", "\n"]
)
keys = st.one_of(odd_keys, st.text(st.characters(exclude_categories=["Cs"]), max_size=5))


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.dictionaries(keys, children, max_size=4),
        st.dictionaries(st.integers(-5, 200), children, max_size=3),
        st.lists(children, max_size=4),
        st.tuples(children, children),
    )


trees = st.recursive(leaves, containers, max_leaves=10)
slow = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]


def is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def bits(leaf: Any) -> Any:
    """What has to be the same: type, dtype, shape and every bit."""
    if is_key(leaf):
        return ("key", str(jax.random.key_impl(leaf)), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes())
    if isinstance(leaf, jax.Array):
        return ("jax", leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
    if isinstance(leaf, (np.ndarray, np.generic)):
        return (type(leaf), leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
    if isinstance(leaf, (float, complex)):
        return (type(leaf), np.asarray(leaf).tobytes())
    return (type(leaf), leaf)


def other(leaf: Any) -> Any:
    """A target for `leaf` that holds something else."""
    if is_key(leaf):
        return jax.random.wrap_key_data(jax.random.key_data(leaf) + 1, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array):
        return jnp.ones(leaf.shape, leaf.dtype)
    if isinstance(leaf, np.ndarray):
        return np.ones(leaf.shape, leaf.dtype)
    if isinstance(leaf, np.generic):
        return np.ones((), leaf.dtype)[()]
    return type(leaf)()


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert bits(one) == bits(two)


def stored_or_refused(value: Any, directory: Path, options: Any = None) -> tuple[jaxckpt.Checkpoint, str | None]:
    """Saves; what cannot be kept has to be refused by name, with nothing left."""
    checkpoint = jaxckpt.Checkpoint(value=value)
    try:
        return checkpoint, checkpoint.write(directory / "c", options)
    except (ValueError, TypeError) as error:
        assert str(error).startswith(("value", "The leaves 'value")), error
        assert list(directory.iterdir()) == []
        return checkpoint, None


@pytest.mark.slow
@hypothesis.given(value=trees, asynchronous=st.booleans(), zstd=st.booleans())
@hypothesis.settings(max_examples=examples(120), suppress_health_check=slow)
@hypothesis.example(value={"a": {"b": 1}, "a.b": 2}, asynchronous=False, zstd=False)
@hypothesis.example(value={"": None, "/": None}, asynchronous=False, zstd=False)
@hypothesis.example(value={"\ud800": np.ones(3)}, asynchronous=False, zstd=False)
@hypothesis.example(value={"\ud800": "text", "x": "\0"}, asynchronous=True, zstd=False)
@hypothesis.example(
    value=np.array([0x7FC00001, 0xFFFFFFFF, 0x80000000], np.uint32).view(np.float32), asynchronous=False, zstd=True
)
@hypothesis.example(value=np.zeros((0,)), asynchronous=False, zstd=True)
def test_bit_exact(value: Any, asynchronous: bool, zstd: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    options = jaxckpt.CheckpointOptions(
        enable_async=asynchronous, orbax=jaxckpt.OrbaxSettings(compression="zstd" if zstd else None)
    )
    checkpoint, path = stored_or_refused(value, tmp_path_factory.mktemp("bits"), options)
    if path is None:
        # Orbax ends the name of a leaf by a slash, unless it ends by one.
        names = [".".join(map(str, path)).removesuffix("/") for path in _string_paths(value)]
        assert len(set(names)) < len(names) or _has_surrogates(names)
        return
    checkpoint.value = jax.tree.map(other, value)
    checkpoint.read(path).assert_consumed()
    assert_same(checkpoint.value, value)
    if not asynchronous:
        assert jaxckpt.verify(path).ok
        reader = jaxckpt.load_checkpoint(path)
        for name in reader.keys():
            assert reader.get_tensor(name).shape == reader.shape(name)


def _string_paths(value: Any) -> list[tuple[str, ...]]:
    stops = lambda node: node is None or (isinstance(node, (dict, list, tuple)) and not node)  # noqa: E731
    found = jax.tree_util.tree_flatten_with_path(value, is_leaf=stops)[0]
    return [tuple(str(getattr(entry, "key", getattr(entry, "idx", None))) for entry in path) for path, _ in found]


def _has_surrogates(names: list[str]) -> bool:
    return any("\ud800" <= character <= "\udfff" for name in names for character in name)


def orbax_view(value: Any) -> Any:
    """What plain Orbax, without a target, makes of a value that jaxckpt wrote."""
    if isinstance(value, dict):
        return {str(key): orbax_view(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [orbax_view(child) for child in value] if value else value
    if is_key(value):
        return value
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    if isinstance(value, np.generic):
        return value.item() if not isinstance(value.item(), np.generic) else np.asarray(value)
    return value


def assert_orbax_same(found: Any, expected: Any, where: str = "") -> None:
    if isinstance(expected, dict):
        assert sorted(found) == sorted(expected), where
        for key in expected:
            assert_orbax_same(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, (one, two) in enumerate(zip(found, expected, strict=True)):
            assert_orbax_same(one, two, f"{where}/{index}")
    elif expected is None or isinstance(expected, str):
        assert found == expected, where
    elif is_key(expected):
        assert bits(found) == bits(expected), where
    else:
        one, two = np.asarray(found), np.asarray(expected)
        assert one.shape == two.shape, where
        # Orbax turns scalars into Python's; bits that Python does not have cannot come back.
        if two.shape == () and not isinstance(expected, (jax.Array, np.ndarray)):
            assert one.astype(two.dtype) == two or (one != one and two != two), where
        else:
            assert (one.dtype, one.tobytes()) == (two.dtype, two.tobytes()), where


plain_keys = st.sampled_from(["a", "b", "a/b", "a~1b", "é", "🦀", " ", "zarr.json", "0", "x" * 60])
plain_leaves = st.one_of(
    arrays(),
    prng_keys(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(),
    st.text(max_size=6),
    st.binary(max_size=9),
    st.none(),
)
plain_trees = st.dictionaries(
    plain_keys,
    st.recursive(
        plain_leaves,
        lambda children: st.one_of(
            st.dictionaries(plain_keys, children, max_size=3),
            st.lists(children, max_size=3),
            st.tuples(children, children),
        ),
        max_leaves=8,
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.slow
@quiet_orbax
@hypothesis.given(value=plain_trees)
@hypothesis.settings(max_examples=examples(40), suppress_health_check=slow)
def test_plain_orbax_reads_it(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = jaxckpt.Checkpoint(value=value).write(tmp_path_factory.mktemp("plain") / "c")
    expected = {"value": orbax_view(value)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert_orbax_same(checkpointer.restore(path), expected)
    assert_orbax_same(v1.load(path), expected)


@pytest.mark.parametrize("dtype", ON_DEVICE, ids=str)
@pytest.mark.parametrize("layout", ["packed", "files", "zstd"])
def test_orbax_v1_restores_into_targets(dtype: np.dtype[Any], layout: str, tmp_path: Path) -> None:
    options = {
        "packed": None,
        "files": jaxckpt.CheckpointOptions(experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(200)),
        "zstd": jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(compression="zstd", chunk_byte_size=128)),
    }[layout]
    value = {"a": jnp.asarray(any_bits(dtype, (7, 64), 1)), "b": [any_bits(dtype, (), 2), any_bits(dtype, (300,), 3)]}
    path = jaxckpt.Checkpoint(value=value).write(tmp_path / "c", options)
    target = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf, value)
    found = v1.load(path, {"value": target})["value"]
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(value), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert isinstance(found["a"], jax.Array)


ODD_KEYS = ["a/b", "a~1b", "a~0b", "~", "/", "//", "", ".", "..", "0", "-", "a/-", "c", "zarr.json", "é"]


@quiet_orbax
@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize("leaf", ["array", "text"])
def test_odd_keys_between_jaxckpt_and_plain_orbax(leaf: str, key: str, tmp_path: Path) -> None:
    """Orbax names a str by a JSON pointer, in which / and ~ mean something."""
    if leaf == "text" and key == "~":
        pytest.skip("Orbax itself can neither save nor restore this")
    value = {"m": {key: np.arange(3.0) if leaf == "array" else "some text", "z": "zz"}}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "v0", value)
    v1.save(tmp_path / "v1", value)
    for api in ("v0", "v1"):
        checkpoint = jaxckpt.Checkpoint(m=other_values(value["m"]))
        checkpoint.read(tmp_path / api).assert_consumed()
        assert_same(checkpoint.m, value["m"])
    path = jaxckpt.Checkpoint(m=value["m"]).write(tmp_path / "ours")
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert_orbax_same(checkpointer.restore(path), value)
    assert_orbax_same(v1.load(path), value)


def other_values(value: Any) -> Any:
    return jax.tree.map(other, value)


# v0 always compresses.
FORMATS = [("v0", *rest, True) for rest in itertools.product([True, False], repeat=2)] + [
    ("v1", *rest) for rest in itertools.product([True, False], repeat=3)
]


@pytest.mark.parametrize(("api", "zarr3", "ocdbt", "compressed"), FORMATS)
def test_what_plain_orbax_wrote_restores(api: str, zarr3: bool, ocdbt: bool, compressed: bool, tmp_path: Path) -> None:
    value = {
        "dtypes": {
            f"{dtype}": (jnp.asarray if dtype in ON_DEVICE else np.asarray)(
                any_bits(dtype, (3, 5), 1) if zarr3 or dtype.name in _ZARR2 else np.ones(3)
            )
            for dtype in DTYPES
        },
        "zero_dim": jnp.float32(-0.0),
        "large": jnp.asarray(any_bits(np.dtype(np.float32), (300, 200), 2)),
        "scalars": [1, 2.5, True],
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 3),
        "text": "ünï",
        "empty": {"d": {}, "l": [], "t": (), "n": None},
    }
    path = tmp_path / "c"
    if api == "v0":
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(value))
    else:
        context = v1.Context()
        context.array.saving.use_ocdbt = ocdbt
        context.array.saving.use_zarr3 = zarr3
        context.array.saving.use_compression = compressed
        with context:
            v1.save(path, value)
    target = jax.tree.map(other, value)
    checkpoint = jaxckpt.Checkpoint(target)
    checkpoint.read(path).assert_consumed()
    assert_same({name: getattr(checkpoint, name) for name in value}, value)
    assert jaxckpt.verify(path).ok
    tree = jaxckpt.load_checkpoint(path).tree()
    np.testing.assert_array_equal(tree["large"], np.asarray(value["large"]))
    assert tree["scalars"] == [1, 2.5, True]
    assert tree["text"] == "ünï"


_ZARR2 = {np.dtype(dtype).name for dtype in NUMPY_DTYPES} | {"bfloat16", "int4", "float8_e4m3fn", "float8_e5m2"}


@pytest.mark.parametrize("values_64", ["abstract", "sharded"])
def test_wide_numbers_are_never_cast_silently(values_64: str, tmp_path: Path) -> None:
    """Without x64, JAX would make int32 of an int64 on a device: an error, or all of the bits."""
    wide = np.array([2**40 + 1, -5, 7, 2**62], np.int64)
    path = jaxckpt.Checkpoint(value=wide).write(tmp_path / "c")
    sharding = None
    if values_64 == "sharded":
        mesh = jax.sharding.Mesh(jax.devices()[:4], ("x",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    target = jax.ShapeDtypeStruct((4,), np.int64, sharding=sharding)
    checkpoint = jaxckpt.Checkpoint(value=target)
    try:
        checkpoint.read(path)
    except ValueError as error:
        assert "value" in str(error)
        assert "int64" in str(error)
        assert checkpoint.value is target
    else:
        np.testing.assert_array_equal(np.asarray(checkpoint.value), wide, strict=True)


SHARDINGS = {
    "one": lambda mesh: jax.sharding.SingleDeviceSharding(jax.devices()[-1]),
    "rows": lambda mesh: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")),
    "columns": lambda mesh: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x")),
    "both": lambda mesh: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y")),
    "replicated": lambda mesh: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    "partly": lambda mesh: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("y")),
    "together": lambda mesh: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("x", "y"))),
}


def mesh() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))


@quiet_orbax
@pytest.mark.parametrize("saved", SHARDINGS)
@pytest.mark.parametrize("large", [False, True])
def test_any_sharding_to_any_other(saved: str, large: bool, tmp_path: Path) -> None:
    shape = (64, 1024) if large else (8, 4)
    options = jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(chunk_byte_size=5000))
    for dtype in (np.dtype(np.float32), np.dtype(ml_dtypes.int4)):
        value = any_bits(dtype, shape, 5)
        on_devices = jax.device_put(jnp.asarray(value), SHARDINGS[saved](mesh()))
        empty = jax.device_put(jnp.zeros((0, 4)), SHARDINGS["one"](mesh()))
        path = jaxckpt.Checkpoint(value=on_devices, empty=empty).write(tmp_path / "c", options)
        for wanted in SHARDINGS:
            sharding = SHARDINGS[wanted](mesh())
            for target in (
                jax.ShapeDtypeStruct(shape, dtype, sharding=sharding),
                jax.device_put(jnp.zeros(shape, dtype), sharding),
            ):
                checkpoint = jaxckpt.Checkpoint(value=target, empty=empty)
                checkpoint.read(path).assert_consumed()
                assert checkpoint.value.sharding == sharding
                assert np.asarray(checkpoint.value).tobytes() == value.tobytes()
        assert np.asarray(v1.load(path)["value"]).tobytes() == value.tobytes()


@pytest.mark.slow
def test_another_number_of_devices(tmp_path: Path) -> None:
    """Saved on eight devices, restored on two and on three: into shardings, without targets, and by plain Orbax."""
    devices = jax.devices()
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, ("x",)), jax.sharding.PartitionSpec("x"))
    value = any_bits(np.dtype(np.float32), (48, 1000), 6)
    path = jaxckpt.Checkpoint(value=jax.device_put(value, sharding), n=3).write(tmp_path / "c")
    np.save(tmp_path / "expected.npy", value.view(np.uint32))
    code = """
        import sys, jax, jax.numpy as jnp, numpy as np, jaxckpt
        from orbax.checkpoint import v1
        path, expected = sys.argv[1], np.load(sys.argv[2])
        sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices(), ("x",)), jax.sharding.PartitionSpec("x"))
        for target in (jax.device_put(jnp.zeros((48, 1000)), sharding), jnp.zeros((48, 1000)), np.zeros((48, 1000), np.float32)):
            checkpoint = jaxckpt.Checkpoint(value=target, n=0)
            checkpoint.read(path).assert_consumed()
            assert (np.asarray(checkpoint.value).view(np.uint32) == expected).all()
            assert type(checkpoint.value) is type(target) and getattr(checkpoint.value, "sharding", 0) == getattr(target, "sharding", 0)
        assert (jaxckpt.load_variable(path, "value").view(np.uint32) == expected).all()
        loaded = v1.load(path, {"value": jax.ShapeDtypeStruct((48, 1000), np.float32, sharding=sharding), "n": 0})
        assert (np.asarray(loaded["value"]).view(np.uint32) == expected).all()
        print(len(jax.devices()))
        """
    import os

    for count in (2, 3):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        arguments = [sys.executable, "-c", textwrap.dedent(code), path, str(tmp_path / "expected.npy")]
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout.strip()) == (0, str(count)), done.stderr


def test_metadata_says_what_was_stored(tmp_path: Path) -> None:
    path = Path(jaxckpt.Checkpoint(value={"b": b"12", "n": np.float32(1)}).write(tmp_path / "c"))
    document = json.loads((path / "_METADATA").read_text())
    assert document["custom_metadata"]["jaxckpt"]["kinds"] == {"value.b": "bytes", "value.n": "numpy"}
