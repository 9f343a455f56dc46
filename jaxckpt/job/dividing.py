"""Divides the arrays of a save among the processes that hold them, so that every process writes or sends about as many bytes. Pure.

The arrays that the same processes hold are laid end to end, as one *line* of bytes. Each process gets an interval of the line, as long as
its load allows. So an array is cut only where an interval begins. A cut may be anywhere but at the edge of a *cell*: a part of the array
that is stored in chunks of its own, because no chunk may belong to two processes. Cells are as large as the balance allows.

All arithmetic is in integers, so that processors of different kinds come to the same result.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxckpt._lib.boxes import Box
from jaxckpt.job import cells
from jaxckpt.job.cells import Cell
from jaxckpt.job.layouts import Layout, Orbit, parts_of

# An interval may begin this part of a process's load away from where it should.
_TOLERANCE = 32
# Boxes of at most so many bytes are dealt out instead of laid in order, so that their number is balanced too: each costs time.
_SMALL_BYTES = 64 << 10


class Array(NamedTuple):
    """An array that is divided.

    Attributes:
      layout: how it lies on the devices.
      itemsize: size of one element in bytes.
    """

    layout: Layout
    itemsize: int


class _Line:
    """Boxes of several arrays, end to end, in the same order for each group of processes that holds them.

    Attributes:
      starts: first byte of each array, and the end of the line.
      bounds: for each group (row) the first bytes of the intervals of its processes, and the end of the line.
    """

    def __init__(self, arrays: Sequence[int], orbits: Sequence[Orbit], sizes: Sequence[int]) -> None:
        """Creates a line that is not divided yet.

        Args:
          arrays: the positions of the arrays.
          orbits: for each array, its boxes that are on the line.
          sizes: for each array, the size of one of these boxes in bytes.
        """
        self.arrays = arrays
        self.orbits = orbits
        self.sizes = np.array(sizes, np.int64)
        lengths = [size * orbit.boxes.shape[1] for size, orbit in zip(sizes, orbits, strict=True)]
        self.starts = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))])
        self.bounds = np.zeros((0, 0), np.int64)

    @property
    def total(self) -> int:
        """Length of the line in bytes."""
        return int(self.starts[-1])

    def divide(self, amounts: np.ndarray, tolerance: int, found: list[Cell | None], whole: Sequence[Array]) -> None:
        """Divides the line into intervals.

        Args:
          amounts: for each group the bytes that its processes should get.
          tolerance: bytes by which an interval may begin too early or too late.
          found: for each array of the save its cell, or None if its boxes are not cut. Cells are added.
          whole: the arrays of the save.
        """
        ends = np.cumsum(amounts, axis=1)
        inner, position = np.unique(ends[:, :-1], return_inverse=True)
        at = np.clip(np.searchsorted(self.starts, inner, side="right") - 1, 0, len(self.arrays) - 1)
        snapped = np.array(inner)
        for index in np.unique(at):
            here = at == index
            offsets = inner[here] - self.starts[index]
            number, orbit, size = self.arrays[index], self.orbits[index], int(self.sizes[index])
            layout, itemsize = whole[number]
            if found[number] is not None or cells.miss(offsets, size, size) > tolerance:
                found[number] = cells.choose(layout, itemsize, orbit.shape, offsets, tolerance, found[number])
            cell = found[number]
            segment, step = (size, size) if cell is None else cells.steps(cell, orbit.shape, itemsize)
            snapped[here] = self.starts[index] + cells.snap(offsets, segment, step)
        self.bounds = np.zeros((amounts.shape[0], amounts.shape[1] + 1), np.int64)
        self.bounds[:, 1:-1] = snapped[position].reshape(ends[:, :-1].shape)
        self.bounds[:, -1] = self.total


class Division:
    """Which process owns which part of each array of a save."""

    def __init__(self, arrays: Sequence[Array], center: int | None) -> None:
        """Divides arrays among the processes that hold them.

        Args:
          arrays: the arrays, in the same order on every process.
          center: the process that writes everything, and owns every box that it holds; None if every process writes.
        """
        self._arrays = arrays
        self._center = center
        self._cells: list[Cell | None] = [None] * len(arrays)
        # For each array: the line on which an orbit lies, and where on it.
        self._places: list[list[tuple[_Line, int]]] = [[] for _ in arrays]
        parts = [parts_of(array.layout, center) for array in arrays]
        self._loads = np.zeros(max((len(part.fixed) for part in parts), default=0), np.int64)
        families: dict[tuple[int, bytes], list[tuple[int, Orbit]]] = {}
        for number, (array, part) in enumerate(zip(arrays, parts, strict=True)):
            self._loads[: len(part.fixed)] += part.fixed * array.itemsize
            for orbit in part.orbits:
                families.setdefault(orbit.key, []).append((number, orbit))
        # Boxes with few holders first: those with many holders can then level the loads.
        for _, members in sorted(families.items(), key=lambda family: family[0][0]):
            self._divide(members)

    def _divide(self, members: Sequence[tuple[int, Orbit]]) -> None:
        """Divides the boxes that are held by the same groups of processes."""
        groups = members[0][1].groups
        sizes = [math.prod(orbit.shape) * self._arrays[number].itemsize for number, orbit in members]
        total = sum(size * orbit.boxes.shape[1] for size, (_, orbit) in zip(sizes, members, strict=True))
        level = (int(self._loads[groups].sum(axis=1).min()) + total) // groups.shape[1]
        tolerance = level // _TOLERANCE
        most = min(_SMALL_BYTES, tolerance)
        small = _mixed([number for number, size in enumerate(sizes) if size <= most], sizes)
        large = [number for number, size in enumerate(sizes) if size > most]
        few, many = [
            self._line([members[number] for number in part], [sizes[number] for number in part])
            for part in (small, large)
        ]
        # The large boxes will level the loads, as far as they can. So the small ones are divided as if they had done so.
        levelled = self._loads[groups] + _fill(self._loads[groups], many.total)
        self._divide_line(few, groups, levelled, tolerance)
        self._divide_line(many, groups, self._loads[groups], tolerance)

    def _divide_line(self, line: _Line, groups: np.ndarray, loads: np.ndarray, tolerance: int) -> None:
        if line.total:
            line.divide(_fill(loads, line.total), tolerance, self._cells, self._arrays)
            self._loads[groups] += np.diff(line.bounds, axis=1)

    def _line(self, members: Sequence[tuple[int, Orbit]], sizes: Sequence[int]) -> _Line:
        line = _Line([number for number, _ in members], [orbit for _, orbit in members], sizes)
        for index, (number, _) in enumerate(members):
            self._places[number].append((line, index))
        return line

    def grid(self, number: int) -> tuple[int, ...]:
        """Returns the extents of one cell of the regular grid that the boxes of an array follow.

        Args:
          number: position of the array.
        """
        grid, cell = self._arrays[number].layout.grid, self._cells[number]
        if cell is None:
            return grid
        return (*(1,) * cell.lead, *grid[cell.lead : cell.axis], cell.extent, *grid[cell.axis + 1 :])

    def mine(self, number: int, process: int) -> list[Box]:
        """Returns the boxes of an array that a process owns.

        Args:
          number: position of the array.
          process: index of the process.
        """
        layout = self._arrays[number].layout
        own = [layout.boxes[position] for position in parts_of(layout, self._center).owned.get(process, ())]
        for line, index in self._places[number]:
            place = line.orbits[index].places.get(process)
            if place is not None:
                own.extend(self._boxes(number, line, index, *place))
        return own

    def all(self, number: int) -> Iterator[tuple[Box, int]]:
        """Yields all boxes of an array, each with its owner. An iterator, because there may be as many boxes as devices.

        Args:
          number: position of the array.
        """
        layout = self._arrays[number].layout
        for process, positions in parts_of(layout, self._center).owned.items():
            for position in positions:
                yield layout.boxes[position], process
        for line, index in self._places[number]:
            for process, place in line.orbits[index].places.items():
                for box in self._boxes(number, line, index, *place):
                    yield box, process

    def _boxes(self, number: int, line: _Line, index: int, row: int, rank: int) -> Iterator[Box]:
        """Yields the boxes of an array that lie in an interval of a line."""
        orbit, size, start = line.orbits[index], int(line.sizes[index]), int(line.starts[index])
        first = max(0, int(line.bounds[row, rank]) - start)
        last = min(int(line.starts[index + 1]), int(line.bounds[row, rank + 1])) - start
        cell, array = self._cells[number], self._arrays[number]
        while first < last:
            position, begin = divmod(first, size)
            end = min(size, last - position * size)
            box = array.layout.boxes[orbit.boxes[row, position]]
            if end - begin == size:
                yield box
            else:
                assert cell is not None
                yield from cells.cut(box, cell, begin, end, array.itemsize)
            first = (position + 1) * size


@functools.lru_cache(maxsize=4)
def divide(arrays: tuple[Array, ...], center: int | None) -> Division:
    """Returns the division of arrays. A training loop saves the same ones again and again, so the last results are kept.

    Args:
      arrays: the arrays, in the same order on every process.
      center: the process that writes everything; None if every process writes.
    """
    return Division(arrays, center)


def _fill(loads: np.ndarray, total: int) -> np.ndarray:
    """Returns how many bytes each process should get, so that the processes with the smallest loads of each group are level.

    Args:
      loads: bytes that the processes of each group (row) have already.
      total: bytes to divide in each group.
    """
    ordered = np.sort(loads, axis=1)
    levels = (np.cumsum(ordered, axis=1) + total) // np.arange(1, loads.shape[1] + 1)
    filled = (levels >= ordered).sum(axis=1)
    level = np.take_along_axis(levels, filled[:, None] - 1, axis=1)
    amounts: np.ndarray = np.maximum(level - loads, 0)
    # What remains of the division goes to the processes with the smallest loads, a byte each.
    ranks = np.argsort(np.argsort(loads, axis=1, kind="stable"), axis=1)
    amounts += ranks < (total - amounts.sum(axis=1))[:, None]
    return amounts


def _mixed(numbers: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Returns numbers in an order in which small and large ones are mixed evenly, so that every interval has about as many.

    Args:
      numbers: positions of boxes.
      sizes: sizes of all boxes.
    """
    ordered = sorted(numbers, key=lambda number: (sizes[number], number))
    # Multiples of the golden ratio spread evenly.
    return [ordered[rank] for rank in sorted(range(len(ordered)), key=lambda rank: rank * 2654435769 % (1 << 32))]
