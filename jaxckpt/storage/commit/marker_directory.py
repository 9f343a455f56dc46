"""Checkpoints that a marker commits. A directory is a checkpoint exactly while its marker exists.

The marker is the file that Orbax uses, ``commit_success.txt``. It is written last and removed first. Readers do not see a directory
without it. Such a directory has a lease that names the process that works on it (see `leases`). By the lease, the next save recognizes
and removes the leftover of a dead process.

A committed checkpoint is replaced in two steps, so that readers always find a whole one. First, the new checkpoint is written and
committed beside the old one, in a temporary directory: it is staged. Second, the lease "replace" is put into the directory of the old
checkpoint, its marker and files are removed, the new files are copied there, and the marker is written. While there is a lease "replace"
and no marker, readers read the staged checkpoint. If the process dies meanwhile, the next sweep finds its lease and finishes the copy.
"""

import logging

from jaxckpt.storage import stores
from jaxckpt.storage.commit import leases, recognition
from jaxckpt.storage.commit.leases import Lease
from jaxckpt.storage.item import description
from jaxckpt.storage.item.description import MARKER

_log = logging.getLogger("jaxckpt")


def is_marked(path: str) -> bool:
    """Whether a directory has a marker, from jaxckpt or from Orbax."""
    return stores.is_file(f"{stores.absolute(path)}/{MARKER}")


def home(path: str) -> str | None:
    """Returns the directory that holds the committed checkpoint `path`; None if there is no such checkpoint.

    While the checkpoint is being replaced, this is the directory of the staged checkpoint; otherwise it is `path`.
    """
    path = stores.absolute(path)
    if is_marked(path):
        return path
    lease = leases.read(path)
    if lease is None and stores.is_local(path) and recognition.has_files(path) and not recognition.is_temporary(path):
        # A program that can rename here, such as plain Orbax, has written it elsewhere and given it its name when it was whole.
        return path if leases.read(path) is None else None
    if lease is None or lease.action != "replace" or lease.staged is None:
        return None
    if is_marked(lease.staged):
        return lease.staged
    # The replacement may have ended between the two checks.
    return path if is_marked(path) else None


def mark(directory: str) -> None:
    """Commits a directory, after all its other files have been written."""
    description.mark(directory, directory)
    stores.sync_tree(directory)


def clear(directory: str) -> None:
    """Removes all files of a directory except the lease. Removes the marker first."""
    stores.remove(f"{directory}/{MARKER}")
    stores.remove_tree(directory, leaving=(leases.FILE,))


def remove(directory: str) -> None:
    """Removes a directory of this process or of a dead one. Removes the lease last."""
    clear(directory)
    stores.remove(f"{directory}/{leases.FILE}")
    stores.prune(directory)


def replace(path: str, staged: str, over: bytes | None = None) -> None:
    """Replaces the checkpoint at `path` by a staged one.

    Args:
      path: path of the checkpoint.
      staged: directory of the staged checkpoint, which is committed.
      over: version of the lease of the dead process that began this replacement; None to begin one.
    """
    lease = Lease(path, "replace", staged, over)
    try:
        clear(path)
        stores.copy(staged, path, leaving=(MARKER, leases.FILE))
        lease.confirm()
        mark(path)
    except BaseException:
        lease.stop()
        raise
    release(lease)


def release(lease: Lease) -> None:
    """Removes the lease of a committed checkpoint. A lease that cannot be removed does no harm, and the next sweep tries again."""
    try:
        lease.release()
    except OSError as error:
        _log.warning("Could not remove a lease: %s", error)


def finish_replacement(path: str) -> bool:
    """Finishes the replacement of the checkpoint at `path`, if a dead process began one. Returns whether it did so."""
    lease, version = leases.read_versioned(path)
    if lease is None or lease.action != "replace" or lease.live or lease.staged is None or is_marked(path):
        return False
    if not is_marked(lease.staged):
        return False
    replace(path, lease.staged, version)
    remove(lease.staged)
    return True


def is_needed(staged: str, final: str) -> bool:
    """Whether the checkpoint `final` is incomplete, so that the staged checkpoint is needed to finish its replacement."""
    lease = leases.read(final)
    return lease is not None and lease.action == "replace" and lease.staged == staged and not is_marked(final)
