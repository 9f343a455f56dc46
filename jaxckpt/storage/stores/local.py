"""Operations on local files."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence

# O_NONBLOCK: opening a pipe does not wait for its other end. O_NOCTTY: opening a terminal does not attach the process to it.
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
# End of the name of a lock file of TensorStore's file driver, which removes it itself.
_LOCK = ".__lock"
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
}


def irregular(mode: int, path: str) -> OSError:
    """Returns the error for something that is not a regular file.

    Args:
      mode: its `st_mode`.
      path: its path, for the error.
    """
    if stat.S_ISDIR(mode):
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    return OSError(errno.EINVAL, f"This is {kind}, not a regular file", path)


def open_regular(path: str, flags: int = 0) -> int:
    """Opens a regular file for reading, and returns its descriptor. Never waits: it refuses a pipe or a device.

    Args:
      path: path of the file.
      flags: more flags of `os.open`, added to those for reading.

    Raises:
      OSError: the file cannot be opened; EINVAL if it is not a regular file.
    """
    try:
        descriptor = os.open(path, _OPEN | flags)
    except OSError as error:
        # Opening a socket fails with ENXIO.
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

    ``link/..`` is the parent of the link's target. A ``name/..`` whose `name` does not exist is left out.
    Links after the last ``..`` are not resolved.
    """
    # os.path.abspath would replace "link/.." by the directory that holds the link.
    parts = os.path.join(os.getcwd(), path).split(os.sep)
    after = len(parts) - parts[::-1].index(os.pardir) if os.pardir in parts else 0
    if after:
        parts[:after] = [os.path.realpath(os.sep.join(parts[:after]))]
    return os.path.normpath(os.sep.join(parts))


def spelled(path: str) -> str:
    """Returns a path that leads the operating system to `absolute(path)`: `path` itself, if it does so."""
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
    # The two differ if a link is broken.
    return candidate if absolute(candidate) == place else place


def identity(path: str) -> str:
    """Returns one spelling for all paths of the same directory entry. Resolves links in the directory, but not the entry itself."""
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
    """Returns the content of a regular file.

    Args:
      path: path of the file.
      limit: the largest size in bytes that is read; None for any size.

    Raises:
      OSError: the file cannot be read; EINVAL if it is not a regular file, EFBIG if it is larger than `limit`.
    """
    return read_descriptor(open_regular(path), path, limit)


def read_descriptor(descriptor: int, path: str, limit: int | None = None) -> bytes:
    """Returns the content of an open file and closes it.

    Args:
      descriptor: of the open file.
      path: path of the file, for errors.
      limit: the largest size in bytes that is read; None for any size.

    Raises:
      OSError: the file cannot be read; EFBIG if it is larger than `limit`.
    """
    with open(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"This file has {size} bytes, more than such a file may have ({limit})", path)
        # Read `size` bytes, not up to the end: a file that keeps growing would be read forever.
        content = file.read(size)
        while len(content) < size and (more := file.read(size - len(content))):
            content += more
        return content


def write(path: str, content: bytes) -> None:
    """Writes a file in place, without a sync."""
    with open(path, "wb") as file:
        file.write(content)


def ranges(path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Returns parts of a file. See `Store.ranges`."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        return [os.pread(descriptor, length, start if start >= 0 else max(0, size + start)) for start, length in parts]
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Removes a file. A file that does not exist is not an error."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sync_tree(directory: str) -> None:
    """Syncs `directory`, and every file and directory below it."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            try:
                _sync(os.path.join(folder, name), os.O_RDONLY)
            except FileNotFoundError:
                # Another process writes into the same directory, and its TensorStore has removed a lock file meanwhile.
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
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            error.filename = path
            raise
    finally:
        os.close(descriptor)
