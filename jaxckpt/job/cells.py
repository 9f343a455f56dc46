"""Where the boxes of an array may be cut when they are divided among processes. Pure.

No chunk may belong to two processes. So an array that is cut is stored in *cells*, which consist of whole chunks, and is cut between cells.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxckpt._lib.boxes import Box
from jaxckpt.job.layouts import Layout

# Most cells that are larger than the tolerance needs, and are tried because an even division may fit them exactly.
_TRIES = 24
# The last cell along an axis may be stored with so small a part of the axis as padding.
_PADDING = 32


class Cell(NamedTuple):
    """Where the boxes of an array may be cut: in C order of the first `lead` axes, and then after every `extent` indices of `axis`.

    Attributes:
      lead: number of leading axes of which a cell has one index only.
      axis: the axis that is cut, after those.
      extent: extent of a cell along this axis.
    """

    lead: int
    axis: int
    extent: int


def snap(offsets: np.ndarray, segment: int, step: int) -> np.ndarray:
    """Returns the edges of cells that are nearest to offsets.

    Args:
      offsets: bytes from the beginning of an array.
      segment: the cells begin anew after so many bytes.
      step: size of a cell in bytes.
    """
    begins = offsets // segment * segment
    edges = (offsets - begins + step // 2) // step * step
    found: np.ndarray = begins + np.minimum(edges, segment)
    return found


def miss(offsets: np.ndarray, segment: int, step: int) -> int:
    """Returns by how many bytes `snap` moves an offset at most. The arguments are those of `snap`."""
    return int(np.abs(snap(offsets, segment, step) - offsets).max())


def steps(cell: Cell, shape: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Returns the bytes after which the cells of a box begin anew, and the size of a cell, for `snap`.

    Args:
      cell: the cell.
      shape: shape of the box.
      itemsize: size of one element in bytes.
    """
    segment = math.prod(shape[cell.lead :]) * itemsize
    return segment, segment // shape[cell.axis] * cell.extent


def choose(
    layout: Layout, itemsize: int, shape: tuple[int, ...], wanted: np.ndarray, tolerance: int, given: Cell | None
) -> Cell | None:
    """Chooses the cells of an array: the largest whose edges are near enough to where the array should be cut.

    Returns None for boxes of one element, or of one PRNG key, which are not cut.

    Args:
      layout: the layout of the array.
      itemsize: size of one element in bytes.
      shape: shape of the boxes that are cut.
      wanted: where the boxes should be cut: bytes from the beginning of the first.
      tolerance: bytes by which a cut may miss its place.
      given: the cell that has been chosen for other boxes of the same array, which then can only be divided; or None.
    """
    best: tuple[tuple[int, int, int], Cell] | None = None
    axes = range(layout.divisible) if given is None else (given.axis,)
    for axis in axes:
        if shape[axis] <= 1 and given is None:
            continue
        for lead in sorted({axis, 0}, reverse=True) if given is None else (given.lead,):
            segment = math.prod(shape[lead:]) * itemsize
            row = segment // shape[axis]
            if given is None:
                extents = _extents(layout.grid[axis], is_whole=layout.grid[axis] == layout.shape[axis])
            else:
                extents = _extents(given.extent, is_whole=False)
            found = _largest(extents, wanted, segment, row, tolerance)
            step = row * found
            missed = max(0, miss(wanted, segment, step) - tolerance)
            # Near enough first. Then contiguous in memory, unless that makes tiny cells.
            rank = (-missed, int(8 * step >= 2 * tolerance), int(lead == axis)), Cell(lead, axis, found)
            if best is None or rank[0] > best[0]:
                best = rank
        if best is not None and best[0] == (0, 1, 1):
            break
    return None if best is None else best[1]


def _largest(extents: Sequence[int], offsets: np.ndarray, segment: int, row: int, tolerance: int) -> int:
    """Returns the largest of `extents` whose cells end near enough to all offsets; if there is none, the best of the small ones."""
    for extent in itertools.islice(extents, _TRIES):
        if row * extent <= 2 * tolerance or miss(offsets, segment, row * extent) <= tolerance:
            return extent
    return next((extent for extent in extents if row * extent <= 2 * tolerance), extents[-1])


@functools.lru_cache(maxsize=1024)
def _extents(extent: int, *, is_whole: bool) -> tuple[int, ...]:
    """Returns the extents that cells may have along an axis, descending.

    Args:
      extent: extent of the boxes.
      is_whole: whether the boxes have the whole axis. Then the last cell may be smaller; otherwise cells must divide the boxes evenly.
    """
    if not is_whole:
        small = [number for number in range(1, math.isqrt(extent) + 1) if extent % number == 0]
        return tuple(sorted({*small, *(extent // number for number in small)}, reverse=True))
    even = {-(-extent // number) for number in range(1, 17)}
    # These have many divisors, so that chunks of any size fill them.
    round_numbers = {number << shift for number in range(8, 16) for shift in range(extent.bit_length())}
    candidates = {number for number in even | round_numbers | set(range(1, 8)) if number <= extent}
    # The last cell is stored as large as the others. Most of it should be used.
    return tuple(sorted((number for number in candidates if -extent % number * _PADDING <= extent), reverse=True))


def cut(box: Box, cell: Cell, begin: int, end: int, itemsize: int) -> Iterator[Box]:
    """Yields the boxes that are a part of a box.

    Args:
      box: the whole box.
      cell: where it may be cut.
      begin: first byte of the part, in the order of the cells.
      end: the byte after the part.
      itemsize: size of one element in bytes.
    """
    lead, axis, _ = cell
    row = math.prod(box.shape[lead:]) * itemsize // box.shape[axis]
    for start, shape in _runs(begin // row, end // row, (*box.shape[:lead], box.shape[axis])):
        first, extents = list(box.start), list(box.shape)
        for at, offset, extent in zip((*range(lead), axis), start, shape, strict=True):
            first[at] += offset
            extents[at] = extent
        yield Box(tuple(first), tuple(extents))


def _runs(first: int, last: int, extents: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yields start and shape of boxes that together hold the elements `first` to `last` (exclusive) of an array in C order."""
    if len(extents) == 1:
        if first < last:
            yield (first,), (last - first,)
        return
    inner = math.prod(extents[1:])
    (row, at), (end_row, end) = divmod(first, inner), divmod(last, inner)
    if row == end_row:
        yield from (((row, *start), (1, *shape)) for start, shape in _runs(at, end, extents[1:]))
        return
    if at:
        yield from (((row, *start), (1, *shape)) for start, shape in _runs(at, inner, extents[1:]))
        row += 1
    if row < end_row:
        yield (row, *(0 for _ in extents[1:])), (end_row - row, *extents[1:])
    yield from (((end_row, *start), (1, *shape)) for start, shape in _runs(0, end, extents[1:]))
