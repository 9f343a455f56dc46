"""How the center describes a checkpoint to its peers: in columns, with each kind of leaf and each form of array once. Pure.

A state of thousands of leaves has few kinds and forms, and to make and to check a row of several values for each leaf takes long.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.job.protocol.messages import Infos, Leaves
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf

_Row = TypeVar("_Row")


def leaves_message(leaves: Iterable[StoredLeaf], following: int | None, record: dict[str, Any]) -> Leaves:
    """Returns the message that describes a page of leaves.

    Args:
      leaves: the leaves of the page.
      following: position of the next page; None if this is the last.
      record: `Leaves.record`.
    """
    leaves = list(leaves)
    kinds, which = _told_once([(leaf.value_type, leaf.note, leaf.key_impl) for leaf in leaves])
    return Leaves(
        tuple([tuple([text for text, _ in leaf.path]) for leaf in leaves]),
        tuple([sum([is_index << at for at, (_, is_index) in enumerate(leaf.path)]) for leaf in leaves]),
        tuple([leaf.param_name for leaf in leaves]),
        tuple(kinds),
        tuple(which),
        following,
        record,
    )


def leaves_of(page: Leaves) -> list[StoredLeaf]:
    """Returns the leaves that a message describes.

    Args:
      page: the message.

    Raises:
      ProcessError: its columns do not fit together.
    """
    count = len(page.paths)
    if {len(page.indices), len(page.names), len(page.which)} != {count} or min(page.indices, default=0) < 0:
        raise ProcessError("The center described the leaves of the checkpoint in columns that do not fit together.")
    found = []
    for texts, indices, name, kind in zip(
        page.paths, page.indices, page.names, _looked_up(page.kinds, page.which), strict=True
    ):
        if indices:
            path = tuple([(text, bool(indices >> at & 1)) for at, text in enumerate(texts)])
        else:
            path = tuple([(text, False) for text in texts])
        found.append(StoredLeaf(path, name, *kind))
    return found


def infos_message(infos: Sequence[ArrayInfo]) -> Infos:
    """Returns the message that describes arrays.

    Args:
      infos: their descriptions.
    """
    forms, which = _told_once([(info.shape, info.dtype, info.chunk_shape or info.grid) for info in infos])
    return Infos(tuple([(shape, dtype.name, chunks) for shape, dtype, chunks in forms]), tuple(which))


def infos_of(message: Infos, names: Sequence[str]) -> dict[str, ArrayInfo]:
    """Returns the descriptions of arrays, by name.

    Args:
      message: the answer of the center.
      names: the names of the arrays, in the order in which the center was asked.

    Raises:
      ProcessError: the message does not describe so many arrays.
    """
    if len(message.which) != len(names):
        raise ProcessError(f"The center described {len(message.which)} arrays, and was asked for {len(names)}.")
    forms = [ArrayInfo(shape, _dtype(dtype), chunks) for shape, dtype, chunks in message.forms]
    return dict(zip(names, _looked_up(forms, message.which), strict=True))


def _told_once(rows: Sequence[_Row]) -> tuple[list[_Row], list[int]]:
    """Returns the different rows, and for each row which of them it is."""
    numbers: dict[_Row, int] = {}
    which = [numbers.setdefault(row, len(numbers)) for row in rows]
    return list(numbers), which


def _looked_up(rows: Sequence[_Row], which: Sequence[int]) -> list[_Row]:
    if min(which, default=0) < 0 or max(which, default=-1) >= len(rows):
        raise ProcessError("The center described the checkpoint with numbers of descriptions that it did not give.")
    return [rows[number] for number in which]


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
