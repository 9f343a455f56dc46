"""Temporary directories on disks. They hold checkpoints that are being saved, replaced or deleted.

A save writes in ``<final>.jaxckpt-tmp-<owner>/`` and renames the finished checkpoint out of it. A deletion renames the checkpoint into
one. The name says which process owns the directory; see `owner`.

Only a real directory with such a name counts, and only if it contains nothing but what jaxckpt puts there. A file, a link, or a directory
with other things in it does not belong to jaxckpt, and is left alone.
"""

import errno
import os
import re

from jaxckpt.storage import owner
from jaxckpt.storage.commit.checkpoint_path import CheckpointPath
from jaxckpt.storage.owner import Owner
from jaxckpt.storage.stores import removal

_NEW, _PREVIOUS, _DELETED, MARK = "checkpoint", "previous", "deleted", "mark"
# Besides our own names: Orbax writes into a directory beside the new one, and a network file system renames a file that is removed while
# it is open.
_CONTENT = re.compile(rf"({_NEW}|{_PREVIOUS}|{_DELETED}|{MARK}|{_NEW}\.orbax-checkpoint-tmp.*|\.nfs.*)", re.DOTALL)


class TemporaryDirectory:
    """A new temporary directory of this process, from `__init__` until `remove`.

    Attributes:
      path: path of the directory.
      new: path in it for the checkpoint (or file) that is written and then renamed to its final path.
      previous: path in it for a checkpoint that is moved aside while it is replaced. After a crash, a sweep moves it back.
      deleted: path in it for a checkpoint that is moved away to be deleted.
    """

    def __init__(self, final: CheckpointPath) -> None:
        """Makes the directory and its parents.

        Args:
          final: path of the checkpoint (or file) that it is for. The directory is made beside it.

        Raises:
          OSError: with errno.
        """
        try:
            os.makedirs(final.directory, exist_ok=True)
        except FileExistsError as error:
            # The path of the parent directory is that of a file or of a broken link.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), final.directory) from error
        self._owner = Owner.new(token_bytes=4)
        self.path = owner.temporary_path(str(final), self._owner)
        self.new = os.path.join(self.path, _NEW)
        self.previous = previous_in(self.path)
        self.deleted = os.path.join(self.path, _DELETED)
        self._owner.begin(self)
        os.mkdir(self.path)

    def remove(self) -> None:
        """Removes the directory and everything in it. Raises OSError if that fails; a sweep then tries again."""
        try:
            remove(self.path)
        finally:
            self._owner.end()


def remove(path: str) -> None:
    """Removes a temporary directory and everything in it. If it does not exist, nothing happens.

    Args:
      path: absolute path of the directory.

    Raises:
      ValueError: the path is not that of a temporary directory.
      OSError: with errno. If the path is that of a link or a file, or the directory contains something that jaxckpt does not put there,
        nothing has been removed.
    """
    parent, name = os.path.split(path)
    if not owner.is_temporary(name):
        raise ValueError(f"{path} does not have the name of a temporary directory of jaxckpt, so it was not removed.")
    try:
        os.rmdir(path)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    try:
        status = os.lstat(path)
        foreign = strangers_in(path)
    except FileNotFoundError:
        return
    if foreign:
        raise OSError(
            errno.ENOTEMPTY,
            f"It contains {foreign[0]!r}, which is not jaxckpt's, so it was not removed; look at it",
            path,
        )
    # The identity makes sure that only the directory that was just checked is removed.
    removal.remove_tree(parent, name, identity=(status.st_dev, status.st_ino))


def strangers_in(path: str) -> list[str]:
    """Returns the names in a temporary directory that are not jaxckpt's, sorted. Raises OSError."""
    return sorted(entry for entry in os.listdir(path) if not _CONTENT.fullmatch(entry))


def previous_in(path: str) -> str:
    """Returns the path, in the temporary directory `path`, of the checkpoint that is being replaced."""
    return os.path.join(path, _PREVIOUS)


def is_save(path: str) -> bool:
    """Whether a temporary directory holds a checkpoint that is being written.

    It does not while it is empty: at the beginning of a save or a deletion, and at their end.

    Args:
      path: path of the temporary directory.
    """
    try:
        return any(entry.startswith(_NEW) for entry in os.listdir(path))
    except FileNotFoundError:
        return False
