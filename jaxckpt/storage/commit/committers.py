"""Which committer a path has."""

from jaxckpt.storage import stores
from jaxckpt.storage.commit.by_marker import MarkerCommitter
from jaxckpt.storage.commit.by_rename import RenameCommitter
from jaxckpt.storage.commit.committer import Committer

_RENAME = RenameCommitter()
_MARKER = MarkerCommitter()


def committer_of(path: str) -> Committer:
    """Returns the committer of a path: disks rename a finished checkpoint, buckets cannot.

    Args:
      path: of a checkpoint, of a directory of checkpoints, or of something in one of these.
    """
    return _RENAME if stores.is_local(path) else _MARKER
