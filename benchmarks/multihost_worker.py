"""What the processes of a job measure: how a state that lies on the devices of all of them is saved and restored.

The functions here are run on every process at once by `benchmarks.multihost`; what they return is put together there.
"""

import contextlib
import ctypes
import gc
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import states, worker
from benchmarks.contenders import Contender, Jaxckpt, Wait

_LAYERS = 24
_COLUMNS = 1024
_state: states.State = {}
_made: dict[str, Contender] = {}
# The number of messages that this process has sent.
_sent = [0]


class _Io(Jaxckpt):
    """jaxckpt, with the process that does the file access."""

    process: int | None = None

    def __init__(self, state: states.State) -> None:
        super().__init__(state)
        import jaxckpt

        # One value, because finding one of thousands takes time.
        self._checkpoint = jaxckpt.Checkpoint(model=state)
        self._sync = jaxckpt.CheckpointOptions(experimental_io_device=self.process)
        self._options = jaxckpt.CheckpointOptions(experimental_io_device=self.process, enable_async=True)

    def save(self, path: str) -> None:
        self._checkpoint.write(path, self._sync)

    def restore(self, path: str) -> Any:
        import jaxckpt

        targets = jaxckpt.Checkpoint(model=states.targets(self.state))
        targets.read(path, self._sync).assert_existing_objects_matched()
        return jax.block_until_ready([targets.model[name] for name in self.state])


class _Orbax(Contender):
    """Orbax's v0 `AsyncCheckpointer`: every process writes its own shards into a directory that all of them see."""

    def __init__(self, state: states.State) -> None:
        super().__init__(state)
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False)
        )

    def save(self, path: str) -> None:
        self.start(path)()

    def start(self, path: str) -> Wait:
        self._checkpointer.save(path, args=self._ocp.args.PyTreeSave(self.state))
        return self._checkpointer.wait_until_finished  # type: ignore[no-any-return]

    def restore(self, path: str) -> Any:
        targets = states.targets(self.state)
        arguments = self._ocp.checkpoint_utils.construct_restore_args(targets)
        restored = self._checkpointer.restore(path, args=self._ocp.args.PyTreeRestore(targets, arguments))
        return jax.block_until_ready([restored[name] for name in self.state])


class _Gather(Contender):
    """What people do without an IO process: `process_allgather` to numpy, Orbax on process 0, and `broadcast_one_to_all` back."""

    def __init__(self, state: states.State) -> None:
        super().__init__(state)
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp
        self._me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="gather"
        )
        self._checkpointer = None
        if self._me == 0:
            handler = ocp.PyTreeCheckpointHandler(
                use_ocdbt=True, use_zarr3=True, use_compression=False, multiprocessing_options=alone
            )
            self._checkpointer = ocp.AsyncCheckpointer(handler, multiprocessing_options=alone)

    def save(self, path: str) -> None:
        self.start(path)()

    def start(self, path: str) -> Wait:
        gathered = {
            name: multihost_utils.process_allgather(leaf, tiled=True) if jax.process_count() > 1 else np.asarray(leaf)
            for name, leaf in self.state.items()
        }
        if self._checkpointer is None:
            return lambda: None
        self._checkpointer.save(path, args=self._ocp.args.PyTreeSave(gathered))
        return self._checkpointer.wait_until_finished  # type: ignore[no-any-return]

    def restore(self, path: str) -> Any:
        found = {}
        if self._checkpointer is not None:
            found = self._checkpointer.restore(path, args=self._ocp.args.PyTreeRestore())
        out = []
        for name, leaf in self.state.items():
            mine = found.pop(name) if found else np.zeros(leaf.shape, leaf.dtype)
            if jax.process_count() > 1:
                mine = np.asarray(multihost_utils.broadcast_one_to_all(mine))
            out.append(jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index, mine=mine: mine[index]))
        return jax.block_until_ready(out)


def _make(name: str, state: states.State) -> Contender:
    if name == "orbax":
        return _Orbax(state)
    if name == "gather":
        return _Gather(state)
    made = type("Io", (_Io,), {"process": int(name.removeprefix("io-")) if name.startswith("io-") else None})
    contender: Contender = made(state)
    return contender


def fill(nbytes: float, parts: int) -> int:
    """Makes the state: matrices divided by rows or by columns, and a vector beside each, of which every process has a copy.

    Args:
      nbytes: of the whole state, roughly.
      parts: number of processes that shapes have to be divisible by, also where there is only one.

    Returns:
      The bytes of this process's part.
    """
    _made.clear()
    _state.clear()
    _state.update(_new(nbytes, parts))
    return _part_bytes(_state)


def fill_leaves(count: int, parts: int) -> int:
    """Makes a state of many leaves of 8 floats a process, instead."""
    _made.clear()
    _state.clear()
    by_rows = NamedSharding(_mesh(), PartitionSpec("x"))
    values = np.arange(8 * parts, dtype=np.float32)
    _state.update({f"leaf_{number:05d}": _global(values + np.float32(number), by_rows) for number in range(count)})
    return _part_bytes(_state)


def _new(nbytes: float, parts: int) -> states.State:
    mesh = _mesh()
    columns = _COLUMNS // parts * parts
    rows = max(1, round(nbytes / 4 / columns / _LAYERS / parts)) * parts
    values = np.random.default_rng(0).random((rows, columns), dtype=np.float32)
    made: states.State = {}
    for layer in range(_LAYERS):
        spec = PartitionSpec(None, "x") if layer % 4 == 3 else PartitionSpec("x")
        values[0, 0] = layer
        made[f"layer_{layer:02d}"] = _global(values, NamedSharding(mesh, spec))
        made[f"bias_{layer:02d}"] = _global(values[0].copy(), NamedSharding(mesh, PartitionSpec()))
    return made


def _mesh() -> Any:
    return jax.make_mesh((jax.device_count(),), ("x",))


def _global(values: np.ndarray, sharding: Any) -> jax.Array:
    # A copy on the device: memory that JAX owns, as the result of a computation does.
    return jax.block_until_ready(
        jax.make_array_from_callback(values.shape, sharding, lambda index: np.array(values[index], order="C"))
    )


def _part_bytes(state: states.State) -> int:
    return sum(int(shard.data.nbytes) for leaf in state.values() for shard in leaf.addressable_shards)


def warm(name: str, path: str) -> None:
    """Saves and restores something small: imports, event loops and thread pools are paid once a program, not once a save."""
    contender = _make(name, _new(1e5, jax.process_count()))
    for number in range(2):
        contender.save(f"{path}{number}")
    contender.start(path + "a")()
    contender.restore(path + "0")


def save(name: str, path: str) -> dict[str, float]:
    """Saves; returns seconds and the rise of memory."""
    contender = _contender(name)
    return _measured("save", lambda: contender.save(path))


def start(name: str, path: str) -> dict[str, float]:
    """Saves asynchronously; returns seconds of the caller, seconds until it was committed, and the rise of memory."""
    contender = _contender(name)
    blocked: list[float] = []

    def both() -> None:
        started = time.perf_counter()
        wait = contender.start(path)
        blocked.append(time.perf_counter() - started)
        wait()

    return {**_measured("async", both), "blocked_secs": blocked[0]}


def restore(name: str, path: str, what: str = "restore") -> dict[str, float]:
    """Restores, and compares with what was saved; returns seconds and the rise of memory, under names that begin with `what`."""
    contender = _contender(name)
    found: list[Any] = []
    result = _measured(what, lambda: found.extend(contender.restore(path)))
    for (leaf_name, leaf), new in zip(_state.items(), found, strict=True):
        for one, other in zip(leaf.addressable_shards, new.addressable_shards, strict=True):
            if not np.array_equal(np.asarray(one.data), np.asarray(other.data)):
                raise AssertionError(f"{name} restored other values than were saved: {leaf_name}")
    return result


def forget() -> None:
    """Lets go of what contenders keep, and of what a save has left to the allocator."""
    _made.clear()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def snapshot() -> dict[str, float]:
    """Copies this process's part in memory; returns seconds."""
    parts = [np.asarray(shard.data) for leaf in _state.values() for shard in leaf.addressable_shards]
    copies: list[np.ndarray] = []

    def copy() -> None:
        copies.extend(np.array(part, copy=True) for part in parts)

    return {"snapshot_secs": _measured("snapshot", copy)["snapshot_secs"]}


def _contender(name: str) -> Contender:
    if name not in _made:
        _made[name] = _make(name, _state)
    return _made[name]


def _measured(what: str, work: Callable[[], object]) -> dict[str, float]:
    if jax.process_index() == 0:
        os.sync()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"begin {what}")
    used, sent = time.process_time(), _sent[0]
    result = worker.measured(what, work)
    return {**result, f"{what}_cpu_secs": time.process_time() - used, f"{what}_messages": _sent[0] - sent}


def _counting_messages() -> None:
    """Counts the messages that jaxckpt sends from this process, apart from heartbeats."""
    from jaxckpt.job.protocol.link import Link

    send = Link.send

    def counted(link: Link, *arguments: Any, **more: Any) -> None:
        _sent[0] += 1
        send(link, *arguments, **more)

    Link.send = counted  # type: ignore[method-assign]


_counting_messages()
