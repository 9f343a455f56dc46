"""Committing and removing checkpoints in a bucket, which cannot rename: a checkpoint is there exactly while its marker is.

The marker is the object that Orbax uses, `commit_success.txt`: written last, removed first. Whatever has no marker is not seen by
anybody. While a directory is without one, a note says who works on it (`claims`), so that the next save can remove what a dead process
left.

A committed checkpoint is replaced in two steps, so that a whole one can be had at any moment. The new one is first written and
committed beside it, in a temporary directory. Then the note "replace" is put into the old one, its marker and files are removed, the new
files are copied there, and the marker is written. As long as there is a note "replace" and no marker, readers read the new checkpoint
where it was staged. A sweep that finds the note of a dead process finishes the copy.
"""

import contextlib
import errno
import functools
import logging
import os
import time
from collections.abc import Callable

from jaxckpt._lib import numbering
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.uninterrupted import uninterrupted
from jaxckpt.storage.commit import claims, temporary
from jaxckpt.storage.commit.claims import Claim
from jaxckpt.storage.item import description
from jaxckpt.storage.item.description import MARKER
from jaxckpt.storage.stores import bucket

_CLEAN_SECS = 60.0
_log = logging.getLogger("jaxckpt")


def is_committed(path: str) -> bool:
    """Whether a committed checkpoint is at `path`, whoever wrote it."""
    return bucket.is_object(f"{bucket.normal(path)}/{MARKER}")


def home(path: str) -> str | None:
    """Returns the directory that holds the committed checkpoint `path`, None if there is none.

    It is another one than `path` while the checkpoint is being replaced: the one where the new one was staged.
    """
    path = bucket.normal(path)
    if is_committed(path):
        return path
    note = claims.read(path)
    if note is None or note.action != "replace" or note.staged is None:
        return None
    if is_committed(note.staged):
        return note.staged
    # Replaced between the two looks.
    return path if is_committed(path) else None


def save(path: str, write: Callable[[str], None], register: Callable[[], None], *, replace: bool) -> None:
    """Writes, commits and registers a checkpoint.

    On an error nothing new is there, and a checkpoint that was to be replaced is intact, unless it was `register` that failed then.

    Args:
      path: of the checkpoint.
      write: writes all its files into the directory that it is given.
      register: called once the checkpoint is committed.
      replace: put it in the place of a checkpoint that is at `path`.

    Raises:
      FileExistsError: something is there, and not to be replaced; or a running process is at work there.
      OSError: with errno.
    """
    path = bucket.normal(path)
    try:
        name = os.path.basename(path)
        sweep(os.path.dirname(path), numbering.prefix_of(name) or name)
    except OSError as error:  # What a dead process left is no reason to lose this save.
        _log.warning("Could not remove leftovers in %s: %s", os.path.dirname(path), error)
    if is_committed(path):
        if not replace:
            raise FileExistsError(errno.EEXIST, "A checkpoint is there already", path)
        _save_over(path, write, register)
        return
    note = claims.read(path)
    if note is not None and note.live:
        raise FileExistsError(errno.EEXIST, f"{note.owner.capitalize()} is at work there (a {note.action})", path)
    if bucket.exists(path):
        raise FileExistsError(
            errno.EEXIST, "What is there is not a checkpoint, so it is not replaced; remove it or save elsewhere", path
        )
    _write(path, write, "save", register, _release)


def _save_over(path: str, write: Callable[[str], None], register: Callable[[], None]) -> None:
    staged = temporary.new_name(path)

    def replace() -> None:
        _replace(path, staged)
        register()

    def clean(claim: Claim) -> None:
        claim.stop()
        try:
            _remove(staged)
        except OSError as error:
            _log.warning("Could not remove %s: %s", staged, error)

    _write(staged, write, "stage", replace, clean, needed_by=path)


def _write(
    directory: str,
    write: Callable[[str], None],
    action: claims.Action,
    committed: Callable[[], None],
    end: Callable[[Claim], None],
    needed_by: str | None = None,
) -> None:
    """Writes and commits a directory; removes it again if something fails.

    Args:
      directory: to make.
      write: writes its files.
      action: for the note.
      committed: called when the directory has its marker; may refuse by raising.
      end: called with the note when all has succeeded.
      needed_by: a checkpoint that may need the directory to become whole again.
    """
    claim = Claim(directory, action)
    committing = False
    try:
        write(directory)
        committing = True
        uninterrupted(functools.partial(_commit, claim, directory, committed, end, needed_by))
    except BaseException:
        # From there on the directory belongs to the commit, which a second interrupt leaves running.
        if not committing:
            claim.stop()
            _discard(directory)
        raise


def _commit(
    claim: Claim,
    directory: str,
    committed: Callable[[], None],
    end: Callable[[Claim], None],
    needed_by: str | None,
) -> None:
    try:
        claim.confirm()
        description.mark(directory, directory)
        committed()
    except BaseException:
        claim.stop()
        _discard(directory, unless=needed_by)
        raise
    end(claim)


def _release(claim: Claim) -> None:
    """The checkpoint is committed: a note that cannot be removed does no harm, and the next sweep tries again."""
    try:
        claim.release()
    except OSError as error:
        _log.warning("Could not remove a note: %s", error)


def _discard(directory: str, unless: str | None = None) -> None:
    """Removes what a failed save wrote. Its error says more than one of the clean-up, and a sweep tries again.

    Args:
      directory: to remove.
      unless: a checkpoint that may need the directory to become whole again.
    """
    with contextlib.suppress(OSError), bucket.within(Deadline(_CLEAN_SECS, f"Removing {directory}")):
        if unless is None or is_committed(unless):
            _remove(directory)


def _replace(path: str, staged: str, over: bytes | None = None) -> None:
    """Puts a committed, staged checkpoint into the place of what is at `path`.

    Args:
      path: of the checkpoint.
      staged: where the new one is.
      over: generation of the note of the dead process that began this; None at the beginning.
    """
    claim = Claim(path, "replace", staged, over)
    try:
        _clear(path)
        bucket.copy(staged, path, leaving=(MARKER, claims.FILE))
        claim.confirm()
        description.mark(path, path)
    except BaseException:
        claim.stop()
        raise
    _release(claim)


def _clear(directory: str) -> None:
    """Removes everything but the note, the marker first."""
    bucket.remove(f"{directory}/{MARKER}")
    bucket.remove_all(name for name in bucket.children(directory) if name != f"{directory}/{claims.FILE}")


def _remove(directory: str) -> None:
    """Removes a directory that is nobody's, or this process's; the note last."""
    _clear(directory)
    bucket.remove(f"{directory}/{claims.FILE}")


def delete(path: str) -> None:
    """Removes a checkpoint, so that a half-removed one is none. A path that does not exist is no error.

    Raises:
      OSError: with errno; the checkpoint is still there, or what is left of it is a leftover. EINVAL: what is there is not a checkpoint,
        and has not been touched.
    """
    path = bucket.normal(path)
    if not bucket.exists(path):
        return
    if not is_committed(path) and claims.read(path) is None:
        raise OSError(errno.EINVAL, "What is there is not a checkpoint, so it is not deleted", path)
    claim = Claim(path, "delete")
    try:
        _clear(path)
    except BaseException:
        claim.stop()
        raise
    claim.release()


def leftovers(directory: str, name: str | None = None) -> list[temporary.Leftover]:
    """Lists the directories that somebody is, or was, at work in, oldest first. Sizes are not known.

    Args: as of `temporary.leftovers`.
    """
    found = []
    for entry, marked in _claimed(directory, name):
        path = os.path.join(directory, entry)
        note = claims.read(path)
        if note is None or (marked and not temporary.is_temporary(entry)):
            continue
        final = os.path.join(directory, temporary.final_name(entry))
        age = max(0.0, time.time() - note.time)
        found.append(temporary.Leftover(path, final, None, age, note.live, note.owner))
    return sorted(found, key=lambda leftover: -leftover.age_secs)


def _claimed(directory: str, name: str | None) -> list[tuple[str, bool]]:
    """Returns which directories have a note, and whether they have a marker."""
    marks: dict[str, set[str]] = {}
    for key in bucket.tree(directory):
        entry, _, rest = key.partition("/")
        if rest in (MARKER, claims.FILE):
            marks.setdefault(entry, set()).add(rest)
    return [
        (entry, MARKER in found)
        for entry, found in sorted(marks.items())
        if claims.FILE in found and temporary.is_for(temporary.final_name(entry), name)
    ]


def committed(directory: str) -> list[str]:
    """Returns the names of the committed checkpoints in `directory`, those included that are being replaced."""
    entries = [key.split("/") for key in bucket.tree(directory)]
    marked = {entry[0] for entry in entries if entry[1:] == [MARKER]}
    claimed = {entry[0] for entry in entries if entry[1:] == [claims.FILE]} - marked
    return [*marked, *(name for name in claimed if home(f"{bucket.normal(directory)}/{name}") is not None)]


def sweep(directory: str, name: str | None = None) -> list[str]:
    """Removes what dead processes left, after finishing the replacements that they had begun.

    Args, Returns: as of `temporary.sweep`.
    """
    directory = bucket.normal(directory)
    removed = []
    # Staged checkpoints come last: a replacement may need them.
    for entry, marked in sorted(_claimed(directory, name), key=lambda item: temporary.is_temporary(item[0])):
        path = f"{directory}/{entry}"
        note = claims.read(path)
        if note is None or note.live:
            continue
        if not temporary.is_temporary(entry):
            if marked:  # Its save died after the commit, or its deletion before it began.
                bucket.remove(f"{path}/{claims.FILE}")
                continue
            if _finish_replacement(path):
                removed.append(note.staged or path)
                continue
        elif _is_needed(path, f"{directory}/{temporary.final_name(entry)}"):
            continue
        _remove(path)
        removed.append(path)
    return removed


def _is_needed(staged: str, final: str) -> bool:
    note = claims.read(final)
    return note is not None and note.action == "replace" and note.staged == staged and not is_committed(final)


def _finish_replacement(path: str) -> bool:
    """Finishes the replacement of the checkpoint at `path` that a dead process began. Returns whether there was one."""
    note, generation = claims.read_versioned(path)
    if note is None or note.action != "replace" or note.live or note.staged is None or is_committed(path):
        return False
    if not is_committed(note.staged):
        return False
    _replace(path, note.staged, generation)
    _remove(note.staged)
    return True
