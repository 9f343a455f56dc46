"""The few file operations that checkpoints need, for directories of the system and for buckets (``gs://``).

A path decides who serves it: `local` (the operating system) or `bucket` (TensorStore's key-value store of Google Cloud Storage).
Both raise OSError with errno.
"""

import os
from collections.abc import Sequence

from jaxckpt.storage.stores import bucket, local

BUCKET_SCHEME = bucket.SCHEME


def is_bucket(path: str) -> bool:
    """Whether a path lies in a bucket."""
    return path.startswith(BUCKET_SCHEME)


def absolute(path: str) -> str:
    """Returns the path that stands for `path` whatever the working directory is; in a bucket the one spelling that it has.

    This is the only place where ``..`` is resolved: as the operating system does it (see `local.absolute`).
    """
    return bucket.normal(path) if is_bucket(path) else local.absolute(path)


def spelled(path: str) -> str:
    """Returns `path` as it is spelled, but without a ``name/..`` that the operating system could not follow, as there is no `name`."""
    return path if is_bucket(path) else local.spelled(path)


def identity(path: str) -> str:
    """Returns one spelling for all paths of the same entry of a directory, to compare them."""
    return bucket.normal(path) if is_bucket(path) else local.identity(path)


def join(directory: str, name: str) -> str:
    """Returns `name` in `directory`; `name` itself if it is absolute."""
    return name if is_bucket(name) else os.path.join(directory, name)


def exists(path: str) -> bool:
    """Whether anything is at `path`, a broken link included."""
    return bucket.exists(path) if is_bucket(path) else os.path.lexists(path)


def is_file(path: str) -> bool:
    """Whether a file (or, on a local path, a directory) can be found at `path`."""
    return bucket.is_object(path) if is_bucket(path) else os.path.exists(path)


def is_directory(path: str) -> bool:
    """Whether `path` is a directory."""
    return bucket.is_directory(path) if is_bucket(path) else os.path.isdir(path)


def names(directory: str) -> list[str]:
    """Returns the names in a directory, in no order.

    Raises:
      FileNotFoundError: there is no such directory (an empty one does not exist in a bucket).
      OSError: it cannot be listed.
    """
    return bucket.names(directory) if is_bucket(directory) else os.listdir(directory)


def tree(directory: str) -> list[str]:
    """Returns the paths of all files below `directory`, relative to it, sorted; none if it does not exist."""
    return bucket.tree(directory) if is_bucket(directory) else local.tree(directory)


def read(path: str, limit: int | None = None) -> bytes:
    """Returns the content of a file.

    Args:
      path: of the file.
      limit: how many bytes it may have; not known of an object in a bucket before it has been read.

    Raises:
      OSError: it cannot be read. On a local path: EINVAL if it is not a regular file, EFBIG if it is larger than `limit`.
    """
    return bucket.read(path) if is_bucket(path) else local.read(path, limit)


def write(path: str, content: bytes) -> None:
    """Writes a file, in place and (on a local path) without a sync. Raises OSError."""
    if is_bucket(path):
        bucket.write(path, content)
    else:
        local.write(path, content)


def remove(path: str) -> None:
    """Removes a file. Raises OSError; in a bucket, one that does not exist is no error."""
    if is_bucket(path):
        bucket.remove(path)
    else:
        os.unlink(path)


def make_directory(path: str) -> None:
    """Makes a directory, with its parents; a bucket needs none."""
    if not is_bucket(path):
        os.makedirs(path, exist_ok=True)


def size(path: str) -> int | None:
    """Returns the size of a file; None in a bucket, where it is not known without reading the object. Raises OSError."""
    return None if is_bucket(path) else os.path.getsize(path)


def ranges(path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Returns parts of a file.

    Args:
      path: of the file.
      parts: first byte and length of each; a negative first byte counts from the end. What reaches beyond the end is left out.

    Raises:
      OSError: the file cannot be read.
    """
    return bucket.ranges(path, parts) if is_bucket(path) else local.ranges(path, parts)
