"""How the center describes a checkpoint to its peers: what leaves that follow each other have in common is told once. Pure.

A state of thousands of leaves has few kinds of leaves, containers and forms of arrays, and to make, to check and to read a row of several
values for each leaf takes long.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.job.protocol.messages import Infos, Leaves
from jaxckpt.job.protocol.parts import GroupLine
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf

_Row = TypeVar("_Row")
_StoredPath = tuple[tuple[str, bool], ...]

# A NamedTuple's own constructor takes three times as long, and there are thousands of leaves.
_new_leaf = tuple.__new__


def leaves_message(leaves: Iterable[StoredLeaf], following: int | None, record: dict[str, Any], count: int) -> Leaves:
    """Returns the message that describes a page of leaves.

    Args:
      leaves: the leaves of the page.
      following: position of the next page; None if this is the last.
      record: `Leaves.record`.
      count: `Leaves.count`.
    """
    leaves = list(leaves)
    keys = [leaf.path[-1][0] if leaf.path else "" for leaf in leaves]
    rows = [
        (path[:-1], path[-1][1] if path else None, value_type, note, impl) for path, _, value_type, note, impl in leaves
    ]
    groups, runs = _told_once(rows)
    starts = [_dotted([text for text, _ in above]) for above, *_ in groups]
    names: list[tuple[int, str]] = []
    at = 0
    for group, length in _pairs(runs):
        start = starts[group]
        for position in range(at, at + length):
            name = leaves[position].param_name
            if name != start + keys[position]:
                names.append((position, name))
        at += length
    return Leaves(
        tuple(keys), tuple([_line(*group) for group in groups]), tuple(runs), tuple(names), following, record, count
    )


def leaves_of(page: Leaves) -> list[StoredLeaf]:
    """Returns the leaves that a message describes.

    Args:
      page: the message.

    Raises:
      ProcessError: its parts do not fit together.
    """
    if any(mask < 0 for _, mask, *_ in page.groups):
        raise ProcessError("The center described indices that a path cannot have.")
    found: list[StoredLeaf] = []
    starts = [(_path(texts or (), mask), _dotted(texts or ())) for texts, mask, *_ in page.groups]
    for group, count in _checked(page.runs, len(page.groups), len(page.keys)):
        keys = page.keys[len(found) : len(found) + count]
        texts, mask, *kind = page.groups[group]
        if texts is None:
            found += [_new_leaf(StoredLeaf, ((), "", *kind))] * count
            continue
        (above, dotted), is_index = starts[group], bool(mask >> len(texts) & 1)
        found += [_new_leaf(StoredLeaf, ((*above, (key, is_index)), dotted + key, *kind)) for key in keys]
    for position, name in page.names:
        if not 0 <= position < len(found):
            raise ProcessError("The center described the name of a leaf that it did not describe.")
        found[position] = found[position]._replace(param_name=name)
    return found


def infos_message(infos: Sequence[ArrayInfo]) -> Infos:
    """Returns the message that describes arrays.

    Args:
      infos: their descriptions.
    """
    forms, runs = _told_once([(info.shape, info.dtype, info.chunk_shape or info.grid) for info in infos])
    return Infos(tuple([(shape, dtype.name, chunks) for shape, dtype, chunks in forms]), tuple(runs))


def infos_of(message: Infos, names: Sequence[str]) -> dict[str, ArrayInfo]:
    """Returns the descriptions of arrays, by name.

    Args:
      message: the answer of the center.
      names: the names of the arrays, in the order of the positions for which the center was asked.

    Raises:
      ProcessError: the message does not describe so many arrays.
    """
    forms = [ArrayInfo(shape, _dtype(dtype), chunks) for shape, dtype, chunks in message.forms]
    found: list[ArrayInfo] = []
    for form, count in _checked(message.runs, len(forms), len(names)):
        found += [forms[form]] * count
    return dict(zip(names, found, strict=True))


def _line(above: _StoredPath, is_index: bool | None, value_type: str, note: str | None, impl: str | None) -> GroupLine:
    if is_index is None:
        return None, 0, value_type, note, impl
    mask = sum([flag << at for at, flag in enumerate([*[flag for _, flag in above], is_index])])
    return tuple([text for text, _ in above]), mask, value_type, note, impl


def _path(texts: Sequence[str], mask: int) -> _StoredPath:
    return tuple([(text, bool(mask >> at & 1)) for at, text in enumerate(texts)])


def _dotted(texts: Iterable[str]) -> str:
    return "".join([f"{text}." for text in texts])


def _told_once(rows: Sequence[_Row]) -> tuple[list[_Row], list[int]]:
    """Returns the different rows; and, for each run of equal rows, which of them it is and how many there are, in turn."""
    numbers: dict[_Row, int] = {}
    which = [numbers.setdefault(row, len(numbers)) for row in rows]
    runs: list[int] = []
    for number, run in itertools.groupby(which):
        runs += number, len(list(run))
    return list(numbers), runs


def _pairs(runs: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(runs[::2], runs[1::2], strict=True)


def _checked(runs: Sequence[int], rows: int, count: int) -> Iterator[tuple[int, int]]:
    """Returns runs as pairs.

    Args:
      runs: as `_told_once` returns them, from another process.
      rows: number of rows that there are.
      count: number of things that the runs describe.

    Raises:
      ProcessError: the runs name other rows, or describe another number of things.
    """
    if len(runs) % 2 or min(runs, default=0) < 0 or max(runs[::2], default=-1) >= rows:
        raise ProcessError("The center described the checkpoint with numbers of descriptions that it did not give.")
    if sum(runs[1::2]) != count:
        raise ProcessError(f"The center described {sum(runs[1::2])} leaves instead of {count}.")
    return _pairs(runs)


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
