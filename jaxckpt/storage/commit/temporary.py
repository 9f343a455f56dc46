"""Temporary directories: names that say whose they are, so that a crash's leftovers can be told from a save that is running.

A save works in ``<final>.jaxckpt-tmp-<owner>-<random>/`` and renames out of it; a deletion renames into one. The owner mark is the
machine (and process namespace), the process id and the time that process started: a dead process's directories are leftovers, a live
one's never are. For a process on another machine, all we know is when it last changed a file.

Only a real directory of such a name, which holds nothing but what jaxckpt puts there, is one. A file, a link, or a directory with other
things in it is none of jaxckpt's, and is left alone.
"""

import errno
import os
import re
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

from jaxckpt._lib import numbering, processes
from jaxckpt.storage import stores
from jaxckpt.storage.commit import removal
from jaxckpt.storage.commit.checkpoint_path import CheckpointPath

_MARK = ".jaxckpt-tmp-"
_NAME = re.compile(
    r"(?P<final>.+)\.jaxckpt-tmp-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-(?P<random>[0-9a-f]{8})", re.DOTALL
)
# Another machine's save that has not touched a file for this long is dead: far beyond any timeout.
FOREIGN_DEAD_AFTER_SECS = 24 * 3600.0
_NEW, _PREVIOUS, _DELETED, MARK = "checkpoint", "previous", "deleted", "mark"
# Orbax writes into a directory of its own beside the new one; a network file system renames what is deleted while it is open.
_CONTENT = re.compile(rf"({_NEW}|{_PREVIOUS}|{_DELETED}|{MARK}|{_NEW}\.orbax-checkpoint-tmp.*|\.nfs.*)", re.DOTALL)
# Those of this process that are in use, by name, which its random part makes unique, whatever path leads there. One that an interrupt
# dropped is not in use: a sweep removes it.
_active: "weakref.WeakValueDictionary[str, TemporaryDirectory]" = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Leftover:
    """A temporary directory.

    Attributes:
      path: the directory.
      final: path of the checkpoint that it was made for.
      bytes: size of its files; None in a bucket, which does not tell.
      age_secs: seconds since anything in it changed.
      live: a running process owns it (or, of another machine, may own it): not a leftover yet.
      owner: the process, in words.
    """

    path: str
    final: str
    bytes: int | None
    age_secs: float
    live: bool
    owner: str


class TemporaryDirectory:
    """A new temporary directory of this process, from `__init__` until `remove`.

    Attributes:
      path: of the directory.
      new: path in it, of what is written and then renamed.
      previous: path in it, of what is moved aside while it is replaced. A sweep moves it back.
      deleted: path in it, of what is moved away to be deleted.
    """

    def __init__(self, final: CheckpointPath) -> None:
        """Makes the directory beside `final`, with its parents.

        Raises:
          OSError: with errno.
        """
        try:
            os.makedirs(final.directory, exist_ok=True)
        except FileExistsError as error:
            # A file, or a link that leads nowhere, is where the directory should be.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), final.directory) from error
        self.path = new_name(str(final))
        self.new = os.path.join(self.path, _NEW)
        self.previous = os.path.join(self.path, _PREVIOUS)
        self.deleted = os.path.join(self.path, _DELETED)
        _active[os.path.basename(self.path)] = self
        os.mkdir(self.path)

    def remove(self) -> None:
        """Removes the directory and everything in it. Raises OSError: with errno; a sweep tries again."""
        try:
            remove(self.path)
        finally:
            _active.pop(os.path.basename(self.path), None)


def new_name(final: str) -> str:
    """Returns the path of a temporary directory of this process that is not there yet."""
    return f"{final}{_MARK}{processes.host()}-{os.getpid()}-{processes.start()}-{secrets.token_hex(4)}"


def remove(path: str) -> None:
    """Removes a temporary directory and everything in it; what is gone already is no error.

    Args:
      path: absolute.

    Raises:
      ValueError: the path is not that of a temporary directory.
      OSError: with errno. It is a link or a file, or holds what jaxckpt does not put there: then nothing has been removed.
    """
    parent, name = os.path.split(path)
    if not is_temporary(name):
        raise ValueError(f"{path} is not called like a temporary directory of jaxckpt, so it is not removed.")
    try:
        os.rmdir(path)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    try:
        status = os.lstat(path)
        foreign = _foreign(path)
    except FileNotFoundError:
        return
    if foreign:
        raise OSError(
            errno.ENOTEMPTY, f"It holds {foreign[0]!r}, which is not jaxckpt's, so it is not removed; look at it", path
        )
    # Of the directory that was looked at, or not at all.
    removal.remove_tree(parent, name, identity=(status.st_dev, status.st_ino))


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a temporary directory of jaxckpt."""
    return _NAME.fullmatch(name) is not None


def final_name(name: str) -> str:
    """Returns the name of the checkpoint that the temporary directory `name` was made for; any other name as it is."""
    match = _NAME.fullmatch(name)
    return name if match is None else match["final"]


def is_deletion(path: str) -> bool:
    """Whether a temporary directory holds what is being deleted, rather than what is being saved."""
    return os.path.lexists(os.path.join(path, _DELETED))


def is_for(final: str, name: str | None) -> bool:
    """Whether a checkpoint is called `name` or ``<name>-<number>``; None stands for every name."""
    return name is None or numbering.belongs(final, name)


def leftovers(directory: str, name: str | None = None) -> list[Leftover]:
    """Lists the temporary directories in `directory`, oldest first, live ones included.

    Args:
      directory: where to look (not below).
      name: only those made for checkpoints called `name` or ``<name>-<number>``.
    """
    found = [_describe(path, match) for path, match in _matches(stores.absolute(directory), name)]
    return sorted(found, key=lambda leftover: -leftover.age_secs)


def _matches(directory: str, name: str | None) -> Iterator[tuple[str, re.Match[str]]]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in names:
        match = _NAME.fullmatch(entry)
        if match is None:
            continue
        path = os.path.join(directory, entry)
        if is_for(match["final"], name) and _is_ours(path):
            yield path, match


def _is_ours(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode) and not _foreign(path)
    except FileNotFoundError:
        # Its owner has removed it meanwhile.
        return False
    except OSError:
        # It cannot be looked into. Whoever wants to remove it is told why.
        return True


def _foreign(path: str) -> list[str]:
    """Returns the names in a directory that jaxckpt does not put there, sorted. Raises OSError."""
    return sorted(entry for entry in os.listdir(path) if not _CONTENT.fullmatch(entry))


def _describe(path: str, match: re.Match[str]) -> Leftover:
    size, changed = _size(path)
    age = max(0.0, time.time() - changed)
    pid = int(match["pid"])
    if match["host"] != processes.host():
        live = age < FOREIGN_DEAD_AFTER_SECS
        owner = f"process {pid} of another machine"
    else:
        live = processes.is_running(pid, int(match["start"]))
        if pid == os.getpid() and live:
            live = os.path.basename(path) in _active
        owner = f"process {pid}" + ("" if live else ", which has ended")
    return Leftover(path, os.path.join(os.path.dirname(path), match["final"]), size, age, live, owner)


def _size(path: str) -> tuple[int, float]:
    total, changed = 0, 0.0
    for folder, _, names in os.walk(path):
        for name in [".", *names]:
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            changed = max(changed, status.st_mtime)
            total += status.st_size if name != "." else 0
    return total, changed


def sweep(directory: str, name: str | None = None) -> list[str]:
    """Removes the leftovers of ended processes; a checkpoint that one was replacing when it died is put back first.

    Args, as for `leftovers`.

    Returns:
      The paths that were removed.
    """
    removed = []
    failed: OSError | None = None
    for leftover in leftovers(directory, name):
        if leftover.live:
            continue
        recover(leftover)
        try:
            remove(leftover.path)
        except OSError as error:
            # The others go all the same; the first error is raised when they have.
            failed = failed or error
            continue
        removed.append(leftover.path)
    if failed is not None:
        raise failed
    return removed


def recover_missing(final: str) -> bool:
    """Puts the checkpoint `final` back if a dead process had moved it aside and not replaced it yet."""
    directory, name = os.path.split(stores.absolute(final))
    return any(not leftover.live and recover(leftover) for leftover in leftovers(directory, name))


def recover(leftover: Leftover) -> bool:
    """Puts back a checkpoint that a dead process had moved aside and not replaced yet. Returns whether there was one."""
    previous = os.path.join(leftover.path, _PREVIOUS)
    if os.path.lexists(previous) and not os.path.lexists(leftover.final):
        os.rename(previous, leftover.final)
        return True
    return False
