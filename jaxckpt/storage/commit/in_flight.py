"""Saves that have not been committed yet: what a reader of their path should be told."""

import os

from jaxckpt.storage import stores
from jaxckpt.storage.commit import claims, reservations, temporary


def saving(path: str) -> str | None:
    """Returns which running process is saving a checkpoint to `path` right now, in words; None if none is known to.

    Raises:
      OSError: it cannot be found out.
    """
    if reservations.holds(path):
        return "this process"
    if stores.is_bucket(path):
        note = claims.read(path)
        return note.owner if note is not None and note.live and note.action != "delete" else None
    directory, name = os.path.split(stores.absolute(path))
    for leftover in temporary.leftovers(directory, name):
        if leftover.live and os.path.basename(leftover.final) == name and not temporary.is_deletion(leftover.path):
            return leftover.owner
    return None
