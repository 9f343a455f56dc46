"""The renames that give a finished directory its final name, and those that undo this. Each rename is atomic."""

import errno
import os

from jaxckpt.storage.commit.temporary import TemporaryDirectory
from jaxckpt.storage.stores import renames

Identity = tuple[int, int]


def identity_at(path: str) -> Identity | None:
    """Returns device and inode number of the entry at `path` (of a link itself, if it is one); None if nothing is there. Raises OSError."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


_TAKEN = (
    "Another program has saved a checkpoint of this name meanwhile. Give each program that saves a directory, or a checkpoint name, of "
    "its own"
)


def publish(folder: TemporaryDirectory, path: str, replace: bool) -> None:
    """Moves the finished directory `folder.new` to its final path.

    Args:
      folder: the temporary directory. A replaced checkpoint is moved to `folder.previous`.
      path: the final path.
      replace: whether to replace a checkpoint at `path`; if False, nothing may be there.

    Raises:
      OSError: with errno. Some of the renames may have been done; `take_back` undoes them.
    """
    if not replace or not os.path.lexists(path):
        try:
            if not renames.rename_new(folder.new, path):
                # This fails too if a directory with files is at the path.
                os.rename(folder.new, path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise FileExistsError(errno.EEXIST, _TAKEN, path) from error
        return
    if renames.exchange(folder.new, path):
        # The old checkpoint is now at `folder.new`.
        os.rename(folder.new, folder.previous)
        return
    # This file system cannot exchange. Between the two renames the checkpoint is only at `previous`; after a crash there,
    # `rename_leftovers.recover` puts it back.
    os.rename(path, folder.previous)
    os.rename(folder.new, path)


def take_back(folder: TemporaryDirectory, path: str, written: Identity | None) -> None:
    """Undoes the renames of `publish` that have been done, and puts the old checkpoint back. Finds out which by looking at the paths.

    Args:
      folder: the temporary directory that `publish` was given.
      path: the final path that `publish` was given.
      written: identity of the directory to publish; None if it never existed.

    Raises:
      OSError: with errno.
    """
    if written is not None and identity_at(path) == written:
        if os.path.lexists(folder.previous):
            if not renames.exchange(folder.previous, path):
                os.rename(path, folder.new)
                os.rename(folder.previous, path)
        elif os.path.lexists(folder.new):
            renames.exchange(folder.new, path)
        else:
            os.rename(path, folder.new)
    elif os.path.lexists(folder.previous) and not os.path.lexists(path):
        os.rename(folder.previous, path)
