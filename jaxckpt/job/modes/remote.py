"""Restoring with an IO process, the side of its peers: they ask it for the boxes that their devices need, and for nothing more."""

import dataclasses
import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxckpt._lib.aligned import aligned_empty
from jaxckpt._lib.boxes import Slices
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.job.modes.local_memory import OpenedMemory, open_offered
from jaxckpt.job.protocol.messages import AskBoxes, AskInfos, AskSlots, AskStored, AskTexts, Put, Stream
from jaxckpt.job.protocol.parts import Request
from jaxckpt.job.session.peer import Peer
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree

# Most leaves that one message describes.
PAGE = 10_000
# Most bytes that one request asks for.
_REQUEST_BYTES = 16 << 20
# Most boxes of one request. The next request must fit into the buffers of the connection while an answer is on its way.
_REQUEST_BOXES = 256
# Most requests whose answers have not been taken. The IO process keeps as many slots for each peer on its host.
UNDER_WAY = 2

# Orbax's name of a leaf, and the first index and the extents of a box.
ReadKey = tuple[str, tuple[int, ...], tuple[int, ...]]
# The array that receives the bytes of a box, and the box.
_Part = tuple[np.ndarray, ReadKey]
# A request, the arrays that receive the bytes of its answer (or None), and a function to call once the answer has come.
_Asked = tuple[Request[Any], Sequence[np.ndarray] | None, Callable[[], None]]


class RemoteCheckpoint:
    """A checkpoint that the IO process has open. Restoring uses it like a `StoredCheckpoint`.

    Attributes:
      path: path of the checkpoint on the IO process.
      tree: tree metadata of the checkpoint.
      record: the values that its save stored beside the tree, such as the save counter.
    """

    def __init__(self, path: str, session: Peer) -> None:
        """Asks the IO process for the leaves of the checkpoint.

        Args:
          path: path of the checkpoint, which the IO process has opened.
          session: the session with the IO process.
        """
        self.path = path
        self._session = session
        self._memory: OpenedMemory | None = None
        self._memory_asked = False
        self._slot_at = self._slot_bytes = 0
        self._infos: dict[str, ArrayInfo] = {}
        self._texts: dict[str, str] = {}
        self.record: dict[str, Any] = {}
        leaves: list[StoredLeaf] = []
        position: int | None = 0
        while position is not None:
            page = session.request(AskStored(position), f"reading {path}")
            leaves += [StoredLeaf(*line) for line in page.leaves]
            self.record |= page.record
            position = page.next
        own, others = _told_apart(leaves)
        self.tree = StoredTree(own, use_zarr3=True, complete_chunks=True, by_jaxckpt=None, aliases=others)

    def infos(self, leaves: Iterable[StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by Orbax's name. Raises the error of the IO process.

        Args:
          leaves: the leaves.
        """
        names = [leaf.param_name for leaf in leaves]
        wanted = [name for name in names if name not in self._infos]
        for page in _pages(wanted):
            infos = self._session.request(AskInfos(page), f"reading {self.path}").infos
            for name, (shape, dtype, chunks) in infos.items():
                self._infos[name] = ArrayInfo(shape, _dtype(dtype), chunks)
        return {name: self._infos[name] for name in names}

    def nbytes(self, leaf: StoredLeaf) -> int:
        """Returns the size in bytes of an array leaf. Call `infos` for the leaf before."""
        info = self._infos[leaf.param_name]
        return math.prod(info.shape) * info.dtype.itemsize

    def string(self, leaf: StoredLeaf) -> str:
        """Returns the value of a str leaf."""
        if leaf.param_name not in self._texts:
            names = [each.param_name for each in self.tree.leaves if each.is_string]
            for page in _pages(names):
                self._texts.update(self._session.request(AskTexts(page), f"reading {self.path}").texts)
        return self._texts[leaf.param_name]

    @quiet_gc()
    def read(self, requests: Sequence[tuple[str, Slices | None]]) -> list[np.ndarray]:
        """Reads arrays, or boxes of them, as `StoredCheckpoint.read` does.

        Args:
          requests: Orbax's name of an array, and a box of it; None for the whole array.
        """
        self._open_memory()
        out: list[np.ndarray] = []
        parts: list[_Part] = []
        for name, box in requests:
            info = self._infos[name]
            spans = [
                part.indices(extent)[:2] for part, extent in zip(box or _whole(info.shape), info.shape, strict=True)
            ]
            start = tuple(first for first, _ in spans)
            array = aligned_empty(tuple(last - first for first, last in spans), info.dtype)
            out.append(array)
            if array.nbytes == 0:
                continue
            for part, extents in _parts(start, array.shape, info):
                if extents == array.shape:
                    parts.append((array, (name, part, extents)))
                    continue
                inside = tuple(
                    slice(first - origin, first - origin + extent)
                    for first, origin, extent in zip(part, start, extents, strict=True)
                )
                parts.append((array[inside], (name, part, extents)))
        self._fetch(parts)
        return out

    def _open_memory(self) -> None:
        """Opens the memory that the center shares, if it is on this host. Later calls do nothing."""
        if self._memory_asked or not self._session.center_is_local:
            return
        self._memory_asked = True
        offer = self._session.request(AskSlots(), f"reading {self.path}").offer
        if offer is not None:
            self._memory = open_offered(dataclasses.asdict(offer))
            self._slot_at, self._slot_bytes = offer.at, offer.slot_bytes

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
        for batch in _batches(parts, _REQUEST_BYTES):
            targets = [target for target, _ in batch]
            # The array that receives a box must be contiguous. If the target is not, the box is copied to it afterwards.
            into = [target if target.flags.c_contiguous else np.empty(target.shape, target.dtype) for target in targets]
            yield AskBoxes(tuple(key for _, key in batch)), into, functools.partial(_copy, into, targets)

    def _through_memory(self, parts: Sequence[_Part], memory: OpenedMemory) -> Iterator[_Asked]:
        """Yields requests whose answers come through the slots in turn. Before a slot is used again, its bytes have been taken."""
        slots = itertools.cycle(range(UNDER_WAY))
        for batch in _batches(parts, self._slot_bytes):
            targets = [target for target, _ in batch]
            if _nbytes(targets) <= self._slot_bytes:
                slot = next(slots)
                request = Put(slot, tuple(key for _, key in batch))
                yield request, None, functools.partial(self._take, memory, slot, targets)
                continue
            ((target, key),) = batch
            whole = target if target.flags.c_contiguous else np.empty(target.shape, target.dtype)
            flat = whole.reshape(-1).view(np.uint8)
            for first in range(0, flat.size, self._slot_bytes):
                slot, block = next(slots), flat[first : first + self._slot_bytes]
                taken = functools.partial(self._take, memory, slot, [block])
                if first + block.size == flat.size and whole is not target:
                    taken = functools.partial(self._take, memory, slot, [block], whole, target)
                yield Stream(slot, key, first, first + block.size), None, taken

    def _take(
        self,
        memory: OpenedMemory,
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
        memory.read(self._slot_at + slot * self._slot_bytes, targets)
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


def _parts(
    start: tuple[int, ...], shape: tuple[int, ...], info: ArrayInfo
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Divides a box into parts of at most `_REQUEST_BYTES`. They follow the chunks, so that few chunks have to be read twice.

    Args:
      start: first index of the box.
      shape: extents of the box.
      info: description of the stored array.
    """
    if math.prod(shape) * info.dtype.itemsize <= _REQUEST_BYTES:
        yield start, shape
        return
    steps = list(shape)
    grid = info.chunk_shape or (1,) * len(shape)
    for axis in range(len(shape)):
        rest = math.prod(steps[axis + 1 :]) * info.dtype.itemsize
        fits = max(1, _REQUEST_BYTES // rest)
        steps[axis] = min(shape[axis], max(1, fits // grid[axis]) * grid[axis] if fits >= grid[axis] else fits)
        if steps[axis] * rest <= _REQUEST_BYTES and steps[axis] > 1:
            break
    ranges = [
        # The first part ends at the end of a chunk, so that all others begin at one.
        _cuts(first, first + extent, step, chunk)
        for first, extent, step, chunk in zip(start, shape, steps, grid, strict=True)
    ]
    for spans in itertools.product(*ranges):
        yield tuple(first for first, _ in spans), tuple(last - first for first, last in spans)


def _cuts(first: int, last: int, step: int, chunk: int) -> list[tuple[int, int]]:
    cuts = []
    while first < last:
        end = first + step
        if step >= chunk:
            end = max(first + 1, end // chunk * chunk)
        cuts.append((first, min(last, end)))
        first = min(last, end)
    return cuts


def _pages(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(names), PAGE):
        yield tuple(names[start : start + PAGE])


def _whole(shape: tuple[int, ...]) -> Slices:
    return tuple(slice(0, extent) for extent in shape)


def _told_apart(leaves: Sequence[StoredLeaf]) -> tuple[tuple[StoredLeaf, ...], tuple[StoredLeaf, ...]]:
    """Returns the leaves under their own names, and under other names; see `Provider`."""
    own: list[StoredLeaf] = []
    others: list[StoredLeaf] = []
    seen: set[str] = set()
    for leaf in leaves:
        (others if leaf.param_name in seen else own).append(leaf)
        if not leaf.is_empty:
            seen.add(leaf.param_name)
    return tuple(own), tuple(others)


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
