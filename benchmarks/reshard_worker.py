"""What the processes of a job measure for `benchmarks.reshard`: the bytes of files that a save writes and a restore reads."""

import gc
import logging
import resource
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxckpt

_SPECS = {"rows": ("x",), "columns": (None, "x"), "replicated": ()}


def sharding(layout: str) -> NamedSharding:
    """Returns the sharding of a layout over all devices of the job."""
    return NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec(*_SPECS[layout]))


def _part(index: Any, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Returns a part of an array: values that compress as little as weights do, and that every process can compute for its own part."""
    first, second = (
        np.arange(*span.indices(extent), dtype=np.uint32) for span, extent in zip(index, shape, strict=True)
    )
    mixed = (first[:, None] * np.uint32(2654435761) ^ second[None] * np.uint32(2246822519)) + np.uint32(seed)
    return mixed.astype(np.float32)


def _state(layout: str, shapes: dict[str, tuple[int, int]]) -> dict[str, jax.Array]:
    where = sharding(layout)
    make = jax.make_array_from_callback
    return {
        name: make(shape, where, lambda index, shape=shape, seed=seed: _part(index, shape, seed))
        for seed, (name, shape) in enumerate(shapes.items())
    }


class _Measured:
    """The bytes that files took, the seconds, and the memory, of a block."""

    def __enter__(self) -> "_Measured":
        gc.collect()
        _reset_peak()
        self._io, self._rss = _io(), _status("VmRSS")
        self._cpu = _cpu_secs()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        secs, after = time.perf_counter() - self._began, _io()
        self.values = {
            "secs": secs,
            "cpu_secs": _cpu_secs() - self._cpu,
            "read": after["rchar"] - self._io["rchar"],
            "written": after["wchar"] - self._io["wchar"],
            "peak": max(0.0, _status("VmHWM") - self._rss),
        }


def _io() -> dict[str, int]:
    with open("/proc/self/io", encoding="ascii") as file:
        return {name: int(value) for name, value in (line.split(": ") for line in file)}


def _status(name: str) -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(float(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _cpu_secs() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class _Jaxckpt:
    def __init__(self, options: dict[str, Any]) -> None:
        once = options.get("once")
        self._options = jaxckpt.CheckpointOptions(
            options.get("io"), orbax=jaxckpt.OrbaxSettings(read_once_per_job=once, timeout_secs=300)
        )

    def save(self, path: str, state: dict[str, jax.Array]) -> None:
        jaxckpt.Checkpoint(state=state).write(path, self._options)

    def restore(self, path: str, targets: dict[str, Any]) -> Any:
        checkpoint = jaxckpt.Checkpoint(state=targets)
        checkpoint.read(path, self._options).assert_consumed()
        return checkpoint.state


class _OrbaxV0:
    def __init__(self, options: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp
        self._checkpointer = ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False)
        )

    def save(self, path: str, state: dict[str, jax.Array]) -> None:
        self._checkpointer.save(path, args=self._ocp.args.PyTreeSave(state))

    def restore(self, path: str, targets: dict[str, Any]) -> Any:
        arguments = self._ocp.checkpoint_utils.construct_restore_args(targets)
        return self._checkpointer.restore(path, args=self._ocp.args.PyTreeRestore(targets, arguments))


class _OrbaxV1:
    def __init__(self, options: dict[str, Any]) -> None:
        from orbax.checkpoint import v1

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._v1 = v1
        self._context = v1.Context()
        self._context.array.saving.use_compression = False

    def save(self, path: str, state: dict[str, jax.Array]) -> None:
        with self._context:
            self._v1.save(path, state)

    def restore(self, path: str, targets: dict[str, Any]) -> Any:
        with self._context:
            return self._v1.load(path, targets)


CONTENDERS = {"jaxckpt": _Jaxckpt, "orbax-v0": _OrbaxV0, "orbax-v1": _OrbaxV1}


def save(
    name: str, path: str, layout: str, shapes: dict[str, tuple[int, int]], options: dict[str, Any]
) -> dict[str, float]:
    """Saves, and returns what it took."""
    state = jax.block_until_ready(_state(layout, shapes))
    contender = CONTENDERS[name](options)
    with _Measured() as measured:
        contender.save(path, state)
    return measured.values


def restore(
    name: str, path: str, layout: str, shapes: dict[str, tuple[int, int]], options: dict[str, Any]
) -> dict[str, float]:
    """Restores, compares with what was saved, and returns what it took."""
    targets = {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding(layout)) for name, shape in shapes.items()
    }
    contender = CONTENDERS[name](options)
    with _Measured() as measured:
        restored = jax.block_until_ready(contender.restore(path, targets))
    # Part by part: memory may not hold a second array that is as large.
    for seed, (leaf, shape) in enumerate(shapes.items()):
        for found in restored[leaf].addressable_shards:
            right = _part(found.index, shape, seed)
            assert np.array_equal(np.asarray(found.data), right), f"{name} restored {leaf} wrong"
    return measured.values


def many_leaves(path: str, count: int, per_process: int) -> tuple[dict[str, float], dict[str, float]]:
    """Saves and restores many small arrays that are divided over all devices, or that are on one device of a single process."""
    where = sharding("rows")
    value = np.zeros((jax.device_count() * per_process,), np.float32)
    make = jax.make_array_from_callback
    state = {f"leaf{number}": make(value.shape, where, lambda index: value[index]) for number in range(count)}
    targets = {name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=where) for name in state}
    contender = _Jaxckpt({})
    with _Measured() as saved:
        contender.save(path, state)
    with _Measured() as restored:
        jax.block_until_ready(contender.restore(path, targets))
    return saved.values, restored.values
