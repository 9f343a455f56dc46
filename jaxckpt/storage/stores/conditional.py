"""Conditional writes of local files, as storage servers have them: a file is replaced only if its version is the expected one.

The new content is first written beside the file, in a temporary directory. Then it is renamed over the file, while a lock on the old file
keeps other writers out. On a file system without locks, one of two simultaneous writers may overwrite the other's content. On one that
renames no files, the file is written in place.
"""

import contextlib
import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterator

from jaxckpt.storage import owner
from jaxckpt.storage.owner import Owner
from jaxckpt.storage.stores import local, renames
from jaxckpt.storage.stores.store import ABSENT, ChangedError

if sys.platform != "win32":
    import fcntl

# A writer holds the lock for milliseconds. One that holds it for longer was stopped, or hangs on a dead disk.
_WAIT_SECS = 30.0
_POLL_SECS = 0.01
# What a file system says that has no rename, or no links.
_NO_RENAME = (errno.EXDEV, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EMLINK, errno.EIO)
# A sweep recognizes a leftover by this name; see `commit.temporary`.
_CONTENT = "checkpoint"


def read(path: str, limit: int | None = None) -> tuple[bytes | None, bytes]:
    """Returns the content of a file and its version; None and `ABSENT` if the file does not exist.

    Args:
      path: path of the file.
      limit: the largest size in bytes that is read; None for any size.

    Raises:
      OSError: the file cannot be read; EINVAL if it is not a regular file, EFBIG if it is larger than `limit`.
    """
    try:
        descriptor = local.open_regular(path)
    except FileNotFoundError:
        return None, ABSENT
    status = os.fstat(descriptor)
    content = local.read_descriptor(descriptor, path, limit)
    return content, _version(content, status)


def _version(content: bytes, status: os.stat_result) -> bytes:
    """Returns the version of a file. It differs from the version of every earlier file at the path, even one with the same content."""
    place = f"{status.st_dev} {status.st_ino} {status.st_mtime_ns} ".encode()
    return hashlib.blake2b(place + content, digest_size=16).digest()


def write(path: str, content: bytes, expected: bytes) -> bytes:
    """Writes a file, whole or not at all, and syncs it and its directory.

    Args:
      path: path of the file.
      content: new content.
      expected: the version that the file must have now; `ABSENT` if it must not exist.

    Returns:
      The new version.

    Raises:
      ChangedError: the file has another version.
      OSError: with errno. The file is unchanged, unless only the sync of its directory failed.
    """
    work = Owner.new(token_bytes=4)
    scratch = owner.temporary_path(path, work)
    new = os.path.join(scratch, _CONTENT)
    # An interrupt may drop this write. The work then ends with this object, and the temporary directory counts as a leftover.
    token = _Work()
    work.begin(token)
    os.mkdir(scratch)
    try:
        with open(new, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            version = _version(content, os.fstat(file.fileno()))
        if expected == ABSENT:
            version = _create(new, path, content, version)
        else:
            with _locked(path):
                if read(path)[1] != expected:
                    raise _changed(path)
                version = _replace(new, path, content, version)
    except FileNotFoundError as error:
        raise _changed(path) from error
    except OSError as error:
        error.filename = path if error.filename in (None, new) else error.filename
        raise
    finally:
        # If the temporary directory cannot be removed, it stays as a leftover, and a sweep removes it.
        with contextlib.suppress(OSError):
            local.remove(new)
            os.rmdir(scratch)
        work.end()
    local.sync_directory(os.path.dirname(path))
    return version


class _Work:
    """Represents one running write."""


def _changed(path: str) -> ChangedError:
    return ChangedError(errno.EAGAIN, "Another writer changed it at the same time", path)


def _create(new: str, path: str, content: bytes, version: bytes) -> bytes:
    """Renames a finished file to `path`, and returns its version. Raises ChangedError if `path` exists."""
    try:
        if renames.rename_new(new, path):
            return version
        try:
            os.link(new, path)
        except OSError as error:
            if error.errno not in _NO_RENAME:
                raise
            return _write_in_place(path, content, "xb")
    except FileExistsError as error:
        raise _changed(path) from error
    return version


def _replace(new: str, path: str, content: bytes, version: bytes) -> bytes:
    """Renames a finished file over `path`, and returns its version."""
    try:
        os.replace(new, path)
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        return _write_in_place(path, content, "wb")
    return version


def _write_in_place(path: str, content: bytes, mode: str) -> bytes:
    """Writes a file on a file system that renames no files, such as a mounted bucket, where it appears whole when it is closed."""
    with open(path, mode) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    # Such a file system may make up another inode number when the file is closed.
    return read(path)[1]


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keeps other conditional writers of a file out.

    Raises:
      ChangedError: another writer replaced the file while this one waited for the lock.
      FileNotFoundError: the file does not exist.
      TimeoutError: another writer has held the lock for `_WAIT_SECS`.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        # Network file systems lock only files that are open for writing.
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _flock(descriptor, path)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise _changed(path)
        yield
    finally:
        # A child process that was forked meanwhile holds a copy of the descriptor, so closing alone might not unlock the file.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _flock(descriptor: int, path: str) -> None:
    end = time.monotonic() + _WAIT_SECS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"Another process has kept this file locked for {_WAIT_SECS:g} s", path
                ) from None
            time.sleep(_POLL_SECS)
        except OSError:
            # This file system has no such locks.
            return None
