"""The plan of a save: which process writes or sends which part of an array.

Every process computes the same plan from the shardings alone, without asking another process. A *box* is a rectangular part of an array.
Several processes may hold the same box (a replica). It is divided among them, or one of them gets all of it: every element has exactly one
*owner*, which writes it or sends it.

A *layout* is a pair of sharding and shape. A model with thousands of leaves has few layouts, so most of the work is done once per layout.
For each leaf, only the boxes that this process holds are looked at.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from jaxckpt._lib.boxes import Box
from jaxckpt.job.dividing import Array, Division, divide
from jaxckpt.job.layouts import Layout, layout_of

HOST_OWNER = 0


class Plan:
    """The layouts of the arrays of one call, or of calls with the same structure, and who owns which part of them."""

    def __init__(self, process: int, center: int | None, *, kept: dict[str, Any] | None = None) -> None:
        """Creates a plan without layouts.

        Args:
          process: index of this process.
          center: index of the process that writes everything; None if every process writes.
          kept: for a plan that later calls with leaves of the same structure get too (see `jaxckpt.job.structures`): where they keep
            what depends on the structure alone, by what it is. None for a plan of one call.
        """
        self.process = process
        self.center = center
        self.kept = kept
        self._layouts: dict[tuple[Any, tuple[int, ...], tuple[int, ...]], Layout] = {}
        self._places: dict[int, Sequence[Box]] = {}
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
            found = self._layouts[key] = layout_of(sharding, shape, trailing)
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

    def divide(self, arrays: Sequence[tuple[Layout, int]]) -> list["Share"]:
        """Divides all arrays of a save that lie on the devices of several processes. Returns the owners of the parts of each.

        Args:
          arrays: for each array its layout, and the size of one element in bytes. Every process must give them in the same order.
        """
        division = divide(tuple([Array(layout, itemsize) for layout, itemsize in arrays]), self.center)
        return [Divided(self, division, number) for number in range(len(arrays))]

    def host_share(self, shape: tuple[int, ...]) -> "Share":
        """Returns the owner of a host leaf (a value in host memory): process 0, as in Orbax.

        Args:
          shape: shape of the value.
        """
        return Host(self, shape)

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


class Share(Protocol):
    """The owners of the parts of one array."""

    @property
    def plan(self) -> Plan:
        """The plan."""

    @property
    def grid(self) -> tuple[int, ...]:
        """The extents of one cell of the regular grid that the boxes follow. Each box consists of whole cells."""

    @property
    def layout(self) -> Layout | None:
        """The layout, if owners follow from it alone, so that they are the same for every array of the layout."""

    def mine(self) -> list[Box]:
        """Returns the boxes that this process owns."""

    def all(self) -> Iterator[tuple[Box, int]]:
        """Yields every box and its owner. An iterator, because there may be as many boxes as devices."""


class Divided(NamedTuple):
    """The share of an array that lies on the devices of several processes.

    Attributes:
      plan: the plan.
      division: the division of all arrays of the save.
      number: position of the array.
    """

    plan: Plan
    division: Division
    number: int

    @property
    def grid(self) -> tuple[int, ...]:
        """See `Share`."""
        return self.division.grid(self.number)

    @property
    def layout(self) -> Layout | None:
        """See `Share`."""
        layout = self.division.layout(self.number)
        return layout if layout.has_no_replicas else None

    def mine(self) -> list[Box]:
        """Returns the boxes that this process owns; see `Share`."""
        return self.division.mine(self.number, self.plan.process)

    def all(self) -> Iterator[tuple[Box, int]]:
        """Yields every box and its owner; see `Share`."""
        return self.division.all(self.number)


class Host(NamedTuple):
    """The share of a host leaf.

    Attributes:
      plan: the plan.
      shape: shape of the value.
    """

    plan: Plan
    shape: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """See `Share`."""
        return self.shape

    @property
    def layout(self) -> Layout | None:
        """See `Share`."""
        return None

    def mine(self) -> list[Box]:
        """Returns the boxes that this process owns; see `Share`."""
        return [box for box, owner in self.all() if owner == self.plan.process]

    def all(self) -> Iterator[tuple[Box, int]]:
        """Yields every box and its owner; see `Share`."""
        yield Box((0,) * len(self.shape), self.shape), HOST_OWNER


def digest_of(lines: Sequence[tuple[str, str]]) -> str:
    """Returns the digest of pairs of name and text."""
    found = hashlib.blake2b(digest_size=16)
    for name, text in lines:
        found.update(f"{len(name)} {name} {len(text)} {text}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()
