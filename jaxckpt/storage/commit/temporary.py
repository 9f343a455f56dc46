"""Temporary directories of disks: what is in them becomes a checkpoint by a rename, or was one and goes away.

A save works in ``<final>.jaxckpt-tmp-<owner>/`` and renames out of it; a deletion renames into one. `owner` says how the name tells whose
it is.

Only a real directory of such a name, which holds nothing but what jaxckpt puts there, is one. A file, a link, or a directory with other
things in it is none of jaxckpt's, and is left alone.
"""

import errno
import os
import re

from jaxckpt.storage import owner
from jaxckpt.storage.commit.checkpoint_path import CheckpointPath
from jaxckpt.storage.owner import Owner
from jaxckpt.storage.stores import removal

_NEW, _PREVIOUS, _DELETED, MARK = "checkpoint", "previous", "deleted", "mark"
# Orbax writes into a directory of its own beside the new one; a network file system renames what is deleted while it is open.
_CONTENT = re.compile(rf"({_NEW}|{_PREVIOUS}|{_DELETED}|{MARK}|{_NEW}\.orbax-checkpoint-tmp.*|\.nfs.*)", re.DOTALL)


class TemporaryDirectory:
    """A new temporary directory of this process, from `__init__` until `remove`.

    Attributes:
      path: of the directory.
      new: path in it, of what is written and then renamed.
      previous: path in it, of what is moved aside while it is replaced. A sweep moves it back.
      deleted: path in it, of what is moved away to be deleted.
    """

    def __init__(self, final: CheckpointPath) -> None:
        """Makes the directory beside `final`, with its parents.

        Raises:
          OSError: with errno.
        """
        try:
            os.makedirs(final.directory, exist_ok=True)
        except FileExistsError as error:
            # A file, or a link that leads nowhere, is where the directory should be.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), final.directory) from error
        self._owner = Owner.new(token_bytes=4)
        self.path = owner.temporary_path(str(final), self._owner)
        self.new = os.path.join(self.path, _NEW)
        self.previous = previous_in(self.path)
        self.deleted = os.path.join(self.path, _DELETED)
        self._owner.begin(self)
        os.mkdir(self.path)

    def remove(self) -> None:
        """Removes the directory and everything in it. Raises OSError: with errno; a sweep tries again."""
        try:
            remove(self.path)
        finally:
            self._owner.end()


def remove(path: str) -> None:
    """Removes a temporary directory and everything in it; what is gone already is no error.

    Args:
      path: absolute.

    Raises:
      ValueError: the path is not that of a temporary directory.
      OSError: with errno. It is a link or a file, or holds what jaxckpt does not put there: then nothing has been removed.
    """
    parent, name = os.path.split(path)
    if not owner.is_temporary(name):
        raise ValueError(f"{path} is not called like a temporary directory of jaxckpt, so it is not removed.")
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
            errno.ENOTEMPTY, f"It holds {foreign[0]!r}, which is not jaxckpt's, so it is not removed; look at it", path
        )
    # Of the directory that was looked at, or not at all.
    removal.remove_tree(parent, name, identity=(status.st_dev, status.st_ino))


def strangers_in(path: str) -> list[str]:
    """Returns the names in a temporary directory that jaxckpt does not put there, sorted. Raises OSError."""
    return sorted(entry for entry in os.listdir(path) if not _CONTENT.fullmatch(entry))


def previous_in(path: str) -> str:
    """Returns where, in the temporary directory `path`, the checkpoint is that is being replaced."""
    return os.path.join(path, _PREVIOUS)


def is_deletion(path: str) -> bool:
    """Whether a temporary directory holds what is being deleted, rather than what is being saved."""
    return os.path.lexists(os.path.join(path, _DELETED))
