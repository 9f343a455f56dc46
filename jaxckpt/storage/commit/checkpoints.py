"""Finds and removes checkpoints and leftovers. Each function asks the committer of its path."""

import os

from jaxckpt._lib import numbering
from jaxckpt.storage import stores
from jaxckpt.storage.commit import recognition
from jaxckpt.storage.commit.checkpoint_path import CheckpointPath
from jaxckpt.storage.commit.choice import committer_of
from jaxckpt.storage.commit.committer import Leftover
from jaxckpt.storage.item import description, tree_metadata


def item_directory(path: str) -> str | None:
    """Returns the directory that holds the tree of an Orbax checkpoint: `path`, or one below it. None if `path` is not a checkpoint.

    Plain Orbax puts the tree of a v1 or composite checkpoint into a subdirectory.

    Args:
      path: path of the checkpoint.

    Raises:
      ValueError: the checkpoint has several trees.
    """
    home = committer_of(path).home(path)
    if home is None:
        return None
    if stores.is_file(os.path.join(home, tree_metadata.FILE)):
        return home
    try:
        names = sorted(stores.names(home))
    except (FileNotFoundError, NotADirectoryError):
        return None
    items = [
        name
        for name in names
        if stores.is_file(os.path.join(home, name, tree_metadata.FILE)) and not recognition.is_temporary_name(name)
    ]
    if len(items) > 1 and _is_orbax(home):
        raise ValueError(f"{home} holds several items: {', '.join(items)}. Name one: {os.path.join(home, items[0])!r}.")
    return os.path.join(home, items[0]) if len(items) == 1 and _is_orbax(home) else None


def _is_orbax(path: str) -> bool:
    return stores.is_file(os.path.join(path, description.FILE))


def is_checkpoint(path: str) -> bool:
    """Whether `path` is a committed Orbax checkpoint. Damaged checkpoints and those that plain Orbax wrote count."""
    return committer_of(path).is_committed(path)


def list_numbered(prefix: str) -> list[int]:
    """Returns the numbers N of the committed checkpoints ``<prefix>-N``, ascending."""
    directory, name = os.path.split(prefix)
    return numbering.numbers(
        name, committer_of(prefix).names(directory, lambda entry: numbering.prefix_of(entry) == name)
    )


def identity(path: str) -> object | None:
    """Returns a value that differs from that of every later checkpoint at `path`; None if nothing is there. Raises OSError."""
    return committer_of(path).identity(path)


def delete(path: CheckpointPath, expected: object | None = None) -> None:
    """Removes a checkpoint. See `Committer.delete` for the arguments and errors."""
    committer_of(path.directory).delete(path, expected)


def leftovers(directory: str, name: str | None = None) -> list[Leftover]:
    """Lists the uncommitted work of running and dead processes in `directory`, oldest first. See `Committer.leftovers`."""
    return committer_of(directory).leftovers(directory, name)


def sweep(directory: str, name: str | None = None) -> list[str]:
    """Removes the leftovers of dead processes in `directory`, and returns their paths. See `Committer.sweep`."""
    return committer_of(directory).sweep(directory, name)
