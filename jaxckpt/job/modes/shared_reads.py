"""Reads what several processes want once, on the center, and keeps it until all of them have taken it.

Every process announces the boxes that it is going to take, and then takes them in the order of the tiles (see `tiles`). The center reads a
tile when the first process wants a part of it. Tiles that are not yet taken by all have at most `_WINDOW_BYTES`: a process that is ahead of
the others waits for the slowest. The slowest always goes on, because the tile that it wants next is the oldest that is kept.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from jaxckpt._lib.boxes import slices_of
from jaxckpt._lib.deadline import SLICE_SECS, Deadline
from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import bundles, kept_tiles, tiles
from jaxckpt.job.modes.kept_tiles import Tile
from jaxckpt.job.modes.tiles import Indices
from jaxckpt.job.modes.wanted import BoxKey, Part, parts_of
from jaxckpt.job.session.session import patience
from jaxckpt.storage.source import OpenCheckpoint

# Most bytes of tiles that are kept because a process has not taken its parts yet.
_WINDOW_BYTES = 128 << 20
# Most bytes that are read at once, before a process asks for them.
_AHEAD_BYTES = 64 << 20


class SharedReads:
    """The tiles that several processes want, group by group. All processes read the same groups of leaves in the same order."""

    def __init__(self, stored: OpenCheckpoint, processes: Iterable[int], seconds: float) -> None:
        """Creates the object.

        Args:
          stored: the checkpoint, which this process has open.
          processes: indices of all processes of the job.
          seconds: most seconds of every wait.
        """
        self._stored = stored
        self._seconds = seconds
        self._positions = stored.tree.positions
        self._by_name = stored.tree.by_name
        self._changed = threading.Condition()
        self._missing = set(processes)
        self._expected = set(processes)
        self._announced: dict[int, tuple[Sequence[BoxKey], Sequence[int]]] = {}
        self._small: tuple[int, ...] = ()
        self._groups = 0
        # Of the current group: for each process whether each of its parts is shared; the shared tiles by leaf and number, and in order.
        self._flags: dict[int, list[bool]] = {}
        self._tiles: dict[tuple[str, Indices], Tile] = {}
        self._order: list[Tile] = []
        self._oldest = 0
        self._shapes: dict[str, Indices] = {}
        self._error: BaseException | None = None

    def close(self) -> None:
        """Frees all tiles. Idempotent."""
        with self._changed:
            self._tiles, self._order = {}, []

    def fail(self, error: BaseException) -> None:
        """Ends all waits, because the reading of a process has failed.

        Args:
          error: its error, which the waits raise.
        """
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def leave(self, process: int) -> None:
        """Notes that a process reads no more groups.

        Args:
          process: its index.
        """
        with self._changed:
            self._expected.discard(process)
            self._missing.discard(process)
            self._begin_if_complete()

    @property
    def small(self) -> tuple[int, ...]:
        """The very small arrays that all processes want whole, as runs. Valid after `announce`, until this process calls it again."""
        return self._small

    def announce(self, process: int, boxes: Sequence[BoxKey], small: Sequence[int] = ()) -> list[bool]:
        """Notes the boxes of a group of leaves that a process wants, and waits until all processes have announced theirs.

        Args:
          process: index of the process.
          boxes: the boxes.
          small: runs of the very small arrays that it wants.

        Returns:
          For each part of the boxes, in their order, whether other processes want something of its tile too.

        Raises:
          BaseException: the reading of a process has failed.
        """
        deadline = self._deadline("Waiting for the other processes")
        with self._changed:
            group = self._groups
            self._announced[process] = boxes, small
            self._missing.discard(process)
            self._begin_if_complete()
            self._wait(lambda: self._groups > group, deadline)
            return self._flags[process]

    def parts_of(self, boxes: Sequence[BoxKey]) -> list[Part]:
        """Returns the parts of boxes, in the order in which every process takes them."""
        infos = self._stored.infos([self._by_name[name] for name in {name for name, _, _ in boxes}])
        return parts_of(boxes, infos, self._positions)

    def _begin_if_complete(self) -> None:
        """Begins the next group as soon as every process has announced what it wants."""
        if self._missing or not self._announced:
            return
        announced, self._announced = self._announced, {}
        self._missing = set(self._expected)
        try:
            self._begin(announced)
        except BaseException as error:
            self._error = self._error or error
        self._groups += 1
        self._changed.notify_all()

    def _begin(self, announced: dict[int, tuple[Sequence[BoxKey], Sequence[int]]]) -> None:
        found: dict[tuple[int, Indices], Tile] = {}
        of_parts: dict[int, list[Tile]] = {}
        self._shapes = {}
        for process, (boxes, _) in announced.items():
            mine = of_parts[process] = []
            for part in self.parts_of(boxes):
                tile = found.get(part[:2])
                if tile is None:
                    tile = found[part[:2]] = self._tile(boxes[part.box][0], part.number)
                tile.users.add(process)
                tile.left += 1
                mine.append(tile)
        self._flags = {process: [len(tile.users) > 1 for tile in parts] for process, parts in of_parts.items()}
        self._small, self._order = kept_tiles.bundles_of(
            self._stored, {process: small for process, (_, small) in announced.items()}
        )
        self._shapes[bundles.NAME] = (1,)
        self._order += [found[key] for key in sorted(found) if len(found[key].users) > 1]
        end = 0
        for order, tile in enumerate(self._order):
            tile.order, tile.begin = order, end
            end = tile.end = end + tile.end
        self._tiles = {(tile.name, tiles.tile_at(tile.start, self._shapes[tile.name])): tile for tile in self._order}
        self._oldest = 0

    def _tile(self, name: str, number: Indices) -> Tile:
        info = self._stored.infos([self._by_name[name]])[name]
        shape = self._shapes.get(name)
        if shape is None:
            shape = self._shapes[name] = tiles.tile_of(info)
        start, extents = tiles.box_of(number, shape, info.shape)
        size = info.dtype.itemsize
        for extent in extents:
            size *= extent
        return Tile(name, start, extents, end=size)

    def is_shared(self, process: int, key: BoxKey) -> bool:
        """Returns whether a process and others have announced that they want something of the tile of a part.

        A process that does not announce a very small array, because it wants the whole, reads it alone if not all processes do. It must
        not take the place of one that has announced a box of it.

        Args:
          process: index of the process.
          key: the part.
        """
        tile = self._find(key)
        return tile is not None and process in tile.users

    def _find(self, key: BoxKey) -> Tile | None:
        name, start, _ = key
        shape = self._shapes.get(name)
        return None if shape is None else self._tiles.get((name, tiles.tile_at(start, shape)))

    @contextlib.contextmanager
    def taken(self, keys: Sequence[BoxKey]) -> Iterator[list[np.ndarray]]:
        """Reads parts, unless they are there already. When the block ends, they count as taken. Several threads may call this.

        Args:
          keys: shared parts, in the order of `parts_of`.

        Yields:
          The parts, read-only: views of tiles.

        Raises:
          ProcessError: a process takes a part that it has not announced.
          BaseException: the error of reading, or of another process.
        """
        if not keys:
            yield []
            return
        wanted = [self._find(key) for key in keys]
        needed = [tile for tile in wanted if tile is not None]
        if len(needed) < len(keys):
            raise ProcessError("A process asked for a part of an array that it had not announced.")
        try:
            self._load(needed)
            parts = []
            for (_, start, extents), tile in zip(keys, needed, strict=True):
                data = tile.data
                assert data is not None
                inside = slices_of([at - first for at, first in zip(start, tile.start, strict=True)], extents)
                # The ellipsis makes the result an array even if it has no axes.
                parts.append(data.result()[(*inside, ...)])  # type: ignore[arg-type]
            yield parts
            del parts
        finally:
            with self._changed:
                for tile in needed:
                    tile.left -= 1
                    if tile.left == 0:
                        tile.data = None
                while self._oldest < len(self._order) and self._order[self._oldest].left <= 0:
                    self._oldest += 1
                self._changed.notify_all()

    def _load(self, needed: Sequence[Tile]) -> None:
        """Reads the tiles that no other thread reads, and some that will be wanted soon."""
        first, last = needed[0], needed[-1]
        deadline = self._deadline("Waiting for the process that takes its parts slowest")
        with self._changed:
            self._wait(lambda: self._order[self._oldest] is first or self._fits(last), deadline)
            mine = [tile for tile in dict.fromkeys(needed) if tile.data is None]
            if mine:
                end = mine[0].begin + _AHEAD_BYTES
                for tile in itertools.islice(self._order, last.order + 1, None):
                    if tile.end > end or not self._fits(tile):
                        break
                    if tile.data is None and tile.left > 0:
                        mine.append(tile)
            for tile in mine:
                tile.data = Future()
            futures = [tile.data for tile in mine]
        if not mine:
            return
        try:
            arrays = kept_tiles.read(self._stored, mine)
        except BaseException as error:
            for future in futures:
                future.set_exception(error)  # type: ignore[union-attr]
            return
        for future, array in zip(futures, arrays, strict=True):
            future.set_result(array)  # type: ignore[union-attr]

    def _fits(self, tile: Tile) -> bool:
        return tile.end - self._order[self._oldest].begin <= _WINDOW_BYTES if self._oldest < len(self._order) else True

    def _wait(self, until: Callable[[], bool], deadline: Deadline) -> None:
        while True:
            if self._error is not None:
                raise self._error
            if until():
                return
            self._changed.wait(min(deadline.left(), SLICE_SECS))

    def _deadline(self, what: str) -> Deadline:
        # Longer than the session waits for a process, so that its error, which names the process, comes first.
        return Deadline(self._seconds + patience(self._seconds), what)
