"""Writing a local file only if it is still the one that was read, as storage servers do.

The new content is written beside the file, in a temporary directory, and renamed over it while a lock on the old file keeps other writers
out. Where the file system has no locks, two writers at the same moment are not told apart.
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

# A holder of the lock needs milliseconds; one that needs longer was stopped, or hangs on a dead disk.
_WAIT_SECS = 30.0
_POLL_SECS = 0.01
# A sweep of leftovers knows this name; see `commit.temporary`.
_CONTENT = "checkpoint"


def read(path: str, limit: int | None = None) -> tuple[bytes | None, bytes]:
    """Returns the content of a file and its version; None and `ABSENT` if there is none. Arguments and errors as for `local.read`."""
    try:
        descriptor = local.open_regular(path)
    except FileNotFoundError:
        return None, ABSENT
    status = os.fstat(descriptor)
    content = local.read_descriptor(descriptor, path, limit)
    return content, _version(content, status)


def _version(content: bytes, status: os.stat_result) -> bytes:
    """Returns what tells a file from an earlier one at its path, also if both say the same."""
    place = f"{status.st_dev} {status.st_ino} {status.st_mtime_ns} ".encode()
    return hashlib.blake2b(place + content, digest_size=16).digest()


def write(path: str, content: bytes, expected: bytes) -> bytes:
    """Writes a file, whole or not at all, and syncs it and its directory.

    Args:
      path: of the file.
      content: of the file.
      expected: the version that it must have; `ABSENT` if there must be none.

    Returns:
      The new version.

    Raises:
      ChangedError: it has another version.
      OSError: with errno; nothing has changed, unless it was the sync of the directory that failed.
    """
    work = Owner.new(token_bytes=4)
    scratch = owner.temporary_path(path, work)
    new = os.path.join(scratch, _CONTENT)
    # What an interrupt drops is a leftover, so the work lasts no longer than this object.
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
            _create(new, path)
        else:
            with _locked(path):
                if read(path)[1] != expected:
                    raise _changed(path)
                os.replace(new, path)
    except FileNotFoundError as error:
        raise _changed(path) from error
    except OSError as error:
        error.filename = path if error.filename in (None, new) else error.filename
        raise
    finally:
        # What cannot be removed is a leftover in the directory of the file.
        with contextlib.suppress(OSError):
            local.remove(new)
            os.rmdir(scratch)
        work.end()
    local.sync_directory(os.path.dirname(path))
    return version


class _Work:
    """Stands for a write that goes on."""


def _changed(path: str) -> ChangedError:
    return ChangedError(errno.EAGAIN, "Somebody else has changed it at the same time", path)


def _create(new: str, path: str) -> None:
    """Gives a finished file its name, if nothing has that name."""
    try:
        if not renames.rename_new(new, path):
            os.link(new, path)
    except FileExistsError as error:
        raise _changed(path) from error


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keeps other conditional writers of a file out.

    Raises:
      ChangedError: the file was replaced while this waited for its turn.
      FileNotFoundError: there is no such file.
      TimeoutError: another writer has held the lock for too long.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        # Network file systems lock only what is open for writing.
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _flock(descriptor, path)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise _changed(path)
        yield
    finally:
        # Closing would do, but for a child process that was forked meanwhile and holds a copy of the descriptor.
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
