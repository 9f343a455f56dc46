"""The boxes that a process wants to read, and the parts in which it takes them. Every process divides boxes into the same parts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxckpt._lib.aligned import aligned_empty
from jaxckpt._lib.boxes import Slices, spans_of
from jaxckpt.job.modes import tiles
from jaxckpt.job.modes.tiles import Indices
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo

# Orbax's name of a leaf, and the first index and the extents of a box.
BoxKey = tuple[str, Indices, Indices]


class Part(NamedTuple):
    """A part of a box, which lies in one tile. Parts compare in the order in which every process takes them.

    Attributes:
      leaf: position of the leaf in the tree.
      number: number of the tile along each axis.
      box: position of the box.
      start: first index of the part along each axis of the array.
      shape: its extents.
    """

    leaf: int
    number: Indices
    box: int
    start: Indices
    shape: Indices


def parts_of(boxes: Sequence[BoxKey], infos: Mapping[str, ArrayInfo], positions: Mapping[str, int]) -> list[Part]:
    """Returns the parts of boxes, in the order in which every process takes them. Boxes without elements have no parts.

    Args:
      boxes: the boxes.
      infos: descriptions of their arrays, by Orbax's name.
      positions: positions of all leaves in the tree, by Orbax's name.
    """
    found = [
        Part(positions[name], number, box, first, shape)
        for box, (name, start, extents) in enumerate(boxes)
        if 0 not in extents
        for number, first, shape in tiles.parts_of(start, extents, infos[name])
    ]
    found.sort()
    return found


class Wanted:
    """The boxes of one read, and the new arrays that receive them.

    Attributes:
      arrays: the arrays, one for each request.
      boxes: the boxes.
      parts: their parts, in order.
    """

    def __init__(
        self,
        requests: Iterable[tuple[str, Slices | None]],
        infos: Mapping[str, ArrayInfo],
        positions: Mapping[str, int],
    ) -> None:
        """Makes the arrays.

        Args:
          requests: for each read Orbax's name of the leaf, and the box, or None for the whole array.
          infos: descriptions of the arrays, by Orbax's name.
          positions: positions of all leaves in the tree, by Orbax's name.
        """
        self.arrays: list[np.ndarray] = []
        self.boxes: list[BoxKey] = []
        for name, box in requests:
            info = infos[name]
            spans = spans_of(box, info.shape)
            shape = tuple([max(0, last - first) for first, last in spans])
            self.boxes.append((name, tuple([first for first, _ in spans]), shape))
            self.arrays.append(aligned_empty(shape, info.dtype))
        self.parts = parts_of(self.boxes, infos, positions)

    def target(self, part: Part) -> tuple[np.ndarray, BoxKey]:
        """Returns the place of a part in its array, and its key."""
        name, start, shape = self.boxes[part.box]
        key = name, part.start, part.shape
        if shape == part.shape:
            return self.arrays[part.box], key
        inside = tuple(
            [
                slice(first - origin, first - origin + extent)
                for first, origin, extent in zip(part.start, start, part.shape, strict=True)
            ]
        )
        return self.arrays[part.box][inside], key

    def divided(self, is_shared: Sequence[bool]) -> tuple[list[Part], list[tuple[np.ndarray, BoxKey]]]:
        """Returns the parts that are shared, and the rest: place and key of whole boxes, or of parts of those that are shared in part.

        Args:
          is_shared: for each of `parts` whether other processes want something of its tile too.
        """
        shared = [part for part, flag in zip(self.parts, is_shared, strict=True) if flag]
        if not shared:
            return [], [(array, box) for array, box in zip(self.arrays, self.boxes, strict=True) if array.size]
        touched = {part.box for part in shared}
        rest = [
            (array, box)
            for position, (array, box) in enumerate(zip(self.arrays, self.boxes, strict=True))
            if array.size and position not in touched
        ]
        rest += [
            self.target(part)
            for part, flag in zip(self.parts, is_shared, strict=True)
            if not flag and part.box in touched
        ]
        return shared, rest
