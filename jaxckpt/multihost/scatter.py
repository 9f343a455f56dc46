"""Restoring with an IO process: it opens the checkpoint; the others ask for the boxes that their devices need, and for nothing more."""

import itertools
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import ml_dtypes
import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.multihost.buffers import aligned_empty
from jaxckpt.multihost.peer import Peer
from jaxckpt.multihost.session import Answer
from jaxckpt.multihost.wire import Header
from jaxckpt.quiet_gc import quiet_gc
from jaxckpt.storage.arrays import ArrayInfo
from jaxckpt.storage.opened import StoredCheckpoint
from jaxckpt.storage.tree_metadata import StoredLeaf, StoredTree

Box = tuple[slice, ...]
_REQUEST_BYTES = 16 << 20
_REQUEST_BOXES = 256  # The next request has to fit into the buffers of the connection while an answer is on its way.
_CACHE_BYTES = 32 << 20
_ANSWER_BYTES = 64 << 20  # of answers that are read, or on their way
_PAGE = 10_000
_ReadKey = tuple[str, tuple[int, ...], tuple[int, ...]]


class Provider:
    """The IO process's side: answers what its peers ask of an open checkpoint."""

    def __init__(self, stored: StoredCheckpoint) -> None:
        """Args: the checkpoint, whose `infos` have been read."""
        self._stored = stored
        self._by_name = {leaf.param_name: leaf for leaf in stored.tree.leaves}
        self._lock = threading.Lock()
        self._recent: OrderedDict[_ReadKey, Future[np.ndarray]] = OrderedDict()
        self._held = 0
        self._changed = threading.Condition()
        self._granted: dict[int, int] = {}  # process → bytes of the answer that it is given

    def handlers(self) -> dict[str, Any]:
        """Returns what this process does for its peers."""
        return {"leaves": self._leaves, "infos": self._infos, "texts": self._texts, "read": self._read}

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

    def _read(self, process: int, header: Header) -> Answer:
        boxes: list[_ReadKey] = [(str(name), tuple(start), tuple(shape)) for name, start, shape in header["boxes"]]
        infos = self._stored.infos([self._by_name[name] for name in {name for name, _, _ in boxes}])
        self._grant(process, sum(math.prod(shape) * infos[name].dtype.itemsize for name, _, shape in boxes))
        return {"t": "data"}, [np.ascontiguousarray(array) for array in self._arrays(boxes)]

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

    def _fetch(self, parts: Sequence[tuple[np.ndarray, _ReadKey]]) -> None:
        """Asks for boxes, many small ones at a time, and has them put where they belong."""
        strided: deque[list[tuple[np.ndarray, np.ndarray]]] = deque()

        def asked() -> Iterator[tuple[Header, Sequence[np.ndarray]]]:
            for batch in _batches(parts):
                # The bytes of a box have to be in a row; where its place is not, they are copied there afterwards.
                into = [
                    target if target.flags.c_contiguous else np.empty(target.shape, target.dtype) for target, _ in batch
                ]
                strided.append(
                    [(target, buffer) for (target, _), buffer in zip(batch, into, strict=True) if target is not buffer]
                )
                yield {"t": "read", "boxes": [key for _, key in batch]}, into

        for message in self._session.requests(asked(), f"reading {self.path}"):
            if message.header.get("t") != "data":
                center = self._session.center
                raise ProcessError(f"Process {center} answered {message.header.get('t')!r} for {self.path}.", (center,))
            for target, buffer in strided.popleft():
                target[...] = buffer


def _batches(parts: Sequence[tuple[np.ndarray, _ReadKey]]) -> Iterator[list[tuple[np.ndarray, _ReadKey]]]:
    batch: list[tuple[np.ndarray, _ReadKey]] = []
    held = 0
    for part in parts:
        if batch and (held + part[0].nbytes > _REQUEST_BYTES or len(batch) >= _REQUEST_BOXES):
            yield batch
            batch, held = [], 0
        batch.append(part)
        held += part[0].nbytes
    if batch:
        yield batch


def _parts(
    start: tuple[int, ...], shape: tuple[int, ...], info: ArrayInfo
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Divides a box into parts of a bounded size, along the chunks, so that no chunk is read twice if that can be helped."""
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
