"""The plan of a save: which process writes or sends which part of an array.

Every process computes the same plan from the shardings alone, without asking another process. A *box* is a rectangular part of an array.
Several processes may hold the same box (a replica); exactly one of them is its *owner*, which writes it or sends it.

A *layout* is a pair of sharding and shape. A model with thousands of leaves has few layouts, so most of the work is done once per layout.
For each leaf, only the boxes that this process holds are looked at.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxckpt._lib.boxes import Box, grid_of

HOST_OWNER = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """How an array of one shape lies on the devices of a job.

    Attributes:
      boxes: the distinct boxes. They cover the array and do not overlap.
      holders: for each box the processes that hold it, ascending.
      grid: the shape of one cell of the regular grid that the boxes follow.
      digest: identifies the layout; it is the same on every process.
    """

    boxes: tuple[Box, ...]
    holders: tuple[tuple[int, ...], ...]
    grid: tuple[int, ...]
    digest: str

    def owner(self, box: int, turn: int, center: int | None) -> int:
        """Returns the process that owns a box.

        Args:
          box: position in `boxes`.
          turn: a number that grows by one with each leaf of this layout. The replicas take turns as owners, so that every process gets
            a similar share of the work.
          center: the process that writes everything. It owns every box that it holds. None if every process writes.
        """
        holders = self.holders[box]
        if center is not None and center in holders:
            return center
        return holders[(turn + box) % len(holders)]


class Plan:
    """The layouts of the arrays of one call, and how many arrays of each layout have been assigned.

    Every process must ask for the arrays in the same order.
    """

    def __init__(self, process: int, center: int | None) -> None:
        """Creates a plan without layouts.

        Args:
          process: index of this process.
          center: index of the process that writes everything; None if every process writes.
        """
        self.process = process
        self.center = center
        self._layouts: dict[tuple[Any, tuple[int, ...], tuple[int, ...]], Layout] = {}
        self._held: dict[int, tuple[int, ...]] = {}
        self._places: dict[int, Sequence[Box]] = {}
        self._turns: dict[int, int] = {}
        self._texts: dict[tuple[Any, int], str] = {}

    def layout(self, sharding: Any, shape: tuple[int, ...], trailing: tuple[int, ...] = ()) -> Layout:
        """Returns the layout of an array.

        Args:
          sharding: a jax.sharding.Sharding, or any object with ``devices_indices_map(shape)``.
          shape: shape of the array.
          trailing: extents of further axes, which are not divided (those of the key data of PRNG keys).
        """
        key = (sharding, shape, trailing)
        found = self._layouts.get(key)
        if found is None:
            # Each layout begins with another replica. A model may have many layouts with one leaf each: their work must be shared too.
            found = self._layouts[key] = _layout(sharding, shape, trailing)
            self._turns[id(found)] = len(self._layouts) - 1
        return found

    def text(self, sharding: Any, shape: tuple[int, ...]) -> str:
        """Returns a text for a sharding, the same on every process. It includes the digest of the layout, which depends on the devices.

        Args:
          sharding: as for `layout`.
          shape: shape of the array.
        """
        layout = self.layout(sharding, shape)
        key = (sharding, id(layout))
        found = self._texts.get(key)
        if found is None:
            found = self._texts[key] = f"{sharding} (layout {layout.digest[:8]})"
        return found

    @staticmethod
    def host_layout(shape: tuple[int, ...]) -> Layout:
        """Returns the layout of a host leaf (a value in host memory): process 0 is its owner, as in Orbax.

        Args:
          shape: shape of the value.
        """
        return Layout((Box((0,) * len(shape), shape),), ((HOST_OWNER,),), shape, "host")

    def assign(self, layout: Layout) -> "Share":
        """Returns the owners of the boxes of the next array of a layout.

        Args:
          layout: as `layout` returned it.
        """
        turn = self._turns.get(id(layout), 0)
        self._turns[id(layout)] = turn + 1
        return Share(layout, turn, self)

    def held(self, layout: Layout) -> tuple[int, ...]:
        """Returns the positions of the boxes of a layout that this process holds.

        Args:
          layout: as `layout` returned it.
        """
        held = self._held.get(id(layout))
        if held is None:
            me = self.process
            held = tuple(position for position, holders in enumerate(layout.holders) if me in holders)
            self._held[id(layout)] = held
        return held

    def places(self, layout: Layout, find: Callable[[], Sequence[Box]]) -> Sequence[Box]:
        """Returns the boxes of this process's shards, in the order of the shards. They are the same for every array of a layout.

        Args:
          layout: as `layout` returned it.
          find: computes the boxes. Called only for the first array of the layout.
        """
        found = self._places.get(id(layout))
        if found is None:
            found = self._places[id(layout)] = find()
        return found


class Share(NamedTuple):
    """The owners of the boxes of one array.

    Attributes:
      layout: the layout of the array.
      turn: see `Layout.owner`.
      plan: the plan.
    """

    layout: Layout
    turn: int
    plan: Plan

    def mine(self) -> list[Box]:
        """Returns the boxes that this process owns."""
        layout, turn, plan = self
        return [
            layout.boxes[position]
            for position in plan.held(layout)
            if layout.owner(position, turn, plan.center) == plan.process
        ]

    def all(self) -> Iterator[tuple[Box, int]]:
        """Yields every box and its owner. An iterator, because there may be as many boxes as devices."""
        layout, turn, plan = self
        for position, box in enumerate(layout.boxes):
            yield box, layout.owner(position, turn, plan.center)


def _layout(sharding: Any, shape: tuple[int, ...], trailing: tuple[int, ...]) -> Layout:
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
    return Layout(boxes, by_box, grid_of((*shape, *trailing), boxes), digest)


def digest_of(lines: Sequence[tuple[str, str]]) -> str:
    """Returns the digest of pairs of name and text."""
    found = hashlib.blake2b(digest_size=16)
    for name, text in lines:
        found.update(f"{len(name)} {name} {len(text)} {text}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()
