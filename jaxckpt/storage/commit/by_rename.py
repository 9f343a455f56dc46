"""Making a checkpoint durable and visible, and making one disappear, so that a crash at any moment leaves a whole one or none."""

import contextlib
import ctypes
import errno
import functools
import logging
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxckpt._lib.deadline import CancelledError, Deadline, cancelled_by
from jaxckpt._lib.uninterrupted import interrupt_of, uninterrupted
from jaxckpt.errors import CheckpointError
from jaxckpt.storage import faults, orbax, stores
from jaxckpt.storage.arrays import kvstore, writer
from jaxckpt.storage.commit import by_marker, claims, committed, temporary
from jaxckpt.storage.commit.checkpoint_path import CheckpointPath
from jaxckpt.storage.commit.committed import is_checkpoint
from jaxckpt.storage.commit.removal import SpareDescriptors
from jaxckpt.storage.commit.temporary import TemporaryDirectory
from jaxckpt.storage.item import description, digests, layout, strings, tree_metadata
from jaxckpt.storage.item.content import ArrayContent, Snapshot
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST
from jaxckpt.storage.settings import WriteSettings

_log = logging.getLogger("jaxckpt")
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_AT_FDCWD = -100
_LOCK = ".__lock"
_REPLACED = "Another checkpoint was saved in its place, which is not deleted"
# Files of a checkpoint, which an array's directory cannot be called.
_FILES = {
    *(tree_metadata.FILE, strings.FILE, tree_metadata.SHARDINGS, tree_metadata.ARRAY_METADATAS, digests.FILE),
    *(OCDBT_MANIFEST, description.FILE, description.MARKER, "", ".", ".."),
}


def write_item(new: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes a snapshot as the new directory `new`, through Orbax's checkpointer; without it where Python has shut down what it needs."""
    if not threading.main_thread().is_alive():
        # An exit handler, or a thread that outlives the main thread: concurrent.futures, which Orbax uses, takes no more work.
        write_item_in_bucket(new, snapshot, settings)
        description.mark(new, new)
        return
    import orbax.checkpoint as ocp

    checkpointer = orbax.checkpointer(settings)
    try:
        checkpointer.save(new, args=ocp.args.PyTreeSave(snapshot), custom_metadata=description.custom(snapshot.record))
        if settings.asynchronous:
            checkpointer.wait_until_finished()
    finally:
        checkpointer.close()


def write_item_in_bucket(new: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes the same without Orbax's checkpointer, which reaches buckets only with further packages."""
    began = time.time_ns()
    writer.write(new, snapshot, settings)
    description.write(new, began, snapshot.record)


def save(
    path: CheckpointPath,
    snapshot: Snapshot,
    settings: WriteSettings,
    *,
    replace: bool,
    write: Callable[[str, Snapshot, WriteSettings], None] | None = None,
    ready: Callable[[], None] = lambda: None,
    register: Callable[[], None] = lambda: None,
) -> None:
    """Writes a snapshot as the checkpoint `path`, commits it and registers it.

    After the return it is on stable storage: data, metadata, directories and the rename have been synced. On an error nothing is left,
    and what was to be replaced is in its place. An interrupt tears nothing apart: the checkpoint is committed and registered, or is not
    there.

    Args:
      path: of the checkpoint directory; its parents are made.
      snapshot: what to write.
      settings: how; `settings.asynchronous` chooses Orbax's asynchronous checkpointer.
      replace: put it in the place of what is at `path`; otherwise that is an error.
      write: writes the files, given the directory that it makes, `snapshot` and `settings`; None for one process's own way.
      ready: called when everything is written and synced, right before the checkpoint gets its name; may refuse by raising.
      register: called once the checkpoint has its name; if it raises, the commit is taken back. Not called on the main thread.

    Raises:
      FileExistsError: something is at `path` and `replace` is false, or what is there is not a checkpoint.
      OSError: with errno, for example ENOSPC.
      TimeoutError: after `settings.timeout_secs`.
    """
    if path.in_bucket:
        _save_in_bucket(path, snapshot, settings, replace, write or write_item_in_bucket, ready, register)
        return
    _refuse_occupied(str(path), replace)
    try:
        temporary.sweep(path.directory, re.sub(r"-\d+$", "", path.name))
    except OSError as error:
        # Files that a dead process left are no reason to lose this save.
        _log.warning("Could not remove leftovers in %s: %s", path.directory, error)
    new = _New(path, temporary.TemporaryDirectory(path), replace, register)
    try:
        if write is None:
            # Orbax waits in an event loop, which would swallow an exception that a signal handler raises there.
            _whole(new, snapshot, settings, ready)
        else:
            new.write(lambda: write(new.folder.new, snapshot, settings), snapshot, settings, ready)
            uninterrupted(new.commit)
    except BaseException as error:
        if (interrupt := interrupt_of(error)) is not None:
            raise interrupt from None
        if isinstance(error, RuntimeError) and "shutdown" in str(error):
            raise CheckpointError(_too_late(path)) from error
        found = None if isinstance(error, (OSError, TimeoutError)) else faults.os_error(error, str(path))
        if found is not None:
            raise found from error
        raise


def _whole(new: "_New", snapshot: Snapshot, settings: WriteSettings, ready: Callable[[], None]) -> None:
    """Writes and commits on a thread that no interrupt reaches. The first interrupt gives the save up, if it is not committed yet."""
    given_up = threading.Event()
    interrupts: list[BaseException] = []

    def work() -> None:
        with cancelled_by(given_up):
            new.write(lambda: write_item(new.folder.new, snapshot, settings), snapshot, settings, ready)
            if given_up.is_set():
                new.discard()
                raise CancelledError(str(new.path))
        new.commit()

    def interrupted(error: BaseException) -> None:
        interrupts.append(error)
        given_up.set()

    try:
        uninterrupted(work, interrupted)
    except Exception:
        if interrupts and interrupts[0] is not sys.exc_info()[1]:
            # Whatever failed because of it.
            raise interrupts[0] from None
        raise


class _New:
    """A checkpoint in the making. Its temporary directory belongs to the step that runs, which removes it in any case."""

    def __init__(
        self, path: CheckpointPath, folder: TemporaryDirectory, replace: bool, register: Callable[[], None]
    ) -> None:
        self.path = path
        self.folder = folder
        self._replace = replace
        self._register = register
        self._spare: SpareDescriptors | None = None

    def write(
        self, work: Callable[[], None], snapshot: Snapshot, settings: WriteSettings, ready: Callable[[], None]
    ) -> None:
        """Fills the directory, and syncs it."""
        try:
            self._spare = SpareDescriptors()
            _require_space(self.folder.path, snapshot, settings)
            work()
            digests.write(self.folder.new, late=True)
            sync_tree(self.folder.new)
            ready()
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Gives the finished directory its name and registers it; takes the name back if something fails."""
        written = _identity(self.folder.new)
        try:
            _publish(self.folder, str(self.path), self._replace)
            sync_directory(self.path.directory)
            self._register()
        except BaseException as error:
            try:
                _take_back(self.folder, str(self.path), written)
            except OSError as second:
                error.add_note(f"Besides, {self.path} could not be taken back: {second}")
            else:
                self.discard()
            raise
        self.discard()

    def discard(self) -> None:
        """Removes the directory. That it cannot be removed fails no save, and adds nothing to an error: a sweep tries again."""
        if self._spare is not None:
            self._spare.close()
        try:
            self.folder.remove()
        except OSError as error:
            _log.warning("Could not remove %s: %s", self.folder.path, error)


def _too_late(path: CheckpointPath) -> str:
    if threading.current_thread() is threading.main_thread():
        return (
            f"{path} cannot be saved any more: the program is ending (an exit handler?), and Python has shut down what a save needs. "
            "Save earlier, for example in a finally block around the training loop."
        )
    return (
        f"{path} cannot be saved any more: the main thread has ended while this thread goes on, and Python has shut down what a save "
        "needs. Let the main thread wait for this one: thread.join()."
    )


def _take_back(folder: TemporaryDirectory, path: str, written: tuple[int, int] | None) -> None:
    """Undoes as much of `_publish` as has been done, which is seen from what is where. What was at `path` before is there again."""
    if written is not None and _identity(path) == written:
        if os.path.lexists(folder.previous):
            if not _rename2(folder.previous, path, _RENAME_EXCHANGE):
                os.rename(path, folder.new)
                os.rename(folder.previous, path)
        elif os.path.lexists(folder.new):
            _rename2(folder.new, path, _RENAME_EXCHANGE)
        else:
            os.rename(path, folder.new)
    elif os.path.lexists(folder.previous) and not os.path.lexists(path):
        os.rename(folder.previous, path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _save_in_bucket(
    path: CheckpointPath,
    snapshot: Snapshot,
    settings: WriteSettings,
    replace: bool,
    write: Callable[[str, Snapshot, WriteSettings], None],
    ready: Callable[[], None],
    register: Callable[[], None],
) -> None:
    def write_all(directory: str) -> None:
        write(directory, snapshot, settings)
        digests.write(directory, late=True, ignored=(claims.FILE,))
        ready()

    with stores.bucket.within(Deadline(settings.timeout_secs, f"Saving {path}")):
        try:
            by_marker.save(str(path), write_all, register, replace=replace)
        except OSError:
            raise
        except Exception as error:
            found = faults.os_error(error, str(path))
            if found is None:
                raise
            raise found from error


def _refuse_occupied(path: str, replace: bool) -> None:
    if not os.path.lexists(path):
        return
    if not replace:
        raise FileExistsError(errno.EEXIST, "A checkpoint is there already", path)
    if os.path.isdir(path):
        if not os.listdir(path):
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if is_checkpoint(path) and committed.is_marked(descriptor):
                return
        finally:
            os.close(descriptor)
    raise FileExistsError(
        errno.EEXIST, "What is there is not a checkpoint, so it is not replaced; remove it or save elsewhere", path
    )


def _require_space(folder: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Fails at once where the disk cannot hold the arrays, instead of after writing most of them."""
    if settings.compression is not None:
        return
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and snapshot.nbytes > free:
        raise OSError(errno.ENOSPC, f"No space left on device: {snapshot.nbytes} bytes to write, {free} free", folder)


def _publish(folder: TemporaryDirectory, path: str, replace: bool) -> None:
    """Moves the finished directory to its final name, atomically."""
    if not replace or not os.path.lexists(path):
        if not _rename2(folder.new, path, _RENAME_NOREPLACE):
            # Fails as well if a directory with files is there.
            os.rename(folder.new, path)
        return
    if _rename2(folder.new, path, _RENAME_EXCHANGE):
        # What was at `path` has changed places with the new one.
        os.rename(folder.new, folder.previous)
        return
    # A file system without exchange: for a moment only `previous` is there; `temporary.recover` knows that moment.
    os.rename(path, folder.previous)
    os.rename(folder.new, path)


@functools.cache
def _libc_renameat2() -> Any:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function


def _rename2(old: str, new: str, flags: int) -> bool:
    """renameat2; returns False where the system or the file system does not have it."""
    function = _libc_renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), new)


def sync_tree(directory: str) -> None:
    """Syncs every file and directory below `directory`, and itself."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            try:
                _sync(os.path.join(folder, name), os.O_RDONLY)
            except FileNotFoundError:
                # TensorStore of another process, which writes into the same directory, has given up its lock meanwhile.
                if not name.endswith(_LOCK):
                    raise
        sync_directory(folder)


def sync_directory(directory: str) -> None:
    """Syncs the entries of a directory."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Some network file systems cannot sync a directory.
            error.filename = path
            raise
    finally:
        os.close(descriptor)


def identity(path: str) -> object | None:
    """Returns what tells the checkpoint at `path` from a later one of that name; None if nothing is there. Raises OSError."""
    if stores.is_bucket(path):
        content, generation = stores.bucket.read_versioned(f"{path}/{description.MARKER}")
        return None if content is None else generation
    return _identity(path)


def delete(path: CheckpointPath, expected: object | None = None) -> None:
    """Removes a checkpoint. It is renamed away first, so that one that is half removed never has its name.

    A path that does not exist is no error. Where a link is at the path, the link is removed, not the checkpoint that it leads to.

    Args:
      path: of the checkpoint.
      expected: what `identity` returned for the one to delete; None for whichever is there. In a bucket, one that replaces it after
        the look is not told from it.

    Raises:
      OSError: with errno; EBUSY: it is another one by now. The checkpoint is still there, or only its temporary directory is.
        EINVAL: what is there is not a checkpoint, and has not been touched.
    """
    text = str(path)
    if path.in_bucket:
        if expected is not None and identity(text) not in (None, expected):
            raise OSError(errno.EBUSY, _REPLACED, text)
        return by_marker.delete(text)
    try:
        found = _marked_identity(text)
    except FileNotFoundError:
        return None
    if expected is not None and found != expected:
        raise OSError(errno.EBUSY, _REPLACED, text)
    folder = temporary.TemporaryDirectory(path)
    try:
        # Somebody else may have deleted it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            os.rename(text, folder.deleted)
        if _identity(folder.deleted) not in (None, found):
            os.rename(folder.deleted, text)
            raise OSError(errno.EBUSY, "Something else was put in its place while it was to be deleted", text)
    finally:
        if _identity(folder.deleted) in (None, found):
            folder.remove()
    return None


def _marked_identity(path: str) -> tuple[int, int]:
    """Returns what identifies the checkpoint at `path`, or the link to one. Raises OSError if there is something else."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        if not is_checkpoint(path):
            raise OSError(errno.EINVAL, "This link does not lead to a checkpoint, so it is not deleted", path)
        return status.st_dev, status.st_ino
    # Inside an open directory: whatever is renamed meanwhile, these are the marks of the one that is identified.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not committed.is_marked(descriptor):
            raise OSError(errno.EINVAL, "What is there is not a checkpoint, so it is not deleted", path)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return status.st_dev, status.st_ino


def check(path: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Refuses, before any file is made, what the settings cannot hold.

    Raises:
      ValueError: the path is not text; or, naming the leaf, one element is larger than a data file may be, or a key cannot be part
        of a file name.
    """
    kvstore.check_path(path)
    if settings.max_file_size is None:
        return
    for entry in snapshot.entries:
        if not isinstance(entry.content, ArrayContent):
            continue
        needed = entry.content.dtype.itemsize + layout.CHECKSUM_BYTES
        if needed > settings.max_file_size:
            raise ValueError(
                f"{entry.name}: one element and its checksum have {needed} bytes, more than max_shard_size={settings.max_file_size}. "
                "Choose a larger max_shard_size."
            )
        name = entry.param_name
        if not layout.uses_ocdbt(settings) and (
            "/" in name or "\0" in name or name in _FILES or len(os.fsencode(name)) > 255
        ):
            raise ValueError(
                f"{entry.name}: with max_shard_size={settings.max_file_size} every array gets files of its own, whose names "
                "cannot hold this leaf's path. Rename the key, or choose a max_shard_size of 64 MiB or more."
            )
