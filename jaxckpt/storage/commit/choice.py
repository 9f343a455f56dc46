"""Chooses the committer of a path."""

from jaxckpt.storage import stores
from jaxckpt.storage.commit.by_marker import MarkerCommitter
from jaxckpt.storage.commit.by_rename import RenameCommitter
from jaxckpt.storage.commit.committer import Committer
from jaxckpt.storage.stores import mounts

_RENAME = RenameCommitter()
_MARKER = MarkerCommitter()


def committer_of(path: str) -> Committer:
    """Returns the committer of a path: by rename on a disk, by marker in a bucket and in a mounted one, which cannot rename.

    Args:
      path: path of a checkpoint, of a directory of checkpoints, or of something in one of these.
    """
    return _RENAME if stores.is_local(path) and mounts.renames_directories(path) else _MARKER
