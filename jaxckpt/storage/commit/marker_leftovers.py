"""Finds and removes the directories in which running and dead processes have left a lease. See `leases`."""

import os

from jaxckpt.storage import owner, stores
from jaxckpt.storage.commit import leases, marker_directory
from jaxckpt.storage.commit.committer import Leftover
from jaxckpt.storage.commit.leases import Lease
from jaxckpt.storage.commit.rename_leftovers import is_for
from jaxckpt.storage.item.description import MARKER


def leftovers(directory: str, name: str | None = None) -> list[Leftover]:
    """Lists the directories in which a process works or worked. See `Committer.leftovers`. Sizes are not known."""
    found = []
    for entry, is_marked in _leased(directory, name):
        path = os.path.join(directory, entry)
        lease = leases.read(path)
        if lease is None or (is_marked and not owner.is_temporary(entry)):
            continue
        final = os.path.join(directory, owner.final_name(entry))
        found.append(Leftover(path, final, None, lease.age_secs, lease.live, lease.in_words))
    return sorted(found, key=lambda leftover: -leftover.age_secs)


def _leased(directory: str, name: str | None) -> list[tuple[str, bool]]:
    """Returns the name of each directory that has a lease, and whether it also has a marker."""
    files: dict[str, set[str]] = {}
    for key in stores.tree(directory):
        entry, _, rest = key.partition("/")
        if rest in (MARKER, leases.FILE):
            files.setdefault(entry, set()).add(rest)
    return [
        (entry, MARKER in found)
        for entry, found in sorted(files.items())
        if leases.FILE in found and is_for(owner.final_name(entry), name)
    ]


def sweep(directory: str, name: str | None = None) -> list[str]:
    """Removes leftovers of dead processes, after finishing the replacements that they had begun. See `Committer.sweep`."""
    directory = stores.absolute(directory)
    removed = []
    # Staged checkpoints come last, because a replacement may need them.
    for entry, is_marked in sorted(_leased(directory, name), key=lambda item: owner.is_temporary(item[0])):
        path = f"{directory}/{entry}"
        lease, version = leases.read_versioned(path)
        if lease is None or lease.live:
            continue
        if not owner.is_temporary(entry):
            if not is_marked and marker_directory.finish_replacement(path):
                removed.append(lease.staged or path)
            elif _remove(path, version):
                removed.append(path)
            continue
        if marker_directory.is_needed(path, f"{directory}/{owner.final_name(entry)}"):
            continue
        marker_directory.remove(path)
        removed.append(path)
    return removed


def _remove(path: str, version: bytes) -> bool:
    """Removes the unfinished checkpoint of a dead process; of a committed one, removes the lease only. Returns whether it was unfinished.

    Another process may begin to save here at any moment, and the dead process may have committed since the directory was listed. So this
    process leases the directory, and looks again.

    Args:
      path: path of the checkpoint.
      version: version of the lease of the dead process.
    """
    try:
        lease = Lease(path, "delete", over=version)
    except FileExistsError:
        return False
    if marker_directory.is_marked(path):
        # The process died after the commit of its save, or before its deletion removed the marker.
        marker_directory.release(lease)
        return False
    try:
        marker_directory.clear(path)
    except BaseException:
        lease.stop()
        raise
    lease.release()
    stores.prune(path)
    return True
