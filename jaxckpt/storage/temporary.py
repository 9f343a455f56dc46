"""Temporary directories: names that say whose they are, so that a crash's leftovers can be told from a save that is running.

A save works in ``<final>.jaxckpt-tmp-<owner>-<random>/`` and renames out of it; a deletion renames into one. The owner mark is the
machine (and process namespace), the process id and the time that process started: a dead process's directories are leftovers, a live
one's never are. Of another machine nothing can be known but how long nothing has changed.
"""

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

from jaxckpt.storage import files, processes

_MARK = ".jaxckpt-tmp-"
_NAME = re.compile(
    r"(?P<final>.+)\.jaxckpt-tmp-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-(?P<random>[0-9a-f]{8})"
)
# Another machine's save that has not touched a file for this long is dead: far beyond any timeout.
FOREIGN_DEAD_AFTER_SECS = 24 * 3600.0
NEW = "checkpoint"
PREVIOUS = "previous"
DELETED = "deleted"
# Names of this process's own, which their random part makes unique, whatever path leads there.
_active: set[str] = set()


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


def create(final: str) -> str:
    """Makes a temporary directory of this process beside `final`, with its parents, and returns its path.

    Raises:
      OSError: with errno.
    """
    final = files.absolute(final)
    parent = os.path.dirname(final)
    try:
        os.makedirs(parent, exist_ok=True)
    except FileExistsError as error:  # A file, or a link that leads nowhere, is where the directory should be.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), parent) from error
    path = new_name(final)
    _active.add(os.path.basename(path))
    try:
        os.mkdir(path)
    except BaseException:
        _active.discard(os.path.basename(path))
        raise
    return path


def new_name(final: str) -> str:
    """Returns the path of a temporary directory of this process that is not there yet."""
    return f"{final}{_MARK}{processes.host()}-{os.getpid()}-{processes.start()}-{secrets.token_hex(4)}"


def remove(path: str) -> None:
    """Removes a temporary directory and everything in it; what is gone already is no error."""
    try:
        shutil.rmtree(path, ignore_errors=True)
        if os.path.lexists(path):
            shutil.rmtree(path)  # Says why.
    finally:
        _active.discard(os.path.basename(path))  # Whatever is left of it, a sweep may have.


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a temporary directory of jaxckpt."""
    return _NAME.fullmatch(name) is not None


def final_name(name: str) -> str:
    """Returns the name of the checkpoint that the temporary directory `name` was made for; any other name as it is."""
    match = _NAME.fullmatch(name)
    return name if match is None else match["final"]


def is_deletion(path: str) -> bool:
    """Whether a temporary directory holds what is being deleted, rather than what is being saved."""
    return os.path.lexists(os.path.join(path, DELETED))


def is_for(final: str, name: str | None) -> bool:
    """Whether a checkpoint is called `name` or ``<name>-<number>``; None stands for every name."""
    return name is None or final == name or re.fullmatch(re.escape(name) + r"-\d+", final) is not None


def leftovers(directory: str, name: str | None = None) -> list[Leftover]:
    """Lists the temporary directories in `directory`, oldest first, live ones included.

    Args:
      directory: where to look (not below).
      name: only those made for checkpoints called `name` or ``<name>-<number>``.
    """
    found = [_describe(path, match) for path, match in _matches(directory, name)]
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
        if is_for(match["final"], name):
            yield os.path.join(directory, entry), match


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
    for leftover in leftovers(directory, name):
        if leftover.live:
            continue
        recover(leftover)
        remove(leftover.path)
        removed.append(leftover.path)
    return removed


def recover_missing(final: str) -> bool:
    """Puts the checkpoint `final` back if a dead process had moved it aside and not replaced it yet."""
    directory, name = os.path.split(files.absolute(final))
    return any(not leftover.live and recover(leftover) for leftover in leftovers(directory, name))


def recover(leftover: Leftover) -> bool:
    """Puts back a checkpoint that a dead process had moved aside and not replaced yet. Returns whether there was one."""
    previous = os.path.join(leftover.path, PREVIOUS)
    if os.path.isdir(previous) and not os.path.lexists(leftover.final):
        os.rename(previous, leftover.final)
        return True
    return False
