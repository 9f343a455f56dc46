"""Who writes what: every process computes the same answer from the shardings alone, without asking anyone.

Of every distinct box of an array exactly one holder is the owner, which writes it or sends it. Work is done once per *layout*, a pair of
sharding and shape, of which a model with thousands of leaves has few; a leaf costs what this process's own boxes cost.
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
      boxes: the distinct boxes; together they are the array, and none overlaps another.
      holders: for each box the processes that hold it, ascending.
      grid: the extents that the boxes are laid out by.
      digest: tells layouts apart, the same on every process.
    """

    boxes: tuple[Box, ...]
    holders: tuple[tuple[int, ...], ...]
    grid: tuple[int, ...]
    digest: str

    def owner(self, box: int, turn: int, center: int | None) -> int:
        """Returns the process that owns a box.

        Args:
          box: position in `boxes`.
          turn: one more for every leaf of this layout; replicas take turns, so that each process gets its share.
          center: the process that writes everything, which owns what it holds; None if every process writes.
        """
        holders = self.holders[box]
        if center is not None and center in holders:
            return center
        return holders[(turn + box) % len(holders)]


class Plan:
    """The layouts of the arrays of one call, and their turns.

    Arrays have to be asked for in the same order on every process.
    """

    def __init__(self, process: int, center: int | None) -> None:
        """Args: index of this process, and of the one that writes everything, or None."""
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
          sharding: a jax.sharding.Sharding, or anything with ``devices_indices_map(shape)``.
          shape: that the sharding is for.
          trailing: extents of further axes, which are not divided (those of the data of PRNG keys).
        """
        key = (sharding, shape, trailing)
        found = self._layouts.get(key)
        if found is None:
            # Layouts begin with different processes: a model may have many of which there is one leaf each.
            found = self._layouts[key] = _layout(sharding, shape, trailing)
            self._turns[id(found)] = len(self._layouts) - 1
        return found

    def text(self, sharding: Any, shape: tuple[int, ...]) -> str:
        """Returns the text of a sharding, the same on every process. A sharding's own does not say which devices; the layout does."""
        layout = self.layout(sharding, shape)
        key = (sharding, id(layout))
        found = self._texts.get(key)
        if found is None:
            found = self._texts[key] = f"{sharding} (layout {layout.digest[:8]})"
        return found

    @staticmethod
    def host_layout(shape: tuple[int, ...]) -> Layout:
        """Returns the layout of a host leaf, which has no owner by itself: process 0 has what is stored, as in Orbax."""
        return Layout((Box((0,) * len(shape), shape),), ((HOST_OWNER,),), shape, "host")

    def assign(self, layout: Layout) -> "Share":
        """Returns who owns the boxes of the next array of this layout."""
        turn = self._turns.get(id(layout), 0)
        self._turns[id(layout)] = turn + 1
        return Share(layout, turn, self)

    def held(self, layout: Layout) -> tuple[int, ...]:
        """Returns the positions of the boxes that this process holds."""
        held = self._held.get(id(layout))
        if held is None:
            me = self.process
            held = tuple(position for position, holders in enumerate(layout.holders) if me in holders)
            self._held[id(layout)] = held
        return held

    def places(self, layout: Layout, find: Callable[[], Sequence[Box]]) -> Sequence[Box]:
        """Returns the boxes of this process's shards, in the order of the shards: what `find` returned for the first such array."""
        found = self._places.get(id(layout))
        if found is None:
            found = self._places[id(layout)] = find()
        return found


class Share(NamedTuple):
    """Who owns the boxes of one array."""

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
        """Yields every box and its owner, one at a time: there may be as many as devices."""
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
    """Returns the digest of names and texts."""
    found = hashlib.blake2b(digest_size=16)
    for name, text in lines:
        found.update(f"{len(name)} {name} {len(text)} {text}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()
