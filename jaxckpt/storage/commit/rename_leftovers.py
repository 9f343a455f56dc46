"""Finds and removes the temporary directories of running and dead processes on a disk."""

import os
import stat
import time
from collections.abc import Iterator

from jaxckpt._lib import numbering
from jaxckpt.storage import owner, stores
from jaxckpt.storage.commit import temporary
from jaxckpt.storage.commit.committer import Leftover
from jaxckpt.storage.owner import Owner

# If a save on another machine has not changed a file for this long, it is dead. This is far longer than usual timeouts.
FOREIGN_DEAD_AFTER_SECS = 24 * 3600.0


def is_for(final: str, name: str | None) -> bool:
    """Whether a checkpoint is called `name` or ``<name>-<number>``.

    Args:
      final: name of the checkpoint.
      name: the wanted name; None for every name.
    """
    return name is None or numbering.belongs(final, name)


def leftovers(directory: str, name: str | None = None) -> list[Leftover]:
    """Lists the temporary directories in `directory`. See `Committer.leftovers`."""
    found = [_describe(path, final, work) for path, final, work in _found(stores.absolute(directory), name)]
    return sorted(found, key=lambda leftover: -leftover.age_secs)


def _found(directory: str, name: str | None) -> Iterator[tuple[str, str, Owner]]:
    """Yields path, name of the checkpoint, and owner of each temporary directory."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in names:
        parsed = owner.of_temporary(entry)
        if parsed is None:
            continue
        final, work = parsed
        path = os.path.join(directory, entry)
        if is_for(final, name) and _is_ours(path):
            yield path, final, work


def _is_ours(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode) and not temporary.strangers_in(path)
    except FileNotFoundError:
        # Its owner has removed it meanwhile.
        return False
    except OSError:
        # It cannot be listed. An attempt to remove it will raise the reason.
        return True


def _describe(path: str, final: str, work: Owner) -> Leftover:
    size, changed = _size(path)
    age = max(0.0, time.time() - changed)
    live = work.is_alive(age, FOREIGN_DEAD_AFTER_SECS)
    return Leftover(path, os.path.join(os.path.dirname(path), final), size, age, live, work.in_words(live))


def _size(path: str) -> tuple[int, float]:
    """Returns the bytes of all files in a directory, and the time of the latest change in it."""
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
    """Removes the temporary directories of ended processes. See `Committer.sweep`."""
    removed = []
    failed: OSError | None = None
    for leftover in leftovers(directory, name):
        if leftover.live:
            continue
        recover(leftover)
        try:
            temporary.remove(leftover.path)
        except OSError as error:
            # Remove the others too, then raise the first error.
            failed = failed or error
            continue
        removed.append(leftover.path)
    if failed is not None:
        raise failed
    return removed


def recover_missing(final: str) -> bool:
    """Puts the checkpoint `final` back if a process moved it aside to replace it, and died before it did. Returns whether it did so."""
    directory, name = os.path.split(stores.absolute(final))
    return any(not leftover.live and recover(leftover) for leftover in leftovers(directory, name))


def recover(leftover: Leftover) -> bool:
    """Puts back the checkpoint in a leftover that a process moved aside to replace it. Returns whether there was one."""
    previous = temporary.previous_in(leftover.path)
    if os.path.lexists(previous) and not os.path.lexists(leftover.final):
        os.rename(previous, leftover.final)
        return True
    return False


def saving(path: str) -> str | None:
    """Returns, in words, the running process that is saving a checkpoint to `path` now; None if there is none."""
    directory, name = os.path.split(stores.absolute(path))
    for leftover in leftovers(directory, name):
        if leftover.live and os.path.basename(leftover.final) == name and temporary.is_save(leftover.path):
            return leftover.owner
    return None
