"""Checkpoints that a marker commits. A directory is a checkpoint exactly while its marker exists.

The marker is the file that Orbax uses, ``commit_success.txt``. It is written last and removed first. Readers do not see a directory
without it. Such a directory has a note that names the process that works on it (see `claims`). By the note, the next save recognizes
and removes the leftover of a dead process.

A committed checkpoint is replaced in two steps, so that readers always find a whole one. First, the new checkpoint is written and
committed beside the old one, in a temporary directory: it is staged. Second, the note "replace" is put into the directory of the old
checkpoint, its marker and files are removed, the new files are copied there, and the marker is written. While there is a note "replace"
and no marker, readers read the staged checkpoint. If the process dies meanwhile, the next sweep finds its note and finishes the copy.
"""

import logging

from jaxckpt.storage import stores
from jaxckpt.storage.commit import claims, marks
from jaxckpt.storage.commit.claims import Claim
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
    note = claims.read(path)
    if note is None and stores.is_local(path) and marks.has_any(path) and not marks.is_temporary(path):
        # A program that can rename here, such as plain Orbax, has written it elsewhere and given it its name when it was whole.
        return path if claims.read(path) is None else None
    if note is None or note.action != "replace" or note.staged is None:
        return None
    if is_marked(note.staged):
        return note.staged
    # The replacement may have ended between the two checks.
    return path if is_marked(path) else None


def mark(directory: str) -> None:
    """Commits a directory, after all its other files have been written."""
    description.mark(directory, directory)
    stores.sync_tree(directory)


def clear(directory: str) -> None:
    """Removes all files of a directory except the note. Removes the marker first."""
    stores.remove(f"{directory}/{MARKER}")
    stores.remove_tree(directory, leaving=(claims.FILE,))


def remove(directory: str) -> None:
    """Removes a directory of this process or of a dead one. Removes the note last."""
    clear(directory)
    stores.remove(f"{directory}/{claims.FILE}")
    stores.prune(directory)


def replace(path: str, staged: str, over: bytes | None = None) -> None:
    """Replaces the checkpoint at `path` by a staged one.

    Args:
      path: path of the checkpoint.
      staged: directory of the staged checkpoint, which is committed.
      over: version of the note of the dead process that began this replacement; None to begin one.
    """
    claim = Claim(path, "replace", staged, over)
    try:
        clear(path)
        stores.copy(staged, path, leaving=(MARKER, claims.FILE))
        claim.confirm()
        mark(path)
    except BaseException:
        claim.stop()
        raise
    release(claim)


def release(claim: Claim) -> None:
    """Removes the note of a committed checkpoint. A note that cannot be removed does no harm, and the next sweep tries again."""
    try:
        claim.release()
    except OSError as error:
        _log.warning("Could not remove a note: %s", error)


def finish_replacement(path: str) -> bool:
    """Finishes the replacement of the checkpoint at `path`, if a dead process began one. Returns whether it did so."""
    note, version = claims.read_versioned(path)
    if note is None or note.action != "replace" or note.live or note.staged is None or is_marked(path):
        return False
    if not is_marked(note.staged):
        return False
    replace(path, note.staged, version)
    remove(note.staged)
    return True


def is_needed(staged: str, final: str) -> bool:
    """Whether the checkpoint `final` is incomplete, so that the staged checkpoint is needed to finish its replacement."""
    note = claims.read(final)
    return note is not None and note.action == "replace" and note.staged == staged and not is_marked(final)
