"""Finds the save that is still writing to a path, so that the error for a reader of the path can name it."""

from jaxckpt.storage.commit import reservations
from jaxckpt.storage.commit.choice import committer_of


def saving(path: str) -> str | None:
    """Returns, in words, the running process that is saving a checkpoint to `path` now; None if there is none.

    Args:
      path: path of the checkpoint.

    Raises:
      OSError: the directory of `path` cannot be read.
    """
    return "this process" if reservations.holds(path) else committer_of(path).saving(path)
