"""The checkpoint, or directory, that a PATH on the command line stands for."""

import os

from jaxckpt import storage
from jaxckpt.directory.latest import latest_checkpoint
from jaxckpt.directory.paths import checked_path
from jaxckpt.storage import stores


def checkpoint_at(path: str) -> str:
    """Returns the checkpoint that `path` stands for: itself, or the latest one of a directory with a state file.

    Any other path is returned as it is; opening it says what is wrong.

    Raises:
      ValueError: there are checkpoints in it, but no state file says which is the latest.
    """
    if "://" in path:
        checked_path(path, "PATH")
    path = stores.spelled(path)
    if storage.is_checkpoint(path):
        return path
    latest = latest_checkpoint(path)
    if latest is not None:
        return latest
    inside = [name for name in _names(path) if storage.is_checkpoint(os.path.join(path, name))]
    if inside:
        shown = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        raise ValueError(
            f"{path} is a directory of checkpoints ({shown}), and has no state file that says which is the latest. Name one of them."
        )
    return path


def _names(path: str) -> list[str]:
    try:
        return sorted(stores.names(path))
    except OSError:
        return []


def existing_directory(path: str) -> str:
    """Returns `path`.

    Raises:
      OSError: it is not a directory that can be listed.
      ValueError: it names a file system that is not supported.
    """
    if "://" in path:
        checked_path(path, "DIR")
    path = stores.spelled(path)
    stores.names(path)
    return path


def size_of(path: str) -> int | None:
    """Returns the bytes of all files in the directory `path`; what vanishes meanwhile is not counted. None in a bucket: not known."""
    if not stores.is_local(path):
        return None
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total
