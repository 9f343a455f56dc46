"""Makes Orbax's objects from settings: options, and a checkpointer that writes with our handler and reads with Orbax's own.

``PyTreeCheckpointHandler(handler_impl=...)`` is Orbax's public way to replace the code that writes a PyTree. Our handler takes the same
arguments as Orbax's (``ocp.args.PyTreeSave(tree)``), so a program that calls Orbax directly gets checksums and speed too.

In every mode of a job, saves to a file system go through `write_item`: Orbax's checkpointer drives them, on the process that commits.
"""

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxckpt.errors import CheckpointError
from jaxckpt.storage import stores
from jaxckpt.storage.arrays.writer import Fill
from jaxckpt.storage.item import description
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.quiet import quiet
from jaxckpt.storage.settings import WriteSettings

BARRIER_PREFIX = "jaxckpt"


def async_options(settings: WriteSettings) -> Any:
    """Returns the ocp.AsyncOptions of a save.

    Directories are made before the write starts: with Orbax's creation in the background, a failed save would hold the process for 300 s.
    They have no post_finalization_callback, because Orbax calls it before the commit.

    Args:
      settings: how to write.
    """
    import orbax.checkpoint as ocp

    return ocp.AsyncOptions(timeout_secs=max(1, int(settings.timeout_secs)), create_directories_asynchronously=False)


def committing_process(settings: WriteSettings) -> int:
    """Returns the index of the process that commits, on which Orbax's checkpointer runs."""
    return settings.io_process or 0


def multiprocessing_options(settings: WriteSettings, processes: int | None = None) -> Any:
    """Returns the ocp.options.MultiprocessingOptions: Orbax's defaults, or in a job of several processes, only the one that commits.

    The other processes do not take part in Orbax's barriers. They answer the committing process through the session of their call.

    Args:
      settings: how to write.
      processes: number of processes of the job; None for that of this job.
    """
    import jax
    import orbax.checkpoint as ocp

    if (jax.process_count() if processes is None else processes) == 1:
        return ocp.options.MultiprocessingOptions()
    process = committing_process(settings)
    return ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=BARRIER_PREFIX
    )


def checkpointer(settings: WriteSettings, handler: Any, *, is_shared: bool = False, **more: Any) -> Any:
    """Returns an Orbax checkpointer for trees: an ocp.AsyncCheckpointer exactly if `settings.asynchronous`.

    Args:
      settings: how to write.
      handler: the handler, which writes.
      is_shared: whether all processes of a job save together; otherwise only the one that commits does.
      more: more arguments of the checkpointer.
    """
    import jax
    import orbax.checkpoint as ocp

    from jaxckpt.storage import compat

    kind: Any = ocp.Checkpointer
    if settings.asynchronous:
        kind, more = ocp.AsyncCheckpointer, {**more, "async_options": async_options(settings)}
    if is_shared:
        return kind(handler, **more)
    if jax.process_count() > 1:
        kind = compat.uncounted(kind)
    return kind(handler, multiprocessing_options=multiprocessing_options(settings), **more)


def write_item(new: str, snapshot: Snapshot, settings: WriteSettings, fill: Fill) -> None:
    """Writes a snapshot as the new directory `new`. Orbax's checkpointer drives the write.

    After the main thread has ended (in an exit handler, or on a thread that outlives it), Python has shut down the threads that Orbax
    needs. Then it writes without Orbax's checkpointer.

    Orbax marks the directory as committed in place (ocp.path.atomicity.CommitFileTemporaryPath) and does not rename it. `new` is in a
    temporary directory, and jaxckpt makes the one rename that gives the checkpoint its name. Orbax's rename would not do: it replaces an
    empty directory of another program, cannot exchange two checkpoints in one step, comes before the directory is on stable storage, and
    cannot be undone if registering fails.

    Args:
      new: path of the new directory. It does not exist yet, but its parent does.
      snapshot: the snapshot to write.
      settings: how to write it.
      fill: writes the arrays and the tree into the directory after Orbax has made it.

    Raises:
      CheckpointError: Orbax returned without an error, but did not commit.
      BaseException: the error that `fill` raised.
    """
    if not threading.main_thread().is_alive():
        write_item_without_orbax(new, snapshot, settings, fill)
        description.mark(new, new)
        return
    with quiet():
        _drive(new, snapshot, settings, fill)


def _drive(new: str, snapshot: Snapshot, settings: WriteSettings, fill: Fill) -> None:
    import orbax.checkpoint as ocp

    from jaxckpt.storage import compat

    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        use_zarr3=True,
        multiprocessing_options=multiprocessing_options(settings),
        handler_impl=_handler_class()(settings, fill),
    )
    driver = checkpointer(settings, handler, temporary_path_class=ocp.path.atomicity.CommitFileTemporaryPath)
    if settings.asynchronous:
        compat.wrap_background(driver, quiet())
    try:
        driver.save(new, args=ocp.args.PyTreeSave(snapshot), custom_metadata=description.custom(snapshot.record))
        if settings.asynchronous:
            driver.wait_until_finished()
    finally:
        driver.close()
    if not os.path.exists(os.path.join(new, description.MARKER)):
        # If code in a save raises a cancellation error, Orbax assumes that the save was cancelled on purpose, and does not raise.
        raise CheckpointError(f"Orbax returned from the save to {new} without an error, but did not commit it.")


def write_item_without_orbax(new: str, snapshot: Snapshot, settings: WriteSettings, fill: Fill) -> None:
    """Writes the same files as `write_item`, except the commit marker, without Orbax's checkpointer.

    Saves to buckets use it, because Orbax's checkpointer reaches buckets only with more packages.

    Args:
      new: path of the directory. In the local store, its parent must exist.
      snapshot: the snapshot to write.
      settings: how to write it.
      fill: writes the arrays and the tree into the directory.

    Raises:
      OSError: with errno.
      BaseException: the error that `fill` raised.
    """
    began = time.time_ns()
    if stores.is_local(new) and not os.path.isdir(new):
        os.mkdir(new)
    fill(new, snapshot, settings)
    description.write(new, began, snapshot.record)


class _Write:
    """A write, as a future for Orbax. The thread that asks for the result does the write."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._done = False

    def result(self, timeout: float | None = None) -> None:
        if not self._done:
            self._done = True
            self._work()


@functools.cache
def _handler_class() -> type[Any]:
    from jaxckpt.storage import compat

    class Handler(compat.base_handler()):  # type: ignore[misc]
        """Writes a `Snapshot` with our engine. `jaxckpt.storage.handlers` has the handlers for the trees of programs."""

        def __init__(self, settings: WriteSettings, fill: Fill) -> None:
            """Makes the handler of one checkpointer.

            Args:
              settings: how to write.
              fill: writes a snapshot into the directory that Orbax has made.
            """
            super().__init__(use_ocdbt=True, use_zarr3=True, multiprocessing_options=multiprocessing_options(settings))
            self._settings = settings
            self._fill = fill

        async def async_save(self, directory: Any, args: Any) -> list[Any]:
            return [_Write(functools.partial(self._fill, str(directory), args.item, self._settings))]

        def finalize(self, directory: Any) -> None:
            """Does nothing: the caller completes the directory after Orbax."""

    return Handler
