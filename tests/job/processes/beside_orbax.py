"""Programs that save with jaxckpt and, all processes together, with Orbax's own manager. Nothing here imports pytest."""

import contextlib
import errno
import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import mp_programs
import mp_values
import numpy as np

import jaxckpt

sys.path.insert(0, str(Path(__file__).parents[2]))

import orbax_events


def operations() -> str:
    """The number of Orbax's last operation in this process, which must be the same in all."""
    from orbax.checkpoint._src.futures import synchronization

    return str(synchronization.OperationIdGenerator.get_current_operation_id())


class Orbax:
    """An ordinary manager of Orbax, used by all processes."""

    def __init__(self, directory: str) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=True, create=True)
        self._manager = ocp.CheckpointManager(directory, options=options)
        self._saved: list[int] = []

    def save(self, *, wait: bool) -> None:
        step = len(self._saved)
        assert self._manager.save(step, args=self._ocp.args.StandardSave({"w": self._value(step)}))
        self._saved.append(step)
        if wait:
            self._manager.wait_until_finished()

    def _value(self, step: int) -> jax.Array:
        return mp_values.spread(mp_values.full((mp_values.SIDE, 4), seed=step), "rows")

    def close(self) -> None:
        """Waits, and restores everything."""
        self._manager.wait_until_finished()
        for step in self._saved:
            value = self._value(step)
            target = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)
            found = self._manager.restore(step, args=self._ocp.args.StandardRestore({"w": target}))
            mp_values.assert_same(found, {"w": value})
        self._manager.close()


def taking_turns(directory: str, io: int | None, asynchronous: bool) -> tuple[dict[str, int], str]:
    """Saves with Orbax before, between, during and after saves with jaxckpt; returns what Orbax reported of the latter."""
    orbax = Orbax(directory + "/orbax")
    checkpoint = mp_programs.simple()
    given = mp_programs.options(io, asynchronous=asynchronous)
    orbax.save(wait=True)
    with orbax_events.heard() as names:
        paths = [checkpoint.save(directory + "/ckpt", given)]
        checkpoint.sync()
        reported = orbax_events.of_saves(names)
    orbax.save(wait=False)
    paths.append(checkpoint.save(directory + "/ckpt", given))
    # In the background, where there is one, ours may be at any point by now, on each process at another.
    orbax.save(wait=False)
    checkpoint.sync()
    paths.append(checkpoint.save(directory + "/ckpt", given))
    checkpoint.sync()
    orbax.save(wait=True)
    orbax.close()
    for path in paths:
        target = mp_programs.simple(seed=1)
        target.read(path, given).assert_consumed()
        mp_values.assert_same({"w": target.w}, {"w": checkpoint.w})
    return reported, operations()


def after_a_failure(directory: str, io: int | None, who: int, how: str, asynchronous: bool) -> tuple[list[str], str]:
    """A save with jaxckpt that goes wrong on process `who`, between saves with Orbax; returns what it raised."""
    from jaxckpt.storage.arrays import writer

    # Process 0 of a shared directory writes with the parts of the others.
    originals = {name: getattr(writer, name) for name in ("write_arrays", "write_with_parts")}
    handled = threading.Event()

    def handle(*_: object) -> None:
        handled.set()
        raise KeyboardInterrupt

    def broken(name: str, *arguments: Any, **more: Any) -> Any:
        if how == "error":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), directory)
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGINT)
        # The main thread waits for this one, and has to be woken, and to give the save up, before this one goes on.
        assert handled.wait(60)
        time.sleep(0.2)
        return originals[name](*arguments, **more)

    orbax = Orbax(directory + "/orbax")
    checkpoint = mp_programs.simple()
    given = mp_programs.options(io, asynchronous=asynchronous)
    orbax.save(wait=True)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == who:
            for name in originals:
                stack.enter_context(mock.patch.object(writer, name, functools.partial(broken, name)))
            stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, handle))
        raised: list[str] = []
        try:
            checkpoint.save(directory + "/ckpt", given)
            checkpoint.sync()
        except BaseException as error:
            raised = [kind.__name__ for kind in type(error).__mro__]
    assert [name for name in os.listdir(directory) if name.startswith("ckpt")] == []
    orbax.save(wait=True)
    path = checkpoint.save(directory + "/ckpt", given)
    checkpoint.sync()
    orbax.save(wait=True)
    orbax.close()
    mp_programs.simple(seed=1).read(path, given).assert_consumed()
    return raised, operations()


def translation(directory: str, io: int | None) -> tuple[str, tuple[list[str], str]]:
    """What the options turn into, as text, and how their checkpointer refuses an array of the whole job."""
    import orbax.checkpoint as ocp

    found = jaxckpt.to_orbax(jaxckpt.CheckpointOptions(io, enable_async=True))
    value = mp_values.spread(np.zeros((mp_values.SIDE, 2), np.float32), "rows")

    def save() -> None:
        with found.checkpointer() as checkpointer:
            checkpointer.save(directory + "/whole", args=ocp.args.PyTreeSave({"w": value}))

    return str(found), mp_programs.outcome(save)
