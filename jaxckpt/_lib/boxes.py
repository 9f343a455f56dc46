"""Boxes of an array: the grid they lie on."""

import math
from collections.abc import Sequence
from typing import Any


def grid_of(shape: tuple[int, ...], boxes: Sequence[Any]) -> tuple[int, ...]:
    """Returns the extents of the grid that boxes lie on: with uneven shardings the last ones along an axis are smaller.

    Args:
      shape: of the array.
      boxes: what tiles it; each has ``start`` and ``shape``.
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
