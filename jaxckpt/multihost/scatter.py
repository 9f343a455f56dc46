"""Restoring with an IO process: it opens the checkpoint; the others ask for the boxes that their devices need, and for nothing more."""

import contextlib
import itertools
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ml_dtypes
import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.multihost.buffers import aligned_empty
from jaxckpt.multihost.local_memory import OpenedMemory, SharedMemory, open_offered
from jaxckpt.multihost.peer import Peer
from jaxckpt.multihost.session import Answer
from jaxckpt.multihost.wire import Header
from jaxckpt.quiet_gc import quiet_gc
from jaxckpt.storage import files
from jaxckpt.storage.arrays import ArrayInfo
from jaxckpt.storage.opened import StoredCheckpoint
from jaxckpt.storage.tree_metadata import StoredLeaf, StoredTree

Box = tuple[slice, ...]
_REQUEST_BYTES = 16 << 20
_REQUEST_BOXES = 256  # The next request has to fit into the buffers of the connection while an answer is on its way.
_CACHE_BYTES = 32 << 20
_ANSWER_BYTES = 64 << 20  # of answers that are read, or on their way
_SHARED_BYTES = 96 << 20  # of memory that is shared with processes of this host
_FEW = 3  # peers that there is room for two slots each: one is read into while the other is taken
_PAGE = 10_000
_ReadKey = tuple[str, tuple[int, ...], tuple[int, ...]]


class Provider:
    """The IO process's side: answers what its peers ask of an open checkpoint."""

    def __init__(self, stored: StoredCheckpoint, local_peers: Sequence[int] = ()) -> None:
        """Args: the checkpoint; which peers are on this host."""
        self._stored = stored
        self._local_peers = list(local_peers)
        self._memory: SharedMemory | None = None
        self._slots = 0  # of each peer of this host
        self._slot_bytes = 0
        self._by_name = {leaf.param_name: leaf for leaf in stored.tree.leaves}
        self._lock = threading.Lock()
        self._recent: OrderedDict[_ReadKey, Future[np.ndarray]] = OrderedDict()
        self._held = 0
        self._changed = threading.Condition()
        self._granted: dict[int, int] = {}  # process → bytes of the answer that it is given

    def handlers(self) -> dict[str, Any]:
        """Returns what this process does for its peers."""
        return {
            "leaves": self._leaves,
            "infos": self._infos,
            "texts": self._texts,
            "memory": self._share,
            "read": self._read,
        }

    def _leaves(self, process: int, header: Header) -> Answer:
        leaves = self._stored.tree.leaves
        start = int(header["from"])
        page = [
            [[list(key) for key in leaf.path], leaf.param_name, leaf.value_type, leaf.kind, leaf.key_impl]
            for leaf in leaves[start : start + _PAGE]
        ]
        return {"t": "leaves", "leaves": page, "next": start + _PAGE if start + _PAGE < len(leaves) else None}, None

    def _infos(self, process: int, header: Header) -> Answer:
        wanted = set(header["names"])
        leaves = [leaf for leaf in self._stored.tree.leaves if leaf.param_name in wanted]
        infos = self._stored.infos(leaves)
        return {
            "t": "infos",
            "infos": {
                name: [list(info.shape), info.dtype.name, None if info.chunk_shape is None else list(info.chunk_shape)]
                for name, info in infos.items()
            },
        }, None

    def _texts(self, process: int, header: Header) -> Answer:
        wanted = set(header["names"])
        leaves = [leaf for leaf in self._stored.tree.leaves if leaf.param_name in wanted]
        return {"t": "texts", "texts": {leaf.param_name: self._stored.string(leaf) for leaf in leaves}}, None

    def _share(self, process: int, header: Header) -> Answer:
        """Tells a peer of this host where its slots are: answers are put there, by turns."""
        with self._lock:
            if self._memory is None and self._local_peers:
                self._slots = 2 if len(self._local_peers) <= _FEW else 1
                count = self._slots * len(self._local_peers)
                self._slot_bytes = min(_REQUEST_BYTES, _SHARED_BYTES // count)
                with contextlib.suppress(OSError):  # A system without such memory: all goes through the connections.
                    self._memory = SharedMemory(count * self._slot_bytes)
        if self._memory is None or process not in self._local_peers:
            return {"t": "memory", "offer": None}, None
        offer = {
            **self._memory.offer,
            "at": self._slot(process, 0),
            "slots": self._slots,
            "slot_bytes": self._slot_bytes,
        }
        return {"t": "memory", "offer": offer}, None

    def _slot(self, process: int, number: int) -> int:
        return (self._slots * self._local_peers.index(process) + number) * self._slot_bytes

    def _read(self, process: int, header: Header) -> Answer:
        boxes: list[_ReadKey] = [(str(name), tuple(start), tuple(shape)) for name, start, shape in header["boxes"]]
        infos = self._stored.infos([self._by_name[name] for name in {name for name, _, _ in boxes}])
        if "slot" in header:
            return {"t": "data", "put": self._put(process, int(header["slot"]), boxes, infos)}, None
        self._grant(process, sum(math.prod(shape) * infos[name].dtype.itemsize for name, _, shape in boxes))
        return {"t": "data"}, [np.ascontiguousarray(array) for array in self._arrays(boxes)]

    def _put(self, process: int, slot: int, boxes: Sequence[_ReadKey], infos: Mapping[str, ArrayInfo]) -> int:
        """Reads boxes into a slot of a peer; returns their bytes."""
        if self._memory is None or not 0 <= slot < self._slots:
            raise ProcessError(f"process {process} asked for slot {slot}, which it does not have")
        sizes = [math.prod(shape) * infos[name].dtype.itemsize for name, _, shape in boxes]
        if sum(sizes) > self._slot_bytes:
            raise ProcessError(f"process {process} asked for {sum(sizes)} bytes at once, more than {self._slot_bytes}")
        memory = self._memory.array(self._slot(process, slot), sum(sizes))
        targets, at = [], 0
        for (name, _, shape), size in zip(boxes, sizes, strict=True):
            targets.append(memory[at : at + size].view(infos[name].dtype).reshape(shape))
            at += size
        if files.is_bucket(self._stored.path):
            for target, array in zip(targets, self._arrays(boxes), strict=True):
                target[...] = array
        else:
            # Read once more for another peer, from the page cache, which costs no more than to copy it from a cache of our own.
            self._stored.read([(name, _slices(start, shape)) for name, start, shape in boxes], targets)
        return at

    def _grant(self, process: int, nbytes: int) -> None:
        """Waits until an answer may be held. Bounded: peers that do not take theirs are given up after the timeout."""
        with self._changed:
            while self._granted and sum(self._granted.values()) + nbytes > _ANSWER_BYTES:
                self._changed.wait(1.0)
            self._granted[process] = nbytes

    def sent(self, process: int) -> None:
        """The answer to a peer is not held any more."""
        with self._changed:
            self._granted.pop(process, None)
            self._changed.notify_all()

    def _arrays(self, boxes: Sequence[_ReadKey]) -> list[np.ndarray]:
        """Reads boxes, those that another peer has just asked for (of a replicated array) only once."""
        futures: list[Future[np.ndarray]] = []
        mine: list[_ReadKey] = []
        with self._lock:
            for key in boxes:
                future = self._recent.get(key)
                if future is None:
                    future = self._recent[key] = Future()
                    mine.append(key)
                else:
                    self._recent.move_to_end(key)
                futures.append(future)
        if mine:
            self._fill(mine)
        return [
            future.result() for future in futures
        ]  # Bounded: whoever reads it is bounded by the checkpoint's own timeout.

    def _fill(self, keys: Sequence[_ReadKey]) -> None:
        with self._lock:
            futures = [self._recent[key] for key in keys]
        try:
            arrays = self._stored.read([(name, _slices(start, shape)) for name, start, shape in keys])
        except BaseException as error:
            with self._lock:
                for key, future in zip(keys, futures, strict=True):
                    self._recent.pop(key, None)
                    future.set_exception(error)
            return
        with self._lock:
            for future, array in zip(futures, arrays, strict=True):
                # A view of a chunk would keep the whole chunk.
                future.set_result(
                    array if array.base is None or array.nbytes * 2 > _root_bytes(array) else array.copy()
                )
                self._held += array.nbytes
            for key in list(self._recent):
                if self._held <= _CACHE_BYTES:
                    break
                if self._recent[key].done():
                    self._held -= self._recent.pop(key).result().nbytes


def _root_bytes(array: np.ndarray) -> int:
    base = array.base
    return (
        base.nbytes
        if isinstance(base, np.ndarray)
        else len(base)
        if isinstance(base, (bytes, bytearray))
        else array.nbytes
    )


class RemoteCheckpoint:
    """A checkpoint that another process has open; for restoring, the same as a `StoredCheckpoint`.

    Attributes:
      path: of the checkpoint, on the IO process.
      tree: its tree metadata.
    """

    def __init__(self, path: str, session: Peer) -> None:
        """Asks the IO process, which has opened the checkpoint at `path`, what is in it."""
        self.path = path
        self._session = session
        self._memory: OpenedMemory | None = None
        self._memory_asked = False
        self._slot_at = self._slots = self._slot_bytes = 0
        self._infos: dict[str, ArrayInfo] = {}
        self._texts: dict[str, str] = {}
        leaves: list[StoredLeaf] = []
        position: int | None = 0
        while position is not None:
            header = session.request({"t": "leaves", "from": position}, f"reading {path}").header
            for keys, name, value_type, kind, key_impl in header["leaves"]:
                keyed = tuple((str(text), bool(is_index)) for text, is_index in keys)
                leaves.append(StoredLeaf(keyed, name, value_type, kind, key_impl))
            position = header["next"]
        self.tree = StoredTree(tuple(leaves), use_zarr3=True, complete_chunks=True, by_jaxckpt=None)

    def infos(self, leaves: Iterable[StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by Orbax's name. Raises what the IO process met."""
        names = [leaf.param_name for leaf in leaves]
        wanted = [name for name in names if name not in self._infos]
        for page in _pages(wanted):
            header = self._session.request({"t": "infos", "names": page}, f"reading {self.path}").header
            for name, (shape, dtype, chunks) in header["infos"].items():
                self._infos[name] = ArrayInfo(tuple(shape), _dtype(dtype), None if chunks is None else tuple(chunks))
        return {name: self._infos[name] for name in names}

    def nbytes(self, leaf: StoredLeaf) -> int:
        """Returns the bytes of an array leaf of which `infos` was asked before."""
        info = self._infos[leaf.param_name]
        return math.prod(info.shape) * info.dtype.itemsize

    def string(self, leaf: StoredLeaf) -> str:
        """Returns the value of a str leaf."""
        if leaf.param_name not in self._texts:
            names = [each.param_name for each in self.tree.leaves if each.is_string]
            for page in _pages(names):
                header = self._session.request({"t": "texts", "names": page}, f"reading {self.path}").header
                self._texts.update(header["texts"])
        return self._texts[leaf.param_name]

    @quiet_gc()
    def read(self, requests: Sequence[tuple[str, Box | None]]) -> list[np.ndarray]:
        """Reads arrays, or boxes of them, as `StoredCheckpoint.read`."""
        self._open_memory()
        out: list[np.ndarray] = []
        parts: list[tuple[np.ndarray, _ReadKey]] = []
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
            for part, extents in _parts(start, array.shape, info, self._limit(info)):
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

    def _limit(self, info: ArrayInfo) -> int:
        """Returns how many bytes of an array are asked for at once: a chunk at least, which is read as a whole, even if it is too large
        for a slot."""
        if self._memory is None:
            return _REQUEST_BYTES
        chunk = 0 if info.chunk_shape is None else math.prod(info.chunk_shape) * info.dtype.itemsize
        return max(self._slot_bytes, min(chunk, _REQUEST_BYTES))

    def _open_memory(self) -> None:
        """Opens the memory that a center on this host shares, once."""
        if self._memory_asked or not self._session.center_is_local:
            return
        self._memory_asked = True
        offer = self._session.request({"t": "memory"}, f"reading {self.path}").header["offer"]
        if offer is not None:
            self._memory = open_offered(offer)
            self._slot_at, self._slots = int(offer["at"]), int(offer["slots"])
            self._slot_bytes = int(offer["slot_bytes"])

    def _fetch(self, parts: Sequence[tuple[np.ndarray, _ReadKey]]) -> None:
        """Asks for boxes, many small ones at a time, and has them put where they belong."""
        memory = self._memory
        slots = itertools.cycle(range(self._slots))
        pending: deque[tuple[list[np.ndarray], list[np.ndarray], int | None]] = deque()

        def asked() -> Iterator[tuple[Header, Sequence[np.ndarray] | None]]:
            for batch in _batches(parts, _REQUEST_BYTES if memory is None else self._slot_bytes):
                targets = [target for target, _ in batch]
                header: Header = {"t": "read", "boxes": [key for _, key in batch]}
                if memory is not None and _nbytes(targets) <= self._slot_bytes:
                    slot = next(slots)
                    pending.append((targets, targets, slot))
                    yield {**header, "slot": slot}, None
                    continue
                # The bytes of a box have to be in a row; where its place is not, they are copied there afterwards.
                into = [
                    target if target.flags.c_contiguous else np.empty(target.shape, target.dtype) for target in targets
                ]
                pending.append((targets, into, None))
                yield header, into

        doing = f"reading {self.path}"
        # No more than there are slots: when one is named again, what was in it has been taken.
        under_way = {} if memory is None else {"under_way": self._slots}
        for message in self._session.requests(asked(), doing, **under_way):
            targets, into, slot = pending.popleft()
            header = message.header
            if header.get("t") != "data" or (slot is not None and header.get("put") != _nbytes(targets)):
                center = self._session.center
                raise ProcessError(f"Process {center} answered {header.get('t')!r} for {self.path}.", (center,))
            if slot is not None:
                assert memory is not None
                memory.read(self._slot_at + slot * self._slot_bytes, targets)
            for target, buffer in zip(targets, into, strict=True):
                if target is not buffer:
                    target[...] = buffer


def _nbytes(arrays: Iterable[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)


def _batches(parts: Sequence[tuple[np.ndarray, _ReadKey]], limit: int) -> Iterator[list[tuple[np.ndarray, _ReadKey]]]:
    batch: list[tuple[np.ndarray, _ReadKey]] = []
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
    start: tuple[int, ...], shape: tuple[int, ...], info: ArrayInfo, limit: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Divides a box into parts of a bounded size, along the chunks, so that no chunk is read twice if that can be helped."""
    if math.prod(shape) * info.dtype.itemsize <= limit:
        yield start, shape
        return
    steps = list(shape)
    grid = info.chunk_shape or (1,) * len(shape)
    for axis in range(len(shape)):
        rest = math.prod(steps[axis + 1 :]) * info.dtype.itemsize
        fits = max(1, limit // rest)
        steps[axis] = min(shape[axis], max(1, fits // grid[axis]) * grid[axis] if fits >= grid[axis] else fits)
        if steps[axis] * rest <= limit and steps[axis] > 1:
            break
    ranges = [
        # The first part ends where a chunk does.
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


def _pages(names: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _PAGE):
        yield list(names[start : start + _PAGE])


def _whole(shape: tuple[int, ...]) -> Box:
    return tuple(slice(0, extent) for extent in shape)


def _slices(start: Sequence[int], shape: Sequence[int]) -> Box:
    return tuple(slice(first, first + extent) for first, extent in zip(start, shape, strict=True))


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
