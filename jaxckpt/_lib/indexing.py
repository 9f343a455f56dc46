"""numpy's basic indexing of an array that is not in memory: the box to read, and the rest of the indexing."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib.boxes import Slices


def taken(index: Any, shape: Sequence[int], name: str, read: Callable[[Slices], np.ndarray]) -> np.ndarray:
    """Returns a part of an array, of which only a box is read. The result is an array even if the index leads to one element.

    Args:
      index: as for `box_and_rest`.
      shape: shape of the array.
      name: name of the array, for errors.
      read: reads a box, which may be empty.

    Raises:
      TypeError: the index is of another kind.
      IndexError: it has too many parts, or a number out of range. The message names the array and its shape.
    """
    try:
        box, rest = box_and_rest(index, shape)
    except (IndexError, TypeError) as error:
        raise type(error)(f"{name}, an array of shape {tuple(shape)}: {error}.") from None
    # Without the dots, an element would not be an array.
    return read(box)[(*rest, ...)]


def box_and_rest(index: Any, shape: Sequence[int]) -> tuple[Slices, tuple[Any, ...]]:
    """Divides an index into a box, and the index that takes from the box what `index` takes from the whole array.

    Args:
      index: integers, slices, ``...`` and None, or a tuple of them, as numpy's basic indexing takes them.
      shape: shape of the array.

    Returns:
      The smallest box that has all elements, with one slice for each axis; and the index into it.

    Raises:
      TypeError: the index is of another kind, such as an array.
      IndexError: it has too many parts, or a number out of range.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    for part in parts:
        _check(part)
    axes = sum(part is not None and part is not Ellipsis for part in parts)
    dots = sum(part is Ellipsis for part in parts)
    if dots > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if axes > len(shape):
        raise IndexError(f"too many indices: the array has {len(shape)} axes, but {axes} were indexed")
    if not dots:
        parts.append(Ellipsis)
    at = next(position for position, part in enumerate(parts) if part is Ellipsis)
    parts[at : at + 1] = [slice(None)] * (len(shape) - axes)
    box: list[slice] = []
    rest: list[Any] = []
    extents = iter(enumerate(shape))
    for part in parts:
        if part is None:
            rest.append(None)
            continue
        axis, extent = next(extents)
        span, within = _slice(part, extent) if isinstance(part, slice) else _number(part, axis, extent)
        box.append(span)
        rest.append(within)
    return tuple(box), tuple(rest)


def _check(part: Any) -> None:
    is_number = isinstance(part, (int, np.integer)) and not isinstance(part, bool)
    if not (is_number or part is None or part is Ellipsis or isinstance(part, slice)):
        raise TypeError(
            f"an index consists of integers, slices, ... and None; got {type(part).__name__}. Read a box, and index the result"
        )


def _number(part: Any, axis: int, extent: int) -> tuple[slice, int]:
    position = int(part)
    if not -extent <= position < extent:
        raise IndexError(f"index {position} is out of bounds for axis {axis} with size {extent}")
    position %= extent
    return slice(position, position + 1), 0


def _slice(part: slice, extent: int) -> tuple[slice, slice]:
    taken = range(*part.indices(extent))
    if not taken:
        return slice(0, 0), slice(None)
    first, last = min(taken[0], taken[-1]), max(taken[0], taken[-1])
    # Backwards, the whole box is reversed: its last element is the first one that is taken.
    return slice(first, last + 1), slice(None, None, taken.step)
