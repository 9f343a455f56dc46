"""Making a checkpoint durable and visible, and making one disappear, so that a crash at any moment leaves a whole one or none."""

import contextlib
import ctypes
import errno
import functools
import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any

from jaxckpt.errors import CheckpointError
from jaxckpt.storage import (
    bucket_commit,
    claims,
    description,
    digests,
    faults,
    files,
    kvstore,
    layout,
    orbax_api,
    temporary,
    tree_metadata,
    writer,
)
from jaxckpt.storage.committed import is_checkpoint
from jaxckpt.storage.content import ArrayContent, Snapshot
from jaxckpt.storage.deadline import Deadline
from jaxckpt.storage.settings import WriteSettings

_log = logging.getLogger("jaxckpt")
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_AT_FDCWD = -100
# Files of a checkpoint, which an array's directory cannot be called.
_FILES = {
    *(tree_metadata.FILE, tree_metadata.STRINGS, tree_metadata.SHARDINGS, tree_metadata.ARRAY_METADATAS, digests.FILE),
    *(kvstore.OCDBT_MANIFEST, description.FILE, description.MARKER, "", ".", ".."),
}


def write_item(new: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes a snapshot as the new directory `new`, through Orbax's checkpointer."""
    import orbax.checkpoint as ocp

    checkpointer = orbax_api.checkpointer(settings)
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
    path: str,
    snapshot: Snapshot,
    settings: WriteSettings,
    *,
    replace: bool,
    write: Callable[[str, Snapshot, WriteSettings], None] | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Writes a snapshot as the checkpoint `path` and commits it.

    After the return it is on stable storage: data, metadata, directories and the rename have been synced. On an error nothing is left.

    Args:
      path: of the checkpoint directory; its parents are made.
      snapshot: what to write.
      settings: how; `settings.asynchronous` chooses Orbax's asynchronous checkpointer.
      replace: put it in the place of what is at `path`; otherwise that is an error.
      write: writes the files, given the directory that it makes, `snapshot` and `settings`; None for one process's own way.
      ready: called when everything is written and synced, right before the checkpoint gets its name; may refuse by raising.

    Raises:
      FileExistsError: something is at `path` and `replace` is false, or what is there is not a checkpoint.
      OSError: with errno, for example ENOSPC.
      TimeoutError: after `settings.timeout_secs`.
    """
    path = files.absolute(path)
    if files.is_bucket(path):
        return _save_in_bucket(path, snapshot, settings, replace, write or write_item_in_bucket, ready)
    _refuse_occupied(path, replace)
    try:
        temporary.sweep(os.path.dirname(path), re.sub(r"-\d+$", "", os.path.basename(path)))
    except OSError as error:  # What a dead process left is no reason to lose this save.
        _log.warning("Could not remove leftovers in %s: %s", os.path.dirname(path), error)
    folder = temporary.create(path)
    try:
        _require_space(folder, snapshot, settings)
        new = os.path.join(folder, temporary.NEW)
        (write or write_item)(new, snapshot, settings)
        digests.write(new, late=True)
        sync_tree(new)
        ready()
        _publish(new, path, os.path.join(folder, temporary.PREVIOUS), replace)
        sync_directory(os.path.dirname(path))
    except BaseException as error:
        _discard(folder, path)
        if isinstance(error, RuntimeError) and "after interpreter shutdown" in str(error):
            raise CheckpointError(
                f"{path} cannot be saved any more: the program is ending (an atexit handler?), and Python has shut down what Orbax "
                "needs. Save earlier, for example in a finally block around the training loop."
            ) from error
        found = None if isinstance(error, (OSError, TimeoutError)) else faults.os_error(error, path)
        if found is not None:
            raise found from error
        raise
    temporary.remove(folder)


def _save_in_bucket(
    path: str,
    snapshot: Snapshot,
    settings: WriteSettings,
    replace: bool,
    write: Callable[[str, Snapshot, WriteSettings], None],
    ready: Callable[[], None],
) -> None:
    def write_all(directory: str) -> None:
        write(directory, snapshot, settings)
        digests.write(directory, late=True, ignored=(claims.FILE,))
        ready()

    with files.bucket.within(Deadline(settings.timeout_secs, f"Saving {path}")):
        try:
            bucket_commit.save(path, write_all, replace=replace)
        except OSError:
            raise
        except Exception as error:
            found = faults.os_error(error, path)
            if found is None:
                raise
            raise found from error


def _discard(folder: str, path: str) -> None:
    """Removes what a failed save left. Whatever was moved aside goes back first."""
    previous = os.path.join(folder, temporary.PREVIOUS)
    with contextlib.suppress(OSError):
        if os.path.isdir(previous) and not os.path.lexists(path):
            os.rename(previous, path)
    with contextlib.suppress(OSError):  # The error of the save says more than one of the clean-up; a sweep tries again.
        temporary.remove(folder)


def _refuse_occupied(path: str, replace: bool) -> None:
    if not os.path.lexists(path):
        return
    if not replace:
        raise FileExistsError(errno.EEXIST, "A checkpoint is there already", path)
    if not is_checkpoint(path) and not (os.path.isdir(path) and not os.listdir(path)):
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


def _publish(new: str, path: str, aside: str, replace: bool) -> None:
    """Moves the finished directory to its final name, atomically."""
    if not replace or not os.path.lexists(path):
        if not _rename2(new, path, _RENAME_NOREPLACE):
            os.rename(new, path)  # Fails as well if a directory with files is there.
        return
    if _rename2(new, path, _RENAME_EXCHANGE):
        os.rename(new, aside)  # What was at `path` has changed places with the new one.
        return
    # A file system without exchange: for a moment only `aside` is there; `temporary.recover` knows that moment.
    os.rename(path, aside)
    os.rename(new, path)


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
            _sync(os.path.join(folder, name), os.O_RDONLY)
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


def delete(path: str) -> None:
    """Removes a checkpoint: renames it away, so that a half-removed one never has its name, then removes the files.

    A path that does not exist is no error.

    Raises:
      OSError: with errno; the checkpoint is still there, or only its temporary directory is.
    """
    path = files.absolute(path)
    if files.is_bucket(path):
        return bucket_commit.delete(path)
    if not os.path.lexists(path):
        return
    folder = temporary.create(path)
    try:
        os.rename(path, os.path.join(folder, "deleted"))
    except FileNotFoundError:
        pass
    except BaseException:
        os.rmdir(folder)
        raise
    temporary.remove(folder)


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
