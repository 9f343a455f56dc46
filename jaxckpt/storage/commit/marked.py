"""Checkpoints that a marker commits: a checkpoint is there exactly while its marker is.

The marker is the file that Orbax uses, `commit_success.txt`: written last, removed first. A directory without it is not seen by anybody.
While a directory is without one, a note says who works on it (`claims`), so that the next save can remove what a dead process left.

A committed checkpoint is replaced in two steps, so that a whole one can be had at any moment. The new one is first written and
committed beside it, in a temporary directory. Then the note "replace" is put into the old one, its marker and files are removed, the new
files are copied there, and the marker is written. As long as there is a note "replace" and no marker, readers read the new checkpoint
where it was staged. A sweep that finds the note of a dead process finishes the copy.
"""

import logging

from jaxckpt.storage import stores
from jaxckpt.storage.commit import claims
from jaxckpt.storage.commit.claims import Claim
from jaxckpt.storage.item import description
from jaxckpt.storage.item.description import MARKER

_log = logging.getLogger("jaxckpt")


def is_marked(path: str) -> bool:
    """Whether a directory has a marker, whoever wrote it."""
    return stores.is_file(f"{stores.absolute(path)}/{MARKER}")


def home(path: str) -> str | None:
    """Returns the directory that holds the committed checkpoint `path`, None if there is none.

    It is another one than `path` while the checkpoint is being replaced: the one where the new one was staged.
    """
    path = stores.absolute(path)
    if is_marked(path):
        return path
    note = claims.read(path)
    if note is None or note.action != "replace" or note.staged is None:
        return None
    if is_marked(note.staged):
        return note.staged
    # Replaced between the two looks.
    return path if is_marked(path) else None


def mark(directory: str) -> None:
    """Commits a directory whose files are all there."""
    description.mark(directory, directory)
    stores.sync_tree(directory)


def clear(directory: str) -> None:
    """Removes everything but the note, the marker first."""
    stores.remove(f"{directory}/{MARKER}")
    stores.remove_tree(directory, leaving=(claims.FILE,))


def remove(directory: str) -> None:
    """Removes a directory that is nobody's, or this process's; the note last."""
    clear(directory)
    stores.remove(f"{directory}/{claims.FILE}")
    stores.prune(directory)


def replace(path: str, staged: str, over: bytes | None = None) -> None:
    """Puts a committed, staged checkpoint into the place of what is at `path`.

    Args:
      path: of the checkpoint.
      staged: where the new one is.
      over: version of the note of the dead process that began this; None at the beginning.
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
    """Removes the note of a committed checkpoint: one that cannot be removed does no harm, and the next sweep tries again."""
    try:
        claim.release()
    except OSError as error:
        _log.warning("Could not remove a note: %s", error)


def finish_replacement(path: str) -> bool:
    """Finishes the replacement of the checkpoint at `path` that a dead process began. Returns whether there was one."""
    note, version = claims.read_versioned(path)
    if note is None or note.action != "replace" or note.live or note.staged is None or is_marked(path):
        return False
    if not is_marked(note.staged):
        return False
    replace(path, note.staged, version)
    remove(note.staged)
    return True


def is_needed(staged: str, final: str) -> bool:
    """Whether the checkpoint `final` needs what was staged for it to become whole again."""
    note = claims.read(final)
    return note is not None and note.action == "replace" and note.staged == staged and not is_marked(final)
