"""Values of every kind of leaf, the same on every process of a job, and how they compare."""

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Divisible by the number of devices of every job and mesh here.
SIDE = 24
P = PartitionSpec
LAYOUTS: dict[str, tuple[str, PartitionSpec]] = {
    "rows": ("line", P("x")),
    "columns": ("line", P(None, "x")),
    "grid": ("grid", P("x", "y")),
    "both": ("grid", P(("y", "x"))),
    "partial": ("grid", P("x")),
    # Each box is on one device of every process.
    "crossed": ("crossed", P("x")),
    "swapped": ("crossed", P("y", "x")),
    "shuffled": ("shuffled", P("x")),
    "replicated": ("line", P()),
    # Not on process 0, where there are enough others.
    "some": ("some", P("x")),
}
DTYPES = [
    *("bool", "int8", "int32", "uint8", "uint32", "float16", "float32", "complex64"),
    *(ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.float8_e4m3fn),
]


def mesh(kind: str) -> Mesh:
    devices = np.asarray(jax.devices())
    n = devices.size
    match kind:
        case "grid":
            return Mesh(devices.reshape(n // 2, 2), ("x", "y"))
        case "crossed":
            return Mesh(devices.reshape(n // 2, 2).T, ("x", "y"))
        case "shuffled":
            return Mesh(devices[np.random.default_rng(5).permutation(n)], ("x",))
        case "some":
            return Mesh(devices[n // 3 :] if n >= 6 and n % 3 == 0 else devices, ("x",))
        case _:
            return Mesh(devices, ("x",))


def sharding(layout: str) -> NamedSharding:
    kind, spec = LAYOUTS[layout]
    return NamedSharding(mesh(kind), spec)


def full(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Random bits (of valid ones: bool and sub-byte types do not use all of a byte)."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b" or dtype.name == "int4":
        return rng.integers(0, 2 if dtype.kind == "b" else 8, shape).astype(np.float32).astype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.frombuffer(rng.bytes(size), np.uint8).view(dtype).reshape(shape).copy()


def spread(array: np.ndarray, where: Any) -> jax.Array:
    """`array` on the devices of a sharding, or of a layout."""
    where = sharding(where) if isinstance(where, str) else where
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index], dtype=array.dtype)


class Iterator:
    """A data iterator: an object with a state of its own."""

    def __init__(self, position: int = 0) -> None:
        self.position = position

    def get_state(self) -> Any:
        return {"position": self.position, "names": ["a", "b"]}

    def set_state(self, state: Any) -> None:
        self.position = state["position"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Iterator) and other.position == self.position

    __hash__ = None  # type: ignore[assignment]


class Serial(Iterator):
    """An object that serializes to bytes."""

    get_state = None  # type: ignore[assignment]
    set_state = None  # type: ignore[assignment]

    def serialize(self) -> bytes:
        return json.dumps(self.position).encode()

    def deserialize(self, value: bytes) -> None:
        self.position = json.loads(value)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    step: Any
    params: Any
    opt_state: Any


def arrays() -> dict[str, Any]:
    """The arrays on the devices of several processes, as numpy arrays; the first key says where they lie."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for seed, layout in enumerate(LAYOUTS):
        found[layout] = {"w": full((SIDE, SIDE), seed=seed), "cube": full((SIDE, SIDE, 3), np.int32, seed)}
    for layout in ("rows", "replicated", "crossed"):
        for dtype in DTYPES:
            found[layout][np.dtype(dtype).name] = full((SIDE, 2), dtype, 7)
    for layout in ("rows", "columns", "shuffled", "crossed", "replicated"):
        # This one travels alone, and has several chunks.
        found[layout]["large"] = full((480, 240), seed=9)
    found["replicated"] |= {"scalar": full((), seed=11), "count": np.int32(7)[...], "vector": full((5,), seed=12)}
    found["rows"]["empty"] = np.zeros((0, 5), np.float32)
    found["columns"]["empty"] = np.zeros((3, 0), np.float32)
    found["replicated"]["empty"] = np.zeros((0,), np.int32)
    return found


def host_values() -> dict[str, Any]:
    """What lies in the memory of one host."""
    return {
        "numpy": {
            "plain": full((3, 5), np.float64, 20),
            "fortran": np.asfortranarray(full((4, 6), np.int64, 21)),
            "strided": full((8, 9), seed=22)[::2, ::-3],
            "swapped": full((5,), np.int32, 23).astype(">i4"),
            "large": full((300, 200), np.float64, 24),
            "bfloat16": full((4,), ml_dtypes.bfloat16, 25),
            "int4": full((4,), ml_dtypes.int4, 26),
            "bool": full((4,), "bool", 27),
            "empty": np.zeros((2, 0, 3), np.uint16),
            "zero_d": np.full((), 2.5),
            "scalar": np.float32(1.25),
            "int64": np.int64(-5),
            "flag": np.bool_(True),
        },
        "python": {
            "int": -3,
            "large": 2**63 + 11,
            "float": -0.0,
            "complex": 1 - 2j,
            "bool": True,
            "str": "größer" * 50,
            "no_str": "",
            "bytes": bytes(range(256)) * 3,
            "no_bytes": b"",
        },
        "nothing": {"none": None, "dict": {}, "list": [], "tuple": ()},
        "sequence": [1, (2.5, "three"), [full((2,), seed=28)]],
    }


@functools.cache
def keys(where: Any, seed: int, impl: str = "threefry2x32", count: int | None = SIDE) -> jax.Array:
    """PRNG keys on the devices of all processes."""

    def make() -> jax.Array:
        key = jax.random.key(seed, impl=impl)
        return key if count is None else jax.random.split(key, count)

    return jax.jit(make, out_shardings=where)()


@functools.cache
def values() -> dict[str, Any]:
    """One tree of everything. Not to be changed."""
    local = Mesh(np.asarray(jax.local_devices()), ("x",))
    where = {layout: sharding(layout) for layout in LAYOUTS}
    return {
        "arrays": {
            layout: {name: spread(array, where[layout]) for name, array in group.items()}
            for layout, group in arrays().items()
        },
        "keys": {
            **{layout: keys(where[layout], 7) for layout in ("rows", "replicated", "crossed")},
            "one": keys(where["replicated"], 8, "rbg", None),
            "local": jax.random.key(3),
            "locals": jax.random.split(jax.random.key(4, impl="rbg"), (2, 3)),
        },
        "local": {
            "one": jnp.arange(4),
            "bfloat16": jnp.asarray(full((3, 2), ml_dtypes.bfloat16, 30)),
            "sharded": jax.device_put(full((4, 6), seed=31), NamedSharding(local, P("x"))),
            "scalar": jnp.float32(3.5),
        },
        **host_values(),
        "iterator": Iterator(12),
        "serial": Serial(13),
        # Importing these libraries takes seconds in every process; jobs of three have to do.
        **(_trained(where) if jax.process_count() == 3 else {}),
    }


def _trained(where: dict[str, Any]) -> dict[str, Any]:
    import optax
    from flax import nnx

    params = {"kernel": spread(full((SIDE, SIDE), seed=40), "rows"), "bias": spread(full((SIDE,), seed=41), "rows")}
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    shardings = jax.tree.map(
        lambda leaf: where["rows"] if leaf.ndim else where["replicated"], jax.eval_shape(optimizer.init, params)
    )
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    layer = nnx.Linear(SIDE, SIDE, rngs=nnx.Rngs(0))
    layer.kernel.value = spread(full((SIDE, SIDE), seed=42), "grid")
    return {"state": TrainState(np.int32(5), params, opt_state), "layer": layer}


def is_module(value: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


def is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def blank(tree: Any, *, abstract: bool) -> Any:
    """A target like `tree`, with other values."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            if abstract:
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            if is_key(leaf) and leaf.is_fully_addressable:
                other = jax.random.split(jax.random.key(99, impl=str(jax.random.key_impl(leaf))), leaf.shape)
                return jax.device_put(other, leaf.sharding) if len(leaf.sharding.device_set) > 1 else other
            if is_key(leaf):
                impl = str(jax.random.key_impl(leaf))
                return keys(leaf.sharding, 99, impl, leaf.size if leaf.ndim else None)
            return spread(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        if isinstance(leaf, np.ndarray):
            return np.zeros_like(leaf)
        if isinstance(leaf, Iterator):
            return type(leaf)()
        return type(leaf)(0) if isinstance(leaf, np.generic) else type(leaf)()

    def whole(value: Any) -> Any:
        if is_module(value):
            layer = type(value)(SIDE, SIDE, rngs=sys.modules["flax.nnx"].Rngs(1))
            layer.kernel.value = spread(np.zeros((SIDE, SIDE), np.float32), "grid")
            return layer
        return jax.tree.map(one, value)

    return {name: whole(value) for name, value in tree.items()}


def assert_same(found: Any, expected: Any) -> None:
    """Fails unless both trees have the same leaves, bit for bit, on the same devices; names the leaves that differ."""
    assert found.keys() == expected.keys()
    found, expected = (
        {name: _leaves_of(value) if is_module(value) else value for name, value in tree.items()}
        for tree in (found, expected)
    )
    left, left_tree = jax.tree_util.tree_flatten_with_path(found)
    right, right_tree = jax.tree_util.tree_flatten_with_path(expected)
    assert left_tree == right_tree, (left_tree, right_tree)
    different = [
        f"{jax.tree_util.keystr(path)}: {one!r} instead of {other!r}"
        for (path, one), (_, other) in zip(left, right, strict=True)
        if not same(one, other)
    ]
    assert not different, "\n".join(different[:5])


def _leaves_of(module: Any) -> Any:
    nnx = sys.modules["flax.nnx"]
    return nnx.to_pure_dict(nnx.state(module))


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, jax.Array):
        if (
            left.dtype != right.dtype
            or left.shape != right.shape
            or not left.sharding.is_equivalent_to(right.sharding, left.ndim)
        ):
            return False
        pairs = zip(left.addressable_shards, right.addressable_shards, strict=True)
        return all(a.index == b.index and bits(a.data) == bits(b.data) for a, b in pairs)
    if isinstance(left, (np.ndarray, np.generic)):
        return left.dtype.newbyteorder("=") == right.dtype.newbyteorder("=") and bits(left) == bits(right)
    if isinstance(left, (float, complex)):
        return bits(np.asarray(left)) == bits(np.asarray(right))
    return bool(left == right)


def bits(array: Any) -> tuple[Any, ...]:
    if is_key(array):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    array = array.astype(array.dtype.newbyteorder("="))
    return array.shape, array.dtype.name, array.tobytes()
