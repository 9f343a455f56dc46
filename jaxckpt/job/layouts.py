"""How an array lies on the devices of a job: its boxes (rectangular parts), and the processes that hold each of them."""

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxckpt._lib.boxes import Box, grid_of


class Orbit(NamedTuple):
    """Boxes of one shape that several groups of processes hold, each group as many, and no two groups with a common process.

    Attributes:
      key: number of processes of a group, and all groups; equal keys mean equal groups.
      shape: shape of each box.
      groups: for each group (row) its processes, ascending.
      boxes: for each group the positions of its boxes in `Layout.boxes`.
      places: for each process its group, and its position there.
    """

    key: tuple[int, bytes]
    shape: tuple[int, ...]
    groups: np.ndarray
    boxes: np.ndarray
    places: dict[int, tuple[int, int]]


class Parts(NamedTuple):
    """The boxes of a layout by who may own them.

    Attributes:
      owned: for each process the positions of the boxes that only it can own.
      fixed: for each process the number of elements of these boxes.
      orbits: the other boxes.
    """

    owned: dict[int, tuple[int, ...]]
    fixed: np.ndarray
    orbits: tuple[Orbit, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """How an array of one shape lies on the devices of a job.

    Attributes:
      boxes: the distinct boxes. They cover the array and do not overlap.
      holders: for each box the processes that hold it, ascending.
      grid: the shape of one cell of the regular grid that the boxes follow.
      digest: identifies the layout; it is the same on every process.
      shape: shape of the array.
      divisible: number of leading axes that may be cut.
    """

    boxes: tuple[Box, ...]
    holders: tuple[tuple[int, ...], ...]
    grid: tuple[int, ...]
    digest: str
    shape: tuple[int, ...]
    divisible: int
    _parts: dict[int | None, Parts] = field(default_factory=dict, repr=False)


@functools.lru_cache(maxsize=128)
def layout_of(sharding: Any, shape: tuple[int, ...], trailing: tuple[int, ...] = ()) -> Layout:
    """Returns the layout of an array.

    Args:
      sharding: a jax.sharding.Sharding, or any object with ``devices_indices_map(shape)``.
      shape: shape of the array.
      trailing: extents of further axes, which are not divided (those of the key data of PRNG keys).
    """
    zeros = (0,) * len(trailing)
    holders: dict[Box, set[int]] = {}
    spans: dict[Any, tuple[int, int]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        start, extents = [], []
        for part, extent in zip(index, shape, strict=True):
            key = (part.start, part.stop, extent)
            span = spans.get(key)
            if span is None:
                first, last, _ = part.indices(extent)
                span = spans[key] = (first, last - first)
            start.append(span[0])
            extents.append(span[1])
        holders.setdefault(Box((*start, *zeros), (*extents, *trailing)), set()).add(device.process_index)
    boxes = tuple(sorted(holders))
    by_box = tuple(tuple(sorted(holders[box])) for box in boxes)
    digest = hashlib.blake2b(repr((boxes, by_box)).encode(), digest_size=16).hexdigest()
    whole = (*shape, *trailing)
    return Layout(boxes, by_box, grid_of(whole, boxes), digest, whole, len(shape))


def parts_of(layout: Layout, center: int | None) -> Parts:
    """Returns the boxes of a layout by who may own them.

    Args:
      layout: the layout.
      center: the process that owns every box that it holds; None if there is none.
    """
    found = layout._parts.get(center)
    if found is None:
        found = layout._parts[center] = _parts(layout, center)
    return found


def _parts(layout: Layout, center: int | None) -> Parts:
    owned: dict[int, list[int]] = {}
    shared: dict[tuple[int, ...], list[int]] = {}
    for position, holders in enumerate(layout.holders):
        if center is not None and center in holders:
            owned.setdefault(center, []).append(position)
        elif len(holders) == 1 or 0 in layout.boxes[position].shape:
            owned.setdefault(holders[0], []).append(position)
        else:
            shared.setdefault(holders, []).append(position)
    fixed = np.zeros(1 + max(max(holders) for holders in layout.holders), np.int64)
    for process, positions in owned.items():
        fixed[process] = sum(_size(layout.boxes[position]) for position in positions)
    alike: dict[tuple[tuple[int, ...], int, int], list[tuple[tuple[int, ...], list[int]]]] = {}
    for group, positions in shared.items():
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for position in positions:
            by_shape.setdefault(layout.boxes[position].shape, []).append(position)
        for shape, same in by_shape.items():
            alike.setdefault((shape, len(same), len(group)), []).append((group, same))
    orbits = tuple(
        _orbit(shape, members) for (shape, _, _), groups in alike.items() for members in _without_common(groups)
    )
    return Parts({process: tuple(positions) for process, positions in owned.items()}, fixed, orbits)


def _size(box: Box) -> int:
    size = 1
    for extent in box.shape:
        size *= extent
    return size


def _without_common(
    groups: list[tuple[tuple[int, ...], list[int]]],
) -> list[list[tuple[tuple[int, ...], list[int]]]]:
    """Returns the groups in lists, in each of which no process is in two groups. Most often there is one list."""
    lists: list[tuple[set[int], list[tuple[tuple[int, ...], list[int]]]]] = []
    for group in groups:
        found = next((each for each in lists if each[0].isdisjoint(group[0])), None)
        if found is None:
            found = (set(), [])
            lists.append(found)
        found[0].update(group[0])
        found[1].append(group)
    return [members for _, members in lists]


def _orbit(shape: tuple[int, ...], members: list[tuple[tuple[int, ...], list[int]]]) -> Orbit:
    groups = np.array([group for group, _ in members], np.int64)
    places = {
        int(process): (row, rank) for row, group in enumerate(groups.tolist()) for rank, process in enumerate(group)
    }
    boxes = np.array([positions for _, positions in members], np.int64)
    return Orbit((groups.shape[1], groups.tobytes()), shape, groups, boxes, places)
