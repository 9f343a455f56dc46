"""The tiles that several processes want, as the center keeps them, and how it reads them."""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from jaxckpt._lib.boxes import Slices, slices_of
from jaxckpt.job.modes import bundles
from jaxckpt.job.modes.tiles import Indices
from jaxckpt.storage.source import OpenCheckpoint


@dataclass(slots=True, eq=False)
class Tile:
    """A tile that several processes want.

    Attributes:
      name: Orbax's name of the leaf.
      start: first index of the tile.
      shape: its extents.
      order: its position among all that are read.
      begin: bytes of all tiles before it.
      end: bytes of all tiles up to this one.
      left: number of parts that have not been taken.
      data: the tile; None before it is read, and after every process has taken its part.
      requests: reads the arrays of a bundle (see `bundles`), whose bytes are the tile; empty for other tiles.
    """

    name: str
    start: Indices
    shape: Indices
    order: int = 0
    begin: int = 0
    end: int = 0
    left: int = 0
    users: set[int] = field(default_factory=set)
    data: Future[np.ndarray] | None = None
    requests: Sequence[tuple[str, Slices | None]] = ()


def bundles_of(stored: OpenCheckpoint, announced: Mapping[int, Sequence[int]]) -> tuple[tuple[int, ...], list[Tile]]:
    """Returns the very small arrays that all processes want, as runs, and the bundles. Every process takes all bundles first.

    Args:
      stored: the checkpoint.
      announced: the runs of very small arrays that a process wants, by process.

    Raises:
      ProcessError: a process wants arrays that do not exist.
    """
    leaves = stored.tree.leaves
    # Most often all processes want the same ones.
    wanted = {tuple(runs) for runs in announced.values()}
    first = wanted.pop()
    ordered = bundles.positions_of(first, len(leaves))
    if wanted:
        positions = set(ordered)
        for runs in wanted:
            positions.intersection_update(bundles.positions_of(runs, len(leaves)))
        ordered = sorted(positions)
    infos = stored.infos([leaves[position] for position in ordered])
    made = bundles.Bundles(ordered, leaves, infos)
    found = [
        Tile(*key, end=key[2][0], left=len(announced), users=set(announced), requests=made.requests(number))
        for number, key in enumerate(made.keys)
    ]
    return bundles.runs_of(ordered), found


def read(stored: OpenCheckpoint, wanted: Sequence[Tile]) -> list[np.ndarray]:
    """Reads tiles.

    Args:
      stored: the checkpoint.
      wanted: the tiles.
    """
    requests: list[tuple[str, Slices | None]] = []
    for tile in wanted:
        requests += tile.requests or [(tile.name, slices_of(tile.start, tile.shape))]
    arrays = iter(stored.read(requests))
    return [
        bundles.packed(itertools.islice(arrays, len(tile.requests))) if tile.requests else next(arrays)
        for tile in wanted
    ]
