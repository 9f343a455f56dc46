"""Restoring with an IO process, the side of its peers: they ask it for the boxes that their devices need, and for nothing more."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib.boxes import Slices, slices_of
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import bundles
from jaxckpt.job.modes.descriptions import infos_of, leaves_of
from jaxckpt.job.modes.local_memory import OpenedSlots, open_slots
from jaxckpt.job.modes.small_reads import SmallFirst
from jaxckpt.job.modes.tiles import PART_BYTES
from jaxckpt.job.modes.wanted import BoxKey, Wanted
from jaxckpt.job.protocol.messages import Announce, AskBoxes, AskInfos, AskMemory, AskStored, AskTexts, Put, Stream
from jaxckpt.job.protocol.parts import Request
from jaxckpt.job.session.peer import Peer
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree
from jaxckpt.storage.source import OpenCheckpoint

# Most leaves that one message describes.
PAGE = 10_000
# Most boxes of one request. The next request must fit into the buffers of the connection while an answer is on its way.
_REQUEST_BOXES = 256
# Most requests whose answers have not been taken. The IO process keeps as many slots for each peer on its host.
UNDER_WAY = 2

# The array that receives the bytes of a box, and the box.
_Part = tuple[np.ndarray, BoxKey]
# A request, the arrays that receive the bytes of its answer (or None), and a function to call once the answer has come.
_Asked = tuple[Request[Any], Sequence[np.ndarray] | None, Callable[[], None]]


class RemoteCheckpoint:
    """A checkpoint that the IO process has open. Restoring uses it like a `OpenCheckpoint`.

    Attributes:
      path: path of the checkpoint on the IO process.
      tree: tree metadata of the checkpoint.
      record: the values that its save stored beside the tree, such as the save counter.
    """

    def __init__(self, path: str, session: Peer, own: OpenCheckpoint | None = None) -> None:
        """Asks the center for the leaves of the checkpoint.

        Args:
          path: path of the checkpoint, which the center has opened.
          session: the session with the center.
          own: the checkpoint, if this process has opened it too. Then only what other processes want too is asked for.
        """
        self._own = own
        self.path = path
        self._session = session
        self._memory: OpenedSlots | None = None
        self._memory_asked = False
        self._infos: dict[str, ArrayInfo] = {}
        self._texts: dict[str, str] = {}
        self.record: dict[str, Any] = {}
        leaves: list[StoredLeaf] = []
        count = 0
        position: int | None = 0 if own is None else None
        while position is not None:
            page = session.request(AskStored(position), f"reading {path}")
            leaves += leaves_of(page)
            self.record |= page.record
            count = page.count
            position = page.next
        if own is None:
            if not 0 <= count <= len(leaves):
                raise ProcessError(f"The center described {len(leaves)} of the {count} leaves of the checkpoint.")
            # The positions of the leaves must be those on the center. It lists leaves under other names after them.
            own_leaves, others = tuple(leaves[:count]), tuple(leaves[count:])
            self.tree = StoredTree(own_leaves, use_zarr3=True, complete_chunks=True, by_jaxckpt=None, aliases=others)
        else:
            self.tree, self.record = own.tree, own.record
        self._positions = self.tree.positions

    def infos(self, leaves: Iterable[StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by Orbax's name. Raises the error of the IO process.

        Args:
          leaves: the leaves.
        """
        if self._own is not None:
            infos = self._own.infos(leaves)
            self._infos |= infos
            return infos
        names = [leaf.param_name for leaf in leaves]
        wanted = sorted({self._positions[name] for name in names if name not in self._infos})
        for start in range(0, len(wanted), PAGE):
            page = wanted[start : start + PAGE]
            answer = self._session.request(AskInfos(bundles.runs_of(page)), f"reading {self.path}")
            self._infos |= infos_of(answer, [self.tree.leaves[position].param_name for position in page])
        return {name: self._infos[name] for name in names}

    def nbytes(self, leaf: StoredLeaf) -> int:
        """Returns the size in bytes of an array leaf. Call `infos` for the leaf before."""
        info = self._infos[leaf.param_name]
        return info.nbytes

    def string(self, leaf: StoredLeaf) -> str:
        """Returns the value of a str leaf."""
        if self._own is not None:
            return self._own.string(leaf)
        if leaf.param_name not in self._texts:
            names = [each.param_name for each in self.tree.leaves if each.is_string]
            for page in _pages(names):
                self._texts.update(self._session.request(AskTexts(page), f"reading {self.path}").texts)
        return self._texts[leaf.param_name]

    @quiet_gc()
    def read(self, requests: Sequence[tuple[str, Slices | None]]) -> list[np.ndarray]:
        """Reads arrays, or boxes of them, as `OpenCheckpoint.read` does.

        Args:
          requests: Orbax's name of an array, and a box of it; None for the whole array.
        """
        self._open_memory()
        small = SmallFirst(requests, self._infos, self._positions)
        wanted = Wanted(small.rest, self._infos, self._positions)
        answer = self._session.request(Announce(tuple(wanted.boxes), small.runs), f"reading {self.path}")
        left = small.agree(answer.small, self.tree.leaves)
        contents = [np.empty(nbytes, np.uint8) for _, _, (nbytes,) in small.keys]
        self._fetch(list(zip(contents, small.keys, strict=True)))
        small.take(contents)
        flags = flags_of(answer.runs, len(wanted.parts))
        if self._own is None:
            self._fetch([wanted.target(part) for part in wanted.parts])
            alone = Wanted(left, self._infos, self._positions)
            self._fetch([alone.target(part) for part in alone.parts])
            return small.all(wanted.arrays, alone.arrays)
        shared, rest = wanted.divided(flags)
        self._fetch([wanted.target(part) for part in shared])
        if rest:
            boxes = [(name, slices_of(start, shape)) for _, (name, start, shape) in rest]
            self._own.read(boxes, [target for target, _ in rest])
        return small.all(wanted.arrays, self._own.read(left) if left else [])

    def _open_memory(self) -> None:
        """Opens the memory that the center shares, if it is on this host. Later calls do nothing."""
        if self._memory_asked or not self._session.center_is_local:
            return
        self._memory_asked = True
        self._memory = open_slots(self._session.request(AskMemory(), f"reading {self.path}").offer)

    def _fetch(self, parts: Sequence[_Part]) -> None:
        """Asks for boxes, and puts them into their arrays."""
        asked = self._through_connection(parts) if self._memory is None else self._through_memory(parts, self._memory)
        pending: deque[Callable[[], None]] = deque()

        def requests() -> Iterator[tuple[Request[Any], Sequence[np.ndarray] | None]]:
            for request, into, taken in asked:
                pending.append(taken)
                yield request, into

        def take() -> None:
            for _ in self._session.requests(requests(), f"reading {self.path}", under_way=UNDER_WAY):
                pending.popleft()()

        self._session.protected(take)

    def _through_connection(self, parts: Sequence[_Part]) -> Iterator[_Asked]:
        """Yields requests whose answers come through the connection."""
        for batch in _batches(parts, PART_BYTES):
            targets = [target for target, _ in batch]
            # The array that receives a box must be contiguous. If the target is not, the box is copied to it afterwards.
            into = [target if target.flags.c_contiguous else np.empty(target.shape, target.dtype) for target in targets]
            yield AskBoxes(tuple(key for _, key in batch)), into, functools.partial(_copy, into, targets)

    def _through_memory(self, parts: Sequence[_Part], memory: OpenedSlots) -> Iterator[_Asked]:
        """Yields requests whose answers come through the slots in turn. Before a slot is used again, its bytes have been taken."""
        slots, slot_bytes = itertools.cycle(range(memory.offer.count)), memory.offer.slot_bytes
        for batch in _batches(parts, slot_bytes):
            targets = [target for target, _ in batch]
            if _nbytes(targets) <= slot_bytes:
                slot = next(slots)
                request = Put(slot, tuple(key for _, key in batch))
                yield request, None, functools.partial(self._take, memory, slot, targets)
                continue
            ((target, key),) = batch
            whole = target if target.flags.c_contiguous else np.empty(target.shape, target.dtype)
            flat = whole.reshape(-1).view(np.uint8)
            for first in range(0, flat.size, slot_bytes):
                slot, block = next(slots), flat[first : first + slot_bytes]
                taken = functools.partial(self._take, memory, slot, [block])
                if first + block.size == flat.size and whole is not target:
                    taken = functools.partial(self._take, memory, slot, [block], whole, target)
                yield Stream(slot, key, first, first + block.size), None, taken

    def _take(
        self,
        memory: OpenedSlots,
        slot: int,
        targets: Sequence[np.ndarray],
        whole: np.ndarray | None = None,
        place: np.ndarray | None = None,
    ) -> None:
        """Copies the bytes of a slot.

        Args:
          memory: the memory with the slots.
          slot: number of the slot.
          targets: arrays that receive the bytes, one after the other.
          whole: array that is complete now, if it has to be copied to its place; otherwise None.
          place: the place of `whole`.
        """
        memory.read(slot, targets)
        if whole is not None and place is not None:
            place[...] = whole


def _copy(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> None:
    for source, target in zip(sources, targets, strict=True):
        if source is not target:
            target[...] = source


def _nbytes(arrays: Iterable[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)


def _batches(parts: Sequence[_Part], limit: int) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    held = 0
    for part in parts:
        if batch and (held + part[0].nbytes > limit or len(batch) >= _REQUEST_BOXES):
            yield batch
            batch, held = [], 0
        batch.append(part)
        held += part[0].nbytes
    if batch:
        yield batch


def flags_of(runs: Sequence[int], count: int) -> list[bool]:
    """Returns which parts are shared.

    Args:
      runs: as `Shared.runs`.
      count: number of parts.

    Raises:
      ProcessError: the center told about another number of parts.
    """
    flags: list[bool] = []
    for number, run in enumerate(runs):
        if run < 0 or len(flags) + run > count:
            break
        flags += [number % 2 == 1] * run
    if len(flags) != count:
        raise ProcessError(f"The center told about other parts of arrays than the {count} that this process wants.")
    return flags


def runs_of(flags: Iterable[bool]) -> tuple[int, ...]:
    """Returns the lengths of the runs of equal flags; the first one is of False, and may be empty."""
    runs, last = [0], False
    for flag in flags:
        if flag != last:
            runs.append(0)
            last = flag
        runs[-1] += 1
    return tuple(runs)


def _pages(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(names), PAGE):
        yield tuple(names[start : start + PAGE])
