"""Which small pieces of the peers the IO process fetches together, and where in an answer each of them is. Pure.

A *window* is a run of small pieces, in the order of the leaves. The IO process fetches one window at a time, with one message to each
owner. Arrays of one window that are divided in the same way make up one *pattern*: their bytes are put together with a few operations of
numpy, however many arrays they are.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxckpt._lib.boxes import Box
from jaxckpt.job.layouts import Layout
from jaxckpt.job.plan import Share
from jaxckpt.job.protocol.messages import AskSmall
from jaxckpt.job.protocol.parts import BoxAt
from jaxckpt.storage.item.content import ArrayContent, Entry

# Pieces of at most so many bytes are small, and so are arrays.
SMALL_BYTES = 64 << 10
WHOLE_BYTES = SMALL_BYTES
# Most bytes and most pieces of one owner, the IO process included, in a window.
_BATCH_BYTES = 1 << 20
_BATCH_PIECES = 8192
# Most pieces of a window, of all owners together. They are in memory as objects.
_WINDOW_PIECES = 4 * _BATCH_PIECES
# Most pieces whose windows are kept until the next save.
_KEPT_PIECES = 1 << 17

# A box, its owner and its bytes.
Owned = tuple[Box, int, int]


class Request(NamedTuple):
    """The pieces of one owner in a window.

    Attributes:
      owner: index of the process.
      message: asks for them.
      nbytes: their bytes.
    """

    owner: int
    message: AskSmall
    nbytes: int


class Pattern(NamedTuple):
    """Arrays of a window that are divided in the same way.

    Attributes:
      positions: the positions of their leaves.
      shape: shape of each.
      dtype: dtype of each.
      boxes: their boxes.
      offsets: for each box, where in the answer of its owner the bytes of the arrays begin; None for this process's own boxes.
    """

    positions: list[int]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    boxes: tuple[Owned, ...]
    offsets: tuple[np.ndarray | None, ...]


class Window(NamedTuple):
    """A run of small pieces.

    Attributes:
      requests: what to ask for.
      patterns: the whole arrays among them.
      pieces: by position and box the pieces of other arrays: their owner, and where in its answer they begin.
    """

    requests: tuple[Request, ...]
    patterns: tuple[Pattern, ...]
    pieces: dict[tuple[int, Box], tuple[int, int]]


class Windows:
    """The windows of one snapshot. They are made when they are needed, in order."""

    def __init__(self, entries: Sequence[Entry], process: int) -> None:
        """Creates the object.

        Args:
          entries: the entries of the snapshot. Only shapes, dtypes and shares matter.
          process: index of this process, the IO process.
        """
        # Not the entries: they hold data, and this object may be kept for later saves.
        self._arrays = [_array(entry) for entry in entries]
        self._process = process
        # Two saves of one structure may run at the same time.
        self._lock = threading.Lock()
        self._windows = self._made()
        self._found: list[Window | None] = []
        # By position the number of the window with the array, or with its first and last pieces.
        self._places: dict[int, tuple[int, int]] = {}
        self._boxes: dict[tuple[Layout, int], tuple[Owned, ...]] = {}
        self._pieces = 0
        self._is_complete = False

    @property
    def can_be_kept(self) -> bool:
        """Whether all windows are there, and are so few that they may stay in memory."""
        return self._is_complete and self._pieces <= _KEPT_PIECES

    def is_for(self, entries: Sequence[Entry], rest: Sequence[int] | None = None) -> bool:
        """Whether these windows hold for another snapshot of the same structure.

        Host leaves may have other shapes, because those of some kinds depend on the value.

        Args:
          entries: its entries.
          rest: the positions of those that do not depend on the structure alone; None if any may not.
        """
        arrays = self._arrays
        if len(entries) != len(arrays):
            return False
        for position in range(len(entries)) if rest is None else rest:
            entry, array = entries[position], arrays[position]
            if (array is None or getattr(entry.content, "share", None) is not array.share) and array != _array(entry):
                return False
        return True

    def of_array(self, position: int) -> int:
        """Returns the number of the window with an array.

        Args:
          position: position of the leaf.
        """
        return self._until(position)[0]

    def of_piece(self, position: int, box: Box) -> int:
        """Returns the number of the window with a piece of an array that is not small.

        Args:
          position: position of the leaf.
          box: the piece.
        """
        first, last = self._until(position)
        windows = ((number, self._found[number]) for number in range(first, last + 1))
        return next(number for number, window in windows if window is not None and (position, box) in window.pieces)

    def take(self, number: int) -> Window:
        """Returns a window. Each save asks for it once, so it is let go of if there are too many pieces for all windows to be kept.

        Args:
          number: its number.
        """
        window = self._found[number]
        assert window is not None
        if self._pieces > _KEPT_PIECES:
            self._found[number] = None
        return window

    def _until(self, position: int) -> tuple[int, int]:
        """Makes windows until the one with the last piece of a leaf is there. Returns the first and the last of the leaf."""
        with self._lock:
            while position not in self._places:
                self._found.append(next(self._windows))
            return self._places[position]

    def _made(self) -> Iterator[Window]:
        numbers: dict[int, int] = {}
        making = _Making(numbers)
        index = 0
        for position, array in enumerate(self._arrays):
            if array is None:
                continue
            boxes = self._owned(array)
            first = index
            if 0 < array.nbytes <= WHOLE_BYTES:
                groups: list[Sequence[Owned]] = [boxes]
            else:
                groups = [(owned,) for owned in boxes if owned[1] != self._process and 0 < owned[2] <= SMALL_BYTES]
            for number, group in enumerate(groups):
                theirs = [owned for owned in group if owned[1] != self._process and owned[2]]
                if not making.has_room(group):
                    yield making.window(self._process)
                    making = _Making(numbers)
                    index += 1
                    first = index if number == 0 else first
                self._pieces += len(group)
                making.add(position, array, group, theirs, self._process)
            self._places[position] = first, index
        self._is_complete = True
        yield making.window(self._process)

    def _owned(self, array: "_Array") -> tuple[Owned, ...]:
        """Returns the boxes of an array in C order, as their owners number them.

        They are computed once for all arrays of a layout without replicas.
        """
        share: Share = array.share
        layout, itemsize = share.layout, array.dtype.itemsize
        found = self._boxes.get((layout, itemsize)) if layout is not None else None
        if found is None:
            found = tuple((box, owner, math.prod(box.shape) * itemsize) for box, owner in sorted(share.all()))
            if layout is not None:
                self._boxes[layout, itemsize] = found
        return found


class _Array(NamedTuple):
    """What windows depend on."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    share: Any

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _array(entry: Entry) -> _Array | None:
    content = entry.content
    if not isinstance(content, ArrayContent) or content.share is None:
        return None
    return _Array(content.shape, content.dtype, content.share)


class _Making:
    """A window that is being made."""

    def __init__(self, numbers: dict[int, int]) -> None:
        """Creates an empty window.

        Args:
          numbers: for each owner the number of its next piece. It is changed.
        """
        self._numbers = numbers
        self._firsts: dict[int, tuple[int, BoxAt]] = {}
        self._lasts: dict[int, BoxAt] = {}
        self._counts: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._total = 0
        # Positions and offsets by boxes, shape and dtype. Most leaves have the very same tuple of boxes.
        self._patterns: dict[Any, tuple[list[int], list[list[int]]]] = {}
        self._singles: dict[tuple[int, Box], tuple[int, int]] = {}

    def has_room(self, pieces: Sequence[Owned]) -> bool:
        """Whether pieces, this process's own ones too, fit into the window. Own pieces of small arrays are copied, as the others are."""
        if self._total == 0:
            return True
        if self._total + len(pieces) > _WINDOW_PIECES:
            return False
        more: dict[int, tuple[int, int]] = {}
        for _, owner, nbytes in pieces:
            count, size = more.get(owner, (0, 0))
            more[owner] = count + 1, size + nbytes
        return all(
            self._counts.get(owner, 0) + count <= _BATCH_PIECES and self._sizes.get(owner, 0) + size <= _BATCH_BYTES
            for owner, (count, size) in more.items()
        )

    def add(self, position: int, array: _Array, boxes: Sequence[Owned], theirs: Sequence[Owned], process: int) -> None:
        offsets = []
        for box, owner, nbytes in theirs:
            at = (position, *box)
            if owner not in self._firsts:
                self._firsts[owner] = self._numbers.get(owner, 0), at
            self._lasts[owner] = at
            self._numbers[owner] = self._numbers.get(owner, 0) + 1
            self._counts[owner] = self._counts.get(owner, 0) + 1
            offset = self._sizes.get(owner, 0)
            self._sizes[owner] = offset + nbytes
            offsets.append(offset)
        own = [nbytes for _, owner, nbytes in boxes if owner == process]
        self._counts[process] = self._counts.get(process, 0) + len(own)
        self._sizes[process] = self._sizes.get(process, 0) + sum(own)
        self._total += len(boxes)
        if 0 < array.nbytes <= WHOLE_BYTES:
            key = boxes, array.shape, array.dtype
            positions, found = self._patterns.setdefault(key, ([], [[] for _ in theirs]))
            positions.append(position)
            for column, offset in zip(found, offsets, strict=True):
                column.append(offset)
            return
        for (box, owner, _), offset in zip(theirs, offsets, strict=True):
            self._singles[position, box] = owner, offset

    def window(self, process: int) -> Window:
        requests = tuple(
            Request(owner, AskSmall(first, self._counts[owner], box, self._lasts[owner]), self._sizes[owner])
            for owner, (first, box) in self._firsts.items()
        )
        patterns = []
        for (boxes, shape, dtype), (positions, columns) in self._patterns.items():
            found = iter(columns)
            offsets = tuple(
                np.array(next(found), np.int64) if owner != process and nbytes else None for _, owner, nbytes in boxes
            )
            patterns.append(Pattern(positions, shape, dtype, boxes, offsets))
        return Window(requests, tuple(patterns), self._singles)
