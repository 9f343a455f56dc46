"""Settings → Orbax objects: options, and a checkpointer that writes with our engine and reads with Orbax's own.

``PyTreeCheckpointHandler(handler_impl=...)`` is Orbax's public way to replace how a PyTree is written. Ours takes whatever Orbax's
takes (``ocp.args.PyTreeSave(tree)``), so that code that talks to Orbax directly gets checksums and speed too.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

from jaxckpt.storage.arrays import writer
from jaxckpt.storage.item import digests
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings

BARRIER_PREFIX = "jaxckpt"


def async_options(settings: WriteSettings) -> Any:
    """Returns the ocp.AsyncOptions of a save.

    Directories are made before the write starts: Orbax's background creation lets a failed save hold the process for 300 s.
    No post_finalization_callback: Orbax calls it before the commit.
    """
    import orbax.checkpoint as ocp

    return ocp.AsyncOptions(timeout_secs=max(1, int(settings.timeout_secs)), create_directories_asynchronously=False)


def multiprocessing_options(settings: WriteSettings) -> Any:
    """Returns the ocp.options.MultiprocessingOptions: Orbax's defaults, or everything on the IO process of a job of several."""
    import jax
    import orbax.checkpoint as ocp

    if settings.io_process is None or jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=settings.io_process, active_processes={settings.io_process}, barrier_sync_key_prefix=BARRIER_PREFIX
    )


def checkpointer(settings: WriteSettings, snapshot_of: Callable[[Any], Snapshot] | None = None) -> Any:
    """Returns the configured Orbax checkpointer: an ocp.AsyncCheckpointer exactly when `settings.asynchronous`.

    Args:
      settings: how to write.
      snapshot_of: takes the snapshot of a tree that is handed to ``save``; not needed where only `Snapshot`s are.
    """
    import orbax.checkpoint as ocp

    quieten()
    multiprocessing = multiprocessing_options(settings)
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        use_zarr3=True,
        multiprocessing_options=multiprocessing,
        handler_impl=_handler_class()(settings, multiprocessing, snapshot_of),
    )
    if settings.asynchronous:
        return ocp.AsyncCheckpointer(
            handler, async_options=async_options(settings), multiprocessing_options=multiprocessing
        )
    return ocp.Checkpointer(handler, multiprocessing_options=multiprocessing)


@functools.cache
def quieten() -> None:
    """Keeps Orbax from logging the traceback of every failed save: the error itself reaches the caller."""
    logging.getLogger("absl").addFilter(
        lambda record: "Failed to run" not in str(record.msg) or "Commit operations" not in str(record.msg)
    )


class _Write:
    """The future of a write (Orbax's protocol): the write happens on the thread that asks for the result."""

    def __init__(self, directory: Any, snapshot: Snapshot, settings: WriteSettings) -> None:
        self._work = functools.partial(writer.write, str(directory), snapshot, settings)
        self._done = False

    def result(self, timeout: float | None = None) -> None:
        if not self._done:
            self._done = True
            self._work()


@functools.cache
def _handler_class() -> type[Any]:
    from jaxckpt.storage import compat

    class Handler(compat.base_handler()):  # type: ignore[misc]
        """Writes with our engine; restores and describes as Orbax does."""

        def __init__(
            self, settings: WriteSettings, multiprocessing: Any, snapshot_of: Callable[[Any], Snapshot] | None
        ) -> None:
            super().__init__(use_ocdbt=True, use_zarr3=True, multiprocessing_options=multiprocessing)
            self._settings = settings
            self._snapshot_of = snapshot_of

        async def async_save(self, directory: Any, args: Any) -> list[Any]:
            snapshot = args.item
            if not isinstance(snapshot, Snapshot):
                if self._snapshot_of is None:
                    raise TypeError(f"Expected a Snapshot to save, got {type(snapshot).__name__}.")
                snapshot = self._snapshot_of(snapshot)
            return [_Write(directory, snapshot, self._settings)]

        def finalize(self, directory: Any) -> None:
            digests.write(str(directory))

    return Handler
