"""The renames by which a finished directory gets its final name, and their undoing. Each is atomic."""

import errno
import os

from jaxckpt.storage.commit.temporary import TemporaryDirectory
from jaxckpt.storage.stores import renames

Identity = tuple[int, int]


def identity_at(path: str) -> Identity | None:
    """Returns device and inode of what is at `path`, links not followed; None if nothing is there. Raises OSError."""
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
    """Moves the finished directory `folder.new` to its final name.

    Args:
      folder: the temporary directory that it is in. What is replaced is moved to `folder.previous`.
      path: the final name.
      replace: put it in the place of what is at `path`; otherwise nothing may be there.

    Raises:
      OSError: with errno; perhaps after a part of it, which `take_back` undoes.
    """
    if not replace or not os.path.lexists(path):
        try:
            if not renames.rename_new(folder.new, path):
                # Fails as well if a directory with files is there.
                os.rename(folder.new, path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise FileExistsError(errno.EEXIST, _TAKEN, path) from error
        return
    if renames.exchange(folder.new, path):
        # What was at `path` has changed places with the new one.
        os.rename(folder.new, folder.previous)
        return
    # A file system without exchange: for a moment only `previous` is there; `abandoned.recover` knows that moment.
    os.rename(path, folder.previous)
    os.rename(folder.new, path)


def take_back(folder: TemporaryDirectory, path: str, written: Identity | None) -> None:
    """Undoes as much of `publish` as has been done, which is seen from what is where. What was at `path` before is there again.

    Args:
      folder, path: as of `publish`.
      written: of the directory that was to be published; None if it never was there.

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
