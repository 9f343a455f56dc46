"""Makes the golden checkpoints: what released versions wrote, which every later version has to restore.

    python tests/golden/make.py            # those of the versions that are installed, as far as they are not there
    python tests/golden/make.py --list     # their names

A golden checkpoint lies in ``tests/golden/<writer>-<version>/<name>`` and is never made again: a new version that writes something
new gets a directory of its own, from the tag of that version. What is in them is not stored anywhere else: tests compute it with
`VALUES`, so the functions here must keep returning the same values for ever. They use arithmetic on integers only, no generator of
random numbers, whose streams may change. A new kind of value gets a new function.

Git keeps the files byte for byte (``.gitattributes`` in this directory).
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# This comes before JAX is imported; tests have their own settings.
if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax import nnx

HERE = Path(__file__).parent
NUMPY_DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
ML_DTYPES = ["bfloat16", "int2", "int4", "float8_e4m3fn", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2"]


class Moments(NamedTuple):
    """A tuple with names, as optax states are."""

    count: Any
    mu: Any
    nu: Any


class Position:
    """An object that says its state as text or bytes."""

    def __init__(self, state: str | bytes) -> None:
        self.state = state

    def serialize(self) -> str | bytes:
        return self.state

    def deserialize(self, value: str | bytes) -> None:
        self.state = value


class Iterator:
    """An object that says its state as a JSON value, as data iterators do."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def get_state(self) -> Any:
        return self.state

    def set_state(self, state: Any) -> None:
        self.state = state


def words(count: int, seed: int) -> np.ndarray:
    """`count` unsigned 64-bit words with every bit in use: the finalizer of SplitMix64, on count + seed."""
    with np.errstate(over="ignore"):
        x = (np.arange(count, dtype=np.uint64) + np.uint64(seed * 1000 + 1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An array of arbitrary bits, nan payloads among them; of the values that there are for types that do not use all bits."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    count = int(np.prod(shape, dtype=int))
    if dtype == "bool":
        return (words(count, seed) % np.uint64(2) == 1).reshape(shape)
    if dtype in ("int2", "int4"):
        return ((words(count, seed) % np.uint64(4)).astype(np.int32) - 2).reshape(shape).astype(kind)
    raw = words(count * 2, seed).astype("<u8").tobytes()[: count * kind.itemsize]
    return np.frombuffer(raw, kind).reshape(shape).copy()


def on_device(dtype: str, shape: tuple[int, ...], seed: int) -> jax.Array:
    """The same as a jax.Array."""
    return jnp.asarray(array(dtype, shape, seed))


def sharded(dtype: str, shape: tuple[int, ...], seed: int, spec: tuple[str | None, ...]) -> jax.Array:
    """The same over a mesh of 2 x 2 devices, with axes x and y."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    return jax.device_put(
        array(dtype, shape, seed), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    )


def leaf_kinds() -> dict[str, Any]:
    """Every kind of leaf and container that jaxckpt stores."""
    return {
        "numpy": {dtype: array(dtype, (3, 2), 1) for dtype in (*NUMPY_DTYPES, *ML_DTYPES)},
        "jax": {dtype: on_device(dtype, (2, 3), 2) for dtype in _on_device()},
        "numpy_scalars": {dtype: array(dtype, (), 3)[()] for dtype in NUMPY_DTYPES},
        "empty_arrays": [np.zeros((0,), np.float64), np.zeros((3, 0, 2), np.int8), jnp.zeros((0, 4), jnp.bfloat16)],
        "no_dimensions": (np.array(-0.0), jnp.asarray(7, jnp.int32)),
        "fortran": np.asfortranarray(array("int32", (5, 4), 4)),
        "python": [0, -(2**63), 2**63 - 1, 2**64 - 1, True, False, -0.0, 1e-320, float("inf"), complex(-0.0, 2.5)],
        "texts": ["", "plain", "ünï ✓ 🦀", "a\0b\0", "two\nlines"],
        "bytes": [b"", b"\0\xff\0", bytes(range(256))],
        "nothing": [None, {}, [], ()],
        "keys": {
            "threefry": jax.random.key(11, impl="threefry2x32"),
            "rbg": jax.random.key(12, impl="rbg"),
            "several": jax.random.wrap_key_data(on_device("uint32", (2, 3, 2), 5), impl="threefry2x32"),
            "raw": on_device("uint32", (2,), 6),
        },
        "moments": Moments(
            on_device("int32", (), 7), {"w": on_device("float32", (4,), 8)}, [array("float32", (4,), 9)]
        ),
        "odd names": {"a/b": 1, "a.b": 2, "~": 3, "": 4, "é🦀": 5, "..": 6, "0": 7, " ": 8},
        "nested": {"a": [{"b": ({"c": array("uint8", (3,), 10)},)}]},
        "position": Position("line 17"),
        "cursor": Position(b"\x00\x01cursor"),
        "iterator": Iterator({"epoch": 3, "order": [2, 0, 1], "seed": None}),
    }


def _on_device() -> list[str]:
    return [*(dtype for dtype in NUMPY_DTYPES if np.dtype(dtype).itemsize < 8), "complex64", *ML_DTYPES]


def model() -> dict[str, Any]:
    """What training saves: sharded and replicated arrays, small and larger ones, a key, a step."""
    return {
        "params": {
            "embed": sharded("float32", (16, 20), 20, ("x", "y")),
            "layers": [
                {
                    "kernel": sharded("bfloat16", (8, 32), 21 + n, (None, "y")),
                    "bias": on_device("float32", (32,), 25 + n),
                }
                for n in range(2)
            ],
            "scale": sharded("float32", (8,), 30, ()),
            "rows": sharded("int8", (12, 5), 31, (("x", "y"),)),
        },
        "table": array("float64", (200,), 32),
        "large": on_device("float32", (25, 20), 33),
        "rng": jax.random.key(34),
        "step": 1234,
        "rate": 0.001,
        "done": False,
        "run": "goldén",
    }


def small_model() -> dict[str, Any]:
    """The same with fewer leaves, of which Orbax without OCDBT makes many files, and without what its older interface refuses."""
    return {
        "params": {
            "embed": sharded("float32", (16, 20), 40, ("x", "y")),
            "layers": [{"kernel": sharded("bfloat16", (8, 32), 41, (None, "y"))}],
        },
        "table": array("int64", (200,), 46),
        "step": 1234,
    }


def compressible() -> dict[str, Any]:
    """What zstd shrinks, in several chunks."""
    return {"ramp": jnp.arange(3000, dtype=jnp.int32), "zeros": np.zeros((50, 60), np.float32), "few": np.arange(5) % 2}


def chunks() -> dict[str, Any]:
    """Arrays of several chunks, with and without a rest, in one and more dimensions."""
    return {
        "line": array("float32", (500,), 50),
        "plane": on_device("uint16", (17, 41), 51),
        "cube": sharded("float32", (8, 6, 10), 52, ("x", None, "y")),
        "one": array("float64", (1,), 53),
    }


class Net(nnx.Module):
    """A sequence without holes, one with a hole (a function has no state), and a random stream."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(1)
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.layers = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, use_bias=False, rngs=rngs))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def nnx_program() -> dict[str, Any]:
    """What an NNX program saves: its model, and an optimizer whose state begins with a hole (clipping has none)."""
    net = Net()
    optimizer = nnx.Optimizer(net, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), wrt=nnx.Param)
    for seed, (_, variable) in enumerate(
        [*nnx.to_flat_state(nnx.state(net)), *nnx.to_flat_state(nnx.state(optimizer))], 60
    ):
        value = variable.get_value()
        if not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            variable.set_value(on_device(value.dtype.name, value.shape, seed))
    return {"model": net, "optimizer": optimizer}


VALUES: dict[str, Callable[[], dict[str, Any]]] = {
    "leaf_kinds": leaf_kinds,
    "model": model,
    "small_model": small_model,
    "compressible": compressible,
    "chunks": chunks,
    "nnx": nnx_program,
}
SAVE_COUNTER = 7
# What plain Orbax writes: the format of arrays, whether they share files (OCDBT), and compression. Orbax's defaults are the first
# of each.
V0 = [
    *("v0_zarr2_ocdbt_zstd", "v0_zarr3_ocdbt", "v0_zarr2_files_zstd", "v0_zarr2_files", "v0_zarr3_files_zstd"),
    *("v0_standard", "v0_manager"),
]
V1 = ["v1_zarr3_ocdbt_zstd", "v1_zarr3_ocdbt", "v1_zarr2_ocdbt_zstd", "v1_zarr2_files", "v1_zarr3_files"]


def _options(name: str) -> Any:
    """The options of one of jaxckpt's, or all their names for ""."""
    import jaxckpt

    kinds: dict[str, dict[str, Any]] = {
        "leaf_kinds": {},
        "model": {},
        # Data files begin with their names. Those of the versions above were sampled.
        "model_named_files": {},
        # The save counter is not in the tree any more.
        "model_counter_beside": {},
        "model_async_small_files": {"enable_async": True, "orbax": jaxckpt.OrbaxSettings(target_data_file_size=1000)},
        "chunks": {"orbax": jaxckpt.OrbaxSettings(chunk_byte_size=500)},
        "chunks_zstd": {"orbax": jaxckpt.OrbaxSettings(chunk_byte_size=500, compression="zstd")},
        "chunks_files": {"experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(500)},
        "compressible_zstd": {"orbax": jaxckpt.OrbaxSettings(compression="zstd", chunk_byte_size=3000)},
        "compressible_zstd_files": {
            "experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(5000),
            "orbax": jaxckpt.OrbaxSettings(compression="zstd"),
        },
        # Containers of NNX objects were described as sequences, also those with holes.
        "nnx_as_sequences": {},
        # They are described as dicts now.
        "nnx": {},
    }
    return kinds if not name else jaxckpt.CheckpointOptions(**kinds[name])


def values_of(name: str) -> str:
    """Which of `VALUES` is in the golden checkpoint of this name."""
    if name.startswith(("v0", "v1")):
        return "model" if name.startswith("v1") and "ocdbt" in name else "small_model"
    return next(values for values in sorted(VALUES, key=len, reverse=True) if name.startswith(values))


def _jaxckpt(name: str, path: Path) -> None:
    import jaxckpt

    checkpoint = jaxckpt.Checkpoint(**VALUES[values_of(name)]())
    checkpoint.save_counter = SAVE_COUNTER
    checkpoint.write(path, _options(name))
    checkpoint.close()


def _v0(name: str, path: Path) -> None:
    import orbax.checkpoint as ocp

    value = VALUES[values_of(name)]()
    if name == "v0_standard":
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, value)
        return
    # Below the step, the tree is in a directory called "default".
    if name == "v0_manager":
        with ocp.CheckpointManager(path) as manager:
            manager.save(5, args=ocp.args.StandardSave(value))
        return
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt="ocdbt" in name, use_zarr3="zarr3" in name, use_compression="zstd" in name
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(value))


def _v1(name: str, path: Path) -> None:
    from orbax.checkpoint import v1

    context = v1.Context()
    context.array.saving.use_ocdbt = "ocdbt" in name
    context.array.saving.use_zarr3 = "zarr3" in name
    context.array.saving.use_compression = "zstd" in name
    with context:
        v1.save(path, VALUES[values_of(name)]())


def goldens() -> dict[Path, Callable[[str, Path], None]]:
    """What the installed versions write, by path."""
    import orbax.checkpoint as ocp

    import jaxckpt

    orbax = HERE / f"orbax-{ocp.__version__}"
    own = HERE / f"jaxckpt-{jaxckpt.__version__}"
    return {
        **{own / name: _jaxckpt for name in _options("")},
        **{orbax / name: _v0 for name in V0},
        **{orbax / name: _v1 for name in V1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the golden checkpoints that are not there.")
    parser.add_argument("--list", action="store_true", help="only say which the installed versions make")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    for path, write in goldens().items():
        state = "there" if path.exists() else "missing"
        if state == "missing" and not arguments.list:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path.name, path)
            state = "made"
        print(f"{state}  {path.relative_to(HERE)}")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
