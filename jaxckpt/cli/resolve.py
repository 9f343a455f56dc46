"""Finds the checkpoint or directory for a PATH on the command line."""

import os

from jaxckpt import storage
from jaxckpt._lib import numbering
from jaxckpt.directory.latest import latest_checkpoint
from jaxckpt.directory.paths import checked_path, expanded
from jaxckpt.storage import stores


def checkpoint_at(path: str) -> str:
    """Returns the path of a checkpoint: `path` itself, or the latest checkpoint of the directory `path`, or its latest step of Orbax.

    Any other path is returned unchanged, because opening it raises a good error.

    Args:
      path: path of a checkpoint, or of a directory with a state file.

    Raises:
      ValueError: the directory has checkpoints, but not a state file that names the latest.
    """
    path = expanded(path, "PATH")
    if "://" in path:
        checked_path(path, "PATH")
    path = stores.spelled(path)
    if storage.is_checkpoint(path):
        return path
    latest = latest_checkpoint(path) or storage.latest_step(path)
    if latest is not None:
        return latest
    inside = [name for name in _names(path) if storage.is_checkpoint(os.path.join(path, name))]
    if inside:
        shown = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        raise ValueError(
            f"{path} is a directory of checkpoints ({shown}) without a state file that names the latest. Give one of them."
        )
    return path


def _names(path: str) -> list[str]:
    try:
        return sorted(stores.names(path), key=numbering.natural)
    except OSError:
        return []


def existing_directory(path: str) -> str:
    """Returns `path`, which must be a directory that can be listed.

    Args:
      path: path of a directory.

    Raises:
      OSError: the path is not a directory, or cannot be listed.
      ValueError: the path is an address that jaxckpt does not support.
    """
    path = expanded(path, "DIR")
    if "://" in path:
        checked_path(path, "DIR")
    path = stores.spelled(path)
    stores.names(path)
    return path


def size_of(path: str) -> int | None:
    """Returns the total size in bytes of the files of a checkpoint, which may be TensorFlow's. None for a bucket.

    Files that vanish meanwhile do not count.

    Args:
      path: path of the checkpoint.
    """
    if not stores.is_local(path):
        return None
    if os.path.isdir(path):
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    elif os.path.isfile(path):
        files = [path]
    else:
        folder, own = os.path.split(stores.absolute(path))
        files = [
            os.path.join(folder, name) for name in _names(folder) if name.startswith((f"{own}.index", f"{own}.data-"))
        ]
    total = 0
    for file in files:
        try:
            total += os.lstat(file).st_size
        except OSError:
            continue
    return total
