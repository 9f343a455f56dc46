"""Removes a directory and everything in it through an open handle, so that it cannot be led to remove anything else.

`shutil.rmtree` holds one descriptor open for each level, and leaves a tree behind when the process runs out of them. This walk holds two
at most. It goes down by opening a directory inside of the current one. It goes up through ``..``, and checks that this is the directory
it came from. It unlinks links and never follows them; it never opens FIFOs and devices.
"""

import contextlib
import errno
import os
import shutil
import stat
import sys
from dataclasses import dataclass, field

from jaxckpt.storage.stores import protected
from jaxckpt.storage.stores.descriptors import patiently

# Files may appear in a directory while it is emptied, so it is emptied up to this many times.
_ROUNDS = 3
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)
_Identity = tuple[int, int]

if sys.platform != "win32":
    _DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class _Level:
    """The current directory of the walk, or one above it.

    Attributes:
      name: name in the directory above.
      identity: device and inode number.
      directories: names of the directories in it that are still to be removed.
      rounds: how often the walk has emptied each of them, for those that were not empty afterwards.
    """

    name: str
    identity: _Identity
    directories: list[str]
    rounds: dict[str, int] = field(default_factory=dict)


def remove_tree(
    parent: int | str, name: str, *, unlink_link: bool = False, identity: tuple[int, int] | None = None
) -> None:
    """Removes the directory `name` and everything in it. Entries that do not exist any more are not errors.

    After an error it goes on, removes all that it can, and then raises the first error. If this user owns a directory without having
    permission to change it, the permission is added.

    Args:
      parent: the directory that `name` is in: an open descriptor, or an absolute path.
      name: name of one entry of `parent`.
      unlink_link: if `name` is a symbolic link, remove the link; otherwise a link is an error. It is never followed.
      identity: ``(st_dev, st_ino)`` that the directory must have; None for any.

    Raises:
      ValueError: `name` is not the name of an entry, or `parent` is not absolute.
      OSError: with errno. The directory is a link or not a directory, does not have the `identity`, is or contains the working
        directory or the home directory, was moved meanwhile, contains a mounted file system, or something in it cannot be removed.
    """
    if name in ("", ".", "..") or "/" in name or os.sep in name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of an entry of a directory.")
    if isinstance(parent, str) and not os.path.isabs(parent):
        raise ValueError(f"{parent!r} is not an absolute path.")
    path, at = (os.path.join(parent, name), None) if isinstance(parent, str) else (name, parent)
    try:
        found = os.stat(path, dir_fd=at, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode) and unlink_link:
            os.unlink(path, dir_fd=at)
            return
    except FileNotFoundError:
        return
    _require(found, identity, path)
    # Removing an empty directory takes no descriptor.
    if _rmdir(path, at):
        return
    if sys.platform == "win32":
        shutil.rmtree(path)
    else:
        _Walk(path, at, (found.st_dev, found.st_ino)).run()


def _require(found: os.stat_result, identity: _Identity | None, path: str) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "This is a symbolic link, not a directory, so it was not removed", path)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    present = (found.st_dev, found.st_ino)
    if identity is not None and present != identity:
        raise OSError(errno.ESTALE, "Another directory has taken its place, so it was not removed", path)
    if (what := protected.directories().get(present)) is not None:
        raise OSError(errno.EBUSY, f"This is {what}, so it was not removed", path)


class _Walk:
    """One removal of a directory that is not empty."""

    def __init__(self, path: str, at: int | None, identity: _Identity) -> None:
        self._path = path
        self._at = at
        self._identity = identity
        self._error: OSError | None = None
        # Descriptor of the current directory, the only one that is open between two steps; -1 for none.
        self._here = -1

    def run(self) -> None:
        """Removes the directory. Raises the first error."""
        for turn in range(_ROUNDS):
            try:
                self._empty()
            finally:
                self._move(-1)
            if self._error is not None:
                raise self._error
            try:
                if _rmdir(self._path, self._at):
                    return
            except FileNotFoundError:
                return
            if turn == _ROUNDS - 1:
                raise OSError(errno.ENOTEMPTY, "New files appear in this directory while it is removed", self._path)

    def _empty(self) -> None:
        try:
            self._here = _open_directory(self._path, self._at)
        except FileNotFoundError:
            return
        if _identity_of(self._here) != self._identity:
            raise OSError(errno.ESTALE, "Another directory took its place while it was removed", self._path)
        above: list[_Level] = []
        level = _Level("", self._identity, self._unlink_files())
        while True:
            if level.directories:
                name = level.directories.pop()
                below = self._enter(name)
                if below is not None:
                    above.append(level)
                    level = below
            elif above:
                emptied, level = level, above.pop()
                self._leave(emptied, level)
            else:
                return

    def _enter(self, name: str) -> _Level | None:
        """Enters a directory and unlinks the files in it. Returns None if the directory is gone, or cannot be entered."""
        try:
            if _rmdir(name, self._here):
                return None
            below = _open_directory(name, self._here)
        except FileNotFoundError:
            return None
        except OSError as error:
            # A directory may have been replaced by a link after it was listed.
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                self._unlink(name)
            else:
                self._note(error)
            return None
        identity = _identity_of(below)
        if identity[0] != self._identity[0]:
            os.close(below)
            self._note(OSError(errno.EXDEV, "Another file system is mounted here, so it was not touched", name))
            return None
        self._move(below)
        return _Level(name, identity, self._unlink_files())

    def _leave(self, emptied: _Level, level: _Level) -> None:
        """Returns to the directory above, and removes the emptied one."""
        self._move(patiently(lambda: os.open(os.pardir, _DIRECTORY, dir_fd=self._here)))
        if _identity_of(self._here) != level.identity:
            raise OSError(
                errno.ESTALE, f"{emptied.name!r} in this directory was moved while it was removed", self._path
            )
        try:
            if _rmdir(emptied.name, self._here) or self._error is not None:
                return
        except FileNotFoundError:
            return
        except OSError as error:
            return self._note(error)
        rounds = level.rounds[emptied.name] = level.rounds.get(emptied.name, 1) + 1
        if rounds > _ROUNDS:
            return self._note(
                OSError(errno.ENOTEMPTY, "New files appear in this directory while it is removed", emptied.name)
            )
        level.directories.append(emptied.name)
        return None

    def _unlink_files(self) -> list[str]:
        """Unlinks all entries of the current directory that are not directories, and returns the names of those that are."""
        try:
            with patiently(lambda: os.scandir(self._here)) as entries:
                listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError as error:
            self._note(error)
            return []
        for name, is_directory in listed:
            if not is_directory:
                self._unlink(name)
        return [name for name, is_directory in listed if is_directory]

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._here)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._note(error)

    def _move(self, descriptor: int) -> None:
        left, self._here = self._here, descriptor
        if left >= 0:
            os.close(left)

    def _note(self, error: OSError) -> None:
        if self._error is None:
            name = error.filename if isinstance(error.filename, str) else ""
            self._error = OSError(error.errno, f"{error.strerror} ({name!r} in this directory)", self._path)
            self._error.__cause__ = error


def _rmdir(name: str, at: int | None) -> bool:
    """Removes an empty directory; returns False if it is not empty."""
    try:
        os.rmdir(name, dir_fd=at)
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
        return False
    return True


def _open_directory(name: str, at: int | None) -> int:
    """Opens a directory to list and change it. Does not follow a link to a directory."""
    try:
        descriptor = patiently(lambda: os.open(name, _DIRECTORY, dir_fd=at))
    except PermissionError:
        _permit(name, at)
        descriptor = patiently(lambda: os.open(name, _DIRECTORY, dir_fd=at))
    mode = os.fstat(descriptor).st_mode
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        # This fails for another user's directory. Unlinking then raises the error.
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, stat.S_IRWXU)
    return descriptor


def _permit(name: str, at: int | None) -> None:
    """Gives this user permission for a directory that cannot be opened. Does not follow a link."""
    if os.chmod in os.supports_follow_symlinks:
        return os.chmod(name, stat.S_IRWXU, dir_fd=at, follow_symlinks=False)
    if sys.platform != "linux":
        return None
    descriptor = patiently(lambda: os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at))
    try:
        # Without permission, only an O_PATH descriptor can be opened, and os.fchmod does not accept that kind.
        os.chmod(f"/proc/self/fd/{descriptor}", stat.S_IRWXU)
    finally:
        os.close(descriptor)
    return None


def _identity_of(descriptor: int) -> _Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
