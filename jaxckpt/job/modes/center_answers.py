"""Restoring with an IO process, its side: it opens the checkpoint, and answers the requests of its peers."""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from jaxckpt._lib.boxes import slices_of
from jaxckpt.job.modes.local_answers import LocalAnswers
from jaxckpt.job.modes.remote import PAGE, ReadKey
from jaxckpt.job.protocol.messages import (
    AskBoxes,
    AskInfos,
    AskSlots,
    AskStored,
    AskTexts,
    Infos,
    Leaves,
    Pieces,
    Put,
    Stream,
    Texts,
)
from jaxckpt.job.session.session import Answer, PeerHandlers
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.source import OpenCheckpoint

# Most bytes of boxes that are kept because another peer may ask for them too.
_CACHE_BYTES = 32 << 20
# Most bytes of answers that are being read or sent.
_ANSWER_BYTES = 64 << 20


class CenterAnswers:
    """The IO process's side: answers the requests of its peers about an open checkpoint."""

    def __init__(self, stored: OpenCheckpoint, local_peers: Sequence[int] = ()) -> None:
        """Prepares the answers.

        Args:
          stored: the open checkpoint.
          local_peers: indices of the peers that are on this host.
        """
        self._stored = stored
        self._local = LocalAnswers(stored, local_peers)
        self._by_name = {leaf.param_name: leaf for leaf in stored.tree.leaves}
        # A leaf with several names comes several times; the first time under its own.
        self._lines = (*stored.tree.leaves, *stored.tree.aliases)
        self._lock = threading.Lock()
        self._recent: OrderedDict[ReadKey, Future[np.ndarray]] = OrderedDict()
        self._held = 0
        self._changed = threading.Condition()
        # Bytes of the answer that is being read or sent, by peer.
        self._granted: dict[int, int] = {}

    def handlers(self) -> PeerHandlers:
        """Returns the functions that answer the requests of the peers."""
        return {
            AskStored: self._leaves,
            AskInfos: self._infos,
            AskTexts: self._texts,
            AskBoxes: self._read,
            AskSlots: self._local.share,
            Put: lambda process, request: self._local.put(process, request, self._array_infos, self._arrays),
            Stream: lambda process, request: self._local.stream(process, request, self._array_infos, self._arrays),
        }

    def close(self) -> None:
        """Frees the memory that is kept for answers. Idempotent."""
        self._local.close()
        with self._lock:
            self._recent.clear()

    def _leaves(self, process: int, request: AskStored) -> Answer:
        leaves = self._lines
        start = request.position
        page = tuple(
            [
                (leaf.path, leaf.param_name, leaf.value_type, leaf.note, leaf.key_impl)
                for leaf in leaves[start : start + PAGE]
            ]
        )
        following = start + PAGE if start + PAGE < len(leaves) else None
        return Leaves(page, following, {} if start else self._stored.record), None

    def _infos(self, process: int, request: AskInfos) -> Answer:
        wanted = set(request.names)
        leaves = [leaf for leaf in self._stored.tree.leaves if leaf.param_name in wanted]
        infos = self._stored.infos(leaves)
        return Infos({name: (info.shape, info.dtype.name, info.chunk_shape) for name, info in infos.items()}), None

    def _array_infos(self, names: Iterable[str]) -> Mapping[str, ArrayInfo]:
        return self._stored.infos([self._by_name[name] for name in names])

    def _texts(self, process: int, request: AskTexts) -> Answer:
        wanted = set(request.names)
        leaves = [leaf for leaf in self._stored.tree.leaves if leaf.param_name in wanted]
        return Texts({leaf.param_name: self._stored.string(leaf) for leaf in leaves}), None

    def _read(self, process: int, request: AskBoxes) -> Answer:
        boxes = request.boxes
        infos = self._array_infos({name for name, _, _ in boxes})
        self._grant(process, sum(math.prod(shape) * infos[name].dtype.itemsize for name, _, shape in boxes))
        return Pieces(), [np.ascontiguousarray(array) for array in self._arrays(boxes)]

    def _grant(self, process: int, nbytes: int) -> None:
        """Waits until there is room for an answer. The wait is bounded: a peer that does not take its answer is given up at the timeout.

        Args:
          process: index of the peer.
          nbytes: bytes of the answer.
        """
        with self._changed:
            while self._granted and sum(self._granted.values()) + nbytes > _ANSWER_BYTES:
                self._changed.wait(1.0)
            self._granted[process] = nbytes

    def sent(self, process: int) -> None:
        """Notes that the answer to a peer has been sent, or could not be, so that its memory is free.

        Args:
          process: index of the peer.
        """
        with self._changed:
            self._granted.pop(process, None)
            self._changed.notify_all()

    def _arrays(self, boxes: Sequence[ReadKey]) -> list[np.ndarray]:
        """Reads boxes. A box that another peer has just asked for (of a replicated array) is read only once."""
        futures: list[Future[np.ndarray]] = []
        mine: list[ReadKey] = []
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
        # This ends, because the checkpoint has a timeout for each read.
        return [future.result() for future in futures]

    def _fill(self, keys: Sequence[ReadKey]) -> None:
        with self._lock:
            futures = [self._recent[key] for key in keys]
        try:
            arrays = self._stored.read([(name, slices_of(start, shape)) for name, start, shape in keys])
            # Copy small views: a view would keep its whole chunk in memory.
            arrays = [
                array if array.base is None or array.nbytes * 2 > _root_bytes(array) else array.copy()
                for array in arrays
            ]
        except BaseException as error:
            with self._lock:
                for key, future in zip(keys, futures, strict=True):
                    self._recent.pop(key, None)
                    future.set_exception(error)
            return
        with self._lock:
            for future, array in zip(futures, arrays, strict=True):
                future.set_result(array)
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
