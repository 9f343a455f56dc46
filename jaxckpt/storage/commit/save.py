"""One save: write, seal, publish, register. After an error or an interrupt, its files are removed."""

import functools
import sys
import threading
from collections.abc import Callable

from jaxckpt._lib.deadline import CancelledError, Deadline, cancelled_by
from jaxckpt._lib.uninterrupted import interrupt_of, uninterrupted
from jaxckpt.errors import CheckpointError
from jaxckpt.storage import faults, orbax, stores
from jaxckpt.storage.arrays import writer
from jaxckpt.storage.arrays.writer import Fill
from jaxckpt.storage.commit.checkpoint_path import CheckpointPath
from jaxckpt.storage.commit.choice import committer_of
from jaxckpt.storage.commit.committer import Pending
from jaxckpt.storage.item import digests, layout, metrics
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings


def save(
    path: CheckpointPath,
    snapshot: Snapshot,
    settings: WriteSettings,
    *,
    replace: bool,
    write: Fill | None = None,
    ready: Callable[[], None] = lambda: None,
    register: Callable[[], None] = lambda: None,
) -> None:
    """Writes a snapshot as the checkpoint `path`, commits it and registers it.

    After the return, the checkpoint is on stable storage: data, metadata, directories and the commit. After an error, nothing of it is
    left, and the checkpoint that it was to replace is still there (except in a bucket, if `register` failed). After an interrupt, the
    checkpoint is either committed and registered, or does not exist.

    Args:
      path: path of the checkpoint. Its parent directories are made.
      snapshot: the leaves to write.
      settings: how to write them. `settings.asynchronous` chooses Orbax's asynchronous checkpointer, which drives the write on a file
        system.
      replace: whether to replace a checkpoint at `path`. If False, anything there is an error.
      write: writes the arrays and the tree into an existing directory; None if this process has all pieces.
      ready: called when everything is written and synced, right before the commit. If it raises, the checkpoint is not committed.
      register: called once the checkpoint is committed. If it raises, the commit is undone. Not called on the main thread.

    Raises:
      FileExistsError: something is at `path` and `replace` is False, or it is not a checkpoint; or a running process is working there.
      OSError: with errno, for example ENOSPC.
      TimeoutError: after `settings.timeout_secs`.
    """
    committer = committer_of(path.directory)
    settings = layout.limited(settings, stores.store_of(path.directory).largest_file)
    with stores.within(Deadline(settings.timeout_secs, f"Saving {path}")):
        try:
            pending = committer.begin(path, replace=replace)
            if committer.in_place:
                _fill(pending, snapshot, settings, write or writer.write, ready, orbax.write_item_without_orbax)
                uninterrupted(functools.partial(pending.publish, register))
            else:
                _whole(path, pending, snapshot, settings, write or writer.write, ready, register)
        except BaseException as error:
            if (interrupt := interrupt_of(error)) is not None:
                raise interrupt from None
            if isinstance(error, RuntimeError) and "shutdown" in str(error):
                raise CheckpointError(_too_late(path)) from error
            found = None if isinstance(error, OSError) else faults.os_error(error, str(path))
            if found is not None:
                raise found from error
            raise


def _fill(
    pending: Pending,
    snapshot: Snapshot,
    settings: WriteSettings,
    fill: Fill,
    ready: Callable[[], None],
    write_item: Callable[[str, Snapshot, WriteSettings, Fill], None],
) -> None:
    """Writes the files and brings them to stable storage. If a step fails, discards them."""
    try:
        pending.prepare(snapshot.nbytes if settings.compression is None else None)
        write_item(pending.new, snapshot, settings, fill)
        if snapshot.metrics is not None:
            metrics.write(pending.new, snapshot.metrics)
        account = None if snapshot.account is None else snapshot.account()
        digests.write(pending.new, late=True, ignored=pending.own_files, save=account)
        pending.seal()
        ready()
    except BaseException:
        pending.discard()
        raise


def _whole(
    path: CheckpointPath,
    pending: Pending,
    snapshot: Snapshot,
    settings: WriteSettings,
    fill: Fill,
    ready: Callable[[], None],
    register: Callable[[], None],
) -> None:
    """Writes and commits on a thread that interrupts do not reach. The first interrupt cancels the save, unless it is committed.

    Orbax waits in an event loop, which would swallow an exception that a signal handler raises there.
    """
    if threading.current_thread() is not threading.main_thread():
        # Interrupts do not reach this thread. The thread that waits for it may cancel the save with its own `cancelled_by`, which must
        # not be hidden by one here.
        _fill(pending, snapshot, settings, fill, ready, orbax.write_item)
        pending.publish(register)
        return
    given_up = threading.Event()
    interrupts: list[BaseException] = []

    def work() -> None:
        with cancelled_by(given_up):
            _fill(pending, snapshot, settings, fill, ready, orbax.write_item)
            if given_up.is_set():
                pending.discard()
                raise CancelledError(str(path))
        pending.publish(register)

    def interrupted(error: BaseException) -> None:
        interrupts.append(error)
        given_up.set()

    try:
        uninterrupted(work, interrupted)
    except Exception:
        if interrupts and interrupts[0] is not sys.exc_info()[1]:
            # Something failed because the interrupt cancelled the save. The interrupt is the error to raise.
            raise interrupts[0] from None
        raise


def _too_late(path: CheckpointPath) -> str:
    if threading.current_thread() is threading.main_thread():
        return (
            f"{path} cannot be saved any more: the program is ending (an exit handler?), and Python can no longer start the threads "
            "that a save needs. Save earlier, for example in a finally block around the training loop."
        )
    return (
        f"{path} cannot be saved any more: the main thread has ended before this thread, and Python can no longer start the threads "
        "that a save needs. Let the main thread wait for this one: thread.join()."
    )
