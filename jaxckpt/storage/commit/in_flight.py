"""Saves that have not been committed yet: what a reader of their path should be told."""

from jaxckpt.storage.commit import reservations
from jaxckpt.storage.commit.committers import committer_of


def saving(path: str) -> str | None:
    """Returns which running process is saving a checkpoint to `path` right now, in words; None if none is known to.

    Raises:
      OSError: it cannot be found out.
    """
    return "this process" if reservations.holds(path) else committer_of(path).saving(path)
