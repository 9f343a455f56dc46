"""What the managers of plain Orbax write: a directory of steps, each of which holds one item, or several by name.

A program that opens such a directory means its latest step, and the item that has the names of its values.
"""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import damage
from jaxckpt.storage import stores
from jaxckpt.storage.commit import checkpoints, recognition
from jaxckpt.storage.item import description, digests, tree_metadata
from jaxckpt.storage.stores.inside import Inside
from jaxckpt.tree.names import VALUE, leaf_name

# Orbax: "5", "00000005", "step_5"; Flax: "checkpoint_5".
_STEP = re.compile(r"(?:(?P<prefix>.+)_)?(?P<step>\d+)", re.DOTALL | re.ASCII)
_DIGITS = 18


def steps(names: Iterable[str]) -> dict[str | None, list[str]]:
    """Groups the names of a directory that are those of steps, by their prefix. The names of a group are in the order of their numbers.

    Args:
      names: the names in the directory.
    """
    groups: dict[str | None, list[str]] = {}
    found = [match for name in names if (match := _STEP.fullmatch(name)) and len(match["step"]) <= _DIGITS]
    for match in sorted(found, key=lambda match: (int(match["step"]), match[0])):
        groups.setdefault(match["prefix"], []).append(match[0])
    return groups


def latest_step(path: str) -> str | None:
    """Returns the path of the latest committed step below the directory of one of Orbax's managers; None if `path` is not such one.

    Steps that were not finished are left out. If there are steps with different prefixes, none of them is the latest.

    Args:
      path: path of the directory.
    """
    try:
        if not stores.is_directory(path) or recognition.has_files(path) or recognition.is_temporary(path):
            return None
        groups = steps(stores.names(path))
    except OSError:
        # Opening it says why.
        return None
    latest = []
    for names in groups.values():
        found = (os.path.join(path, name) for name in reversed(names))
        if (step := next(filter(_is_step, found), None)) is not None:
            latest.append(step)
    return latest[0] if len(latest) == 1 else None


def _is_step(path: str) -> bool:
    """Whether a directory is a committed step. A checkpoint that jaxckpt saved under such a name is not a step of a manager."""
    if not stores.is_file(os.path.join(path, description.FILE)) or stores.is_file(os.path.join(path, digests.FILE)):
        return False
    return checkpoints.is_checkpoint(path)


class Item(NamedTuple):
    """An item of a checkpoint.

    Attributes:
      directory: directory that holds its tree.
      name: the name of the item, if the names of its leaves have to begin with it; otherwise None.
    """

    directory: str
    name: str | None = None


def choose(path: str, directories: Sequence[str], names: Collection[str] | None) -> Item:
    """Chooses the item of a checkpoint that has most of the names of a program's values.

    Values may also be named by the item: ``Checkpoint(state=...)`` reads the item ``state``.

    Args:
      path: path of the checkpoint, for the error.
      directories: directories of the items with trees, at least one.
      names: names of the values; None if they are not known.

    Raises:
      ValueError: several items fit equally well, or none of several.
      CorruptCheckpointError: the tree metadata of an item is damaged.
      OSError: it cannot be read.
    """
    if directories[0] == path or (names is None and len(directories) == 1):
        return Item(directories[0])
    ranked = []
    for directory in directories if names is not None else ():
        name = os.path.basename(directory)
        stored = _names(directory)
        for item, found in (
            (Item(directory), stored),
            (Item(directory, name), {_below(name, each) for each in stored}),
        ):
            ranked.append((sum(each in found or f"{each}/{VALUE}" in found for each in names or ()), item))
    ranked.sort(key=lambda pair: -pair[0])
    if ranked and ranked[0][0] and (len(ranked) == 1 or ranked[0][0] > ranked[1][0]):
        return ranked[0][1]
    if len(directories) == 1:
        return Item(directories[0])
    items = ", ".join(os.path.basename(each) for each in directories)
    why = ""
    if names is not None:
        why = (
            " Several of them fit your values equally well." if ranked[0][0] else " None has the names of your values."
        )
    raise ValueError(f"{path} holds several items: {items}.{why} Name one: {directories[0]!r}.")


def _names(directory: str) -> set[str]:
    inside = Inside(stores.absolute(directory))
    with damage(os.path.join(inside.directory, tree_metadata.FILE)):
        content = inside.read(tree_metadata.FILE, bounds.METADATA_FILE_BYTES)
    return {leaf.name for leaf in tree_metadata.read(inside, content).leaves if not leaf.is_empty}


def _below(item: str, name: str) -> str:
    first = leaf_name(((item, False),))
    return f"{first}/{name}" if name else first
