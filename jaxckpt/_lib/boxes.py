"""Boxes (rectangular parts) of an array, and the grid on which they lie."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# A box of an array, as numpy's indexing takes it.
Slices = tuple[slice, ...]


class Box(NamedTuple):
    """A box of an array.

    Attributes:
      start: first index along each axis.
      shape: extent along each axis.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]


def slices_of(start: Sequence[int], shape: Sequence[int]) -> Slices:
    """Returns a box as slices.

    Args:
      start: first index along each axis.
      shape: extent along each axis.
    """
    return tuple([slice(first, first + extent) for first, extent in zip(start, shape, strict=True)])


def part_of(array: np.ndarray, box: Slices | None) -> np.ndarray:
    """Returns a view of a part of an array. The view is an array even if it has no axes.

    Args:
      array: the whole array.
      box: the part; None for the whole array.
    """
    if box is None:
        return array
    # Without the dots, an array without axes would become a scalar.
    index: Any = (*box, ...)
    part: np.ndarray = array[index]
    return part


def spans_of(box: Slices | None, shape: Sequence[int]) -> list[tuple[int, int]]:
    """Returns where a box begins and ends along each axis.

    Args:
      box: the box; None for the whole array.
      shape: shape of the array.
    """
    if box is None:
        return [(0, extent) for extent in shape]
    return [part.indices(extent)[:2] for part, extent in zip(box, shape, strict=True)]


def overlapping(boxes: Sequence[Sequence[tuple[int, int]]]) -> list[list[int]]:
    """Divides boxes into sets, as small as possible, so that two boxes with an element in common are in one set.

    Args:
      boxes: where each box begins and ends along each axis.

    Returns:
      The indices of the boxes of each set, ascending.
    """
    sets: list[list[int]] = []
    for number, box in enumerate(boxes):
        apart, together = [], [number]
        for found in sets:
            if any(_overlap(box, boxes[other]) for other in found):
                together += found
            else:
                apart.append(found)
        sets = [*apart, sorted(together)]
    return sorted(sets)


def _overlap(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
    return all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(one, other, strict=True))


def grid_of(shape: tuple[int, ...], boxes: Sequence[Any]) -> tuple[int, ...]:
    """Returns the extents of one cell of the grid on which boxes lie. With an uneven sharding, the last box along an axis is smaller.

    Args:
      shape: shape of the array.
      boxes: the boxes that tile the array; each has ``start`` and ``shape``.
    """
    if not boxes or not shape:
        return shape
    grid = []
    for axis in range(len(shape)):
        spans = {(box.start[axis], box.shape[axis]) for box in boxes}
        largest = max(extent for _, extent in spans)
        if all(start % largest == 0 for start, extent in spans if extent and largest):
            grid.append(largest)
        else:
            grid.append(math.gcd(*(number for span in spans for number in span)) or 1)
    return tuple(grid)
