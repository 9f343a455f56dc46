"""Files of the operating system."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence

# Without waiting for the other end of a pipe, and without becoming the terminal's session.
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
# How TensorStore's file driver calls a lock, which it removes itself.
_LOCK = ".__lock"
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
}


def irregular(mode: int, path: str) -> OSError:
    """Returns the error for what is not a regular file."""
    if stat.S_ISDIR(mode):
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    return OSError(errno.EINVAL, f"This is {kind}, not a regular file", path)


def open_regular(path: str, flags: int = 0) -> int:
    """Opens a regular file for reading, and returns its descriptor. Never waits: a pipe or a device is refused.

    Args:
      path: of the file.
      flags: besides those for reading.

    Raises:
      OSError: it cannot be opened; EINVAL if it is not a regular file.
    """
    try:
        descriptor = os.open(path, _OPEN | flags)
    except OSError as error:
        # A socket cannot be opened at all.
        if error.errno == errno.ENXIO:
            raise irregular(os.stat(path).st_mode, path) from error
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise irregular(mode, path)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def absolute(path: str) -> str:
    """Returns the absolute path that the operating system would reach, without ``.`` and ``..``.

    ``link/..`` is the parent of what the link points to. A ``name/..`` whose `name` does not exist stands for nothing.
    Links after the last ``..`` keep their names.
    """
    # os.path.abspath would take "link/.." for the directory that holds the link.
    parts = os.path.join(os.getcwd(), path).split(os.sep)
    after = len(parts) - parts[::-1].index(os.pardir) if os.pardir in parts else 0
    if after:
        parts[:after] = [os.path.realpath(os.sep.join(parts[:after]))]
    return os.path.normpath(os.sep.join(parts))


def spelled(path: str) -> str:
    """Returns a path that the operating system takes to `absolute(path)`: `path` itself, if that does."""
    parts = path.split(os.sep)
    if os.pardir not in parts:
        return path
    kept: list[str] = []
    left_out = False
    for part in parts:
        if kept and part in ("", os.curdir):
            continue
        follows_name = part == os.pardir and kept and kept[-1] not in ("", os.curdir, os.pardir)
        if follows_name and not os.path.isdir(os.sep.join(kept)):
            kept.pop()
            left_out = True
            continue
        kept.append(part)
    if not left_out:
        return path
    candidate, place = os.sep.join(kept) or os.curdir, absolute(path)
    # They differ where a link leads nowhere.
    return candidate if absolute(candidate) == place else place


def identity(path: str) -> str:
    """Returns one spelling for all paths of the same entry of a directory: every link on the way to it is followed."""
    directory, name = os.path.split(absolute(path))
    return os.path.join(os.path.realpath(directory), name)


def tree(directory: str) -> list[str]:
    """Returns the relative paths of all files below a directory, sorted."""
    found = []
    for folder, _, names in os.walk(directory):
        relative = os.path.relpath(folder, directory)
        found += [name if relative == "." else f"{relative}/{name}" for name in names]
    return sorted(found)


def read(path: str, limit: int | None = None) -> bytes:
    """Returns the content of a regular file. Raises OSError; EFBIG if it is larger than `limit`."""
    return read_descriptor(open_regular(path), path, limit)


def read_descriptor(descriptor: int, path: str, limit: int | None = None) -> bytes:
    """Returns the content of an open file and closes it. As `read`."""
    with open(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"This file has {size} bytes, more than such a file may have ({limit})", path)
        # Not to its end, which a file that grows does not have.
        content = file.read(size)
        while len(content) < size and (more := file.read(size - len(content))):
            content += more
        return content


def write(path: str, content: bytes) -> None:
    """Writes a file."""
    with open(path, "wb") as file:
        file.write(content)


def ranges(path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Returns parts of a file."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        return [os.pread(descriptor, length, start if start >= 0 else max(0, size + start)) for start, length in parts]
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Removes a file; one that does not exist is no error."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


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


def sync_file(path: str) -> None:
    """Syncs the content of a file."""
    _sync(path, os.O_RDONLY)


def sync_directory(directory: str) -> None:
    """Syncs the entries of a directory."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            error.filename = path
            raise
    finally:
        os.close(descriptor)
