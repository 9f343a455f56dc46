"""Divides the boxes that are wanted of one array into cells of whole chunks, so that each chunk is read once for all boxes. Pure."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxckpt._lib.boxes import Slices

Spans = Sequence[tuple[int, int]]


class Cell(NamedTuple):
    """A part of an array to read in one step. No chunk reaches into two cells.

    Attributes:
      region: the part: of some whole chunks, the smallest box with everything that is wanted of them.
      wanted: for each box that wants a part of it: its index, the part as a box of the region, and as a box of the wanted box.
      chunks: number of chunks.
    """

    region: Slices
    wanted: list[tuple[int, Slices, Slices]]
    chunks: int


def are_shared(boxes: Sequence[Spans], grid: Sequence[int]) -> bool:
    """Whether two boxes want parts of one chunk.

    Args:
      boxes: first index and end of each box along each axis. They are not empty.
      grid: shape of the chunks.
    """
    return any(len(wanted) > 1 for _, wanted in _ranges(boxes, grid))


def cells(boxes: Sequence[Spans], grid: Sequence[int], itemsize: int, limit: int) -> Iterator[Cell]:
    """Yields cells that contain everything that the boxes want.

    Args:
      boxes: first index and end of each box along each axis. They are not empty.
      grid: shape of the chunks.
      itemsize: size of one element in bytes.
      limit: the largest size of a cell in bytes. A larger cell is a single chunk.
    """
    for whole, wanted in _ranges(boxes, grid):
        for part in _divided(whole, max(1, limit // (math.prod(grid) * itemsize))):
            spans = []
            for axis, (first, last) in enumerate(part):
                low = min(boxes[number][axis][0] for number in wanted)
                high = max(boxes[number][axis][1] for number in wanted)
                spans.append((max(low, first * grid[axis]), min(high, last * grid[axis])))
            found = []
            for number in wanted:
                inside, there = [], []
                for (low, high), (start, stop) in zip(spans, boxes[number], strict=True):
                    first, last = max(low, start), min(high, stop)
                    inside.append(slice(first - low, last - low))
                    there.append(slice(first - start, last - start))
                found.append((number, tuple(inside), tuple(there)))
            yield Cell(
                tuple([slice(low, high) for low, high in spans]), found, math.prod(last - first for first, last in part)
            )


def _ranges(boxes: Sequence[Spans], grid: Sequence[int]) -> Iterator[tuple[list[tuple[int, int]], list[int]]]:
    """Yields ranges of chunks, along each axis, all of which are wanted by the same boxes; and the indices of these boxes."""
    axes: list[list[tuple[tuple[int, int], int]]] = []
    for axis, extent in enumerate(grid):
        ranges = [(box[axis][0] // extent, -(-box[axis][1] // extent)) for box in boxes]
        borders = sorted({border for span in ranges for border in span})
        # Sets of boxes as the bits of a number: there may be hundreds of boxes, and thousands of ranges.
        axes.append(
            [
                ((low, high), sum(1 << number for number, (first, last) in enumerate(ranges) if first <= low < last))
                for low, high in itertools.pairwise(borders)
            ]
        )
    for combined in itertools.product(*axes):
        bits = (1 << len(boxes)) - 1
        for _, each in combined:
            bits &= each
        if bits:
            yield [span for span, _ in combined], [number for number in range(len(boxes)) if bits >> number & 1]


def _divided(chunks: list[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Yields parts, of at most `most` chunks, of a range of chunks along each axis."""
    counts = [last - first for first, last in chunks]
    if math.prod(counts) <= most:
        yield chunks
        return
    # The first axis longer than one is halved, so that the parts come in the order of the chunks.
    axis = next(axis for axis, count in enumerate(counts) if count > 1)
    first, last = chunks[axis]
    middle = first + (last - first) // 2
    yield from _divided([*chunks[:axis], (first, middle), *chunks[axis + 1 :]], most)
    yield from _divided([*chunks[:axis], (middle, last), *chunks[axis + 1 :]], most)
