"""Recognizes a checkpoint by the files in its directory."""

import os
import stat

from jaxckpt.storage import owner, stores
from jaxckpt.storage.item import description, digests, tree_metadata

# A directory that has one of these files is a checkpoint, though it may be damaged.
_MARKS = (tree_metadata.FILE, digests.FILE, description.FILE)
# The first bytes of ``_METADATA``, which contain Orbax's key `tree_metadata.KEY`.
_MARK_BYTES = 4096


def is_temporary(path: str) -> bool:
    """Whether `path` has the name of a temporary directory, of Orbax or of jaxckpt."""
    name = os.path.basename(stores.absolute(path))
    return is_temporary_name(name)


def is_temporary_name(name: str) -> bool:
    """Whether a directory entry has the name of a temporary directory, of Orbax or of jaxckpt."""
    return "orbax-checkpoint-tmp" in name or owner.is_temporary(name)


def has_files(directory: str) -> bool:
    """Whether a directory has one of the files by which a checkpoint is recognized."""
    return any(stores.is_file(os.path.join(directory, mark)) for mark in _MARKS)


def is_certain(descriptor: int) -> bool:
    """Whether an open directory is certainly a checkpoint, so that it may be deleted or replaced.

    A file called ``_METADATA`` is not enough, because other programs write such files: it must contain Orbax's key.

    Args:
      descriptor: of the directory.
    """
    return any(_reads(descriptor, mark, 0) is not None for mark in _MARKS if mark != tree_metadata.FILE) or (
        (text := _reads(descriptor, tree_metadata.FILE, _MARK_BYTES)) is not None and tree_metadata.KEY in text
    )


def _reads(directory: int, name: str, size: int) -> bytes | None:
    """Returns the first `size` bytes of a regular file of an open directory; None if there is no such file."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        return os.read(descriptor, size) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)
