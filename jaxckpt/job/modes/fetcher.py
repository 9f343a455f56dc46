"""Saving with an IO process: it fetches the pieces of its peers.

A peer sends a piece only when the IO process asks for it, and then frees it. So pieces do not pile up in memory. Small pieces travel in
batches. Large pieces of a peer on the same host are read directly from the memory of the peer.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib.boxes import Box
from jaxckpt.errors import ProcessError
from jaxckpt.job.modes.buffers import Pool
from jaxckpt.job.modes.peer_memory import Reader
from jaxckpt.job.protocol.messages import AskConsent, AskLent, AskMemory, AskPieces, Borrow
from jaxckpt.job.session.center import Center
from jaxckpt.storage.item.content import ArrayContent, Blocks, Entry

# Pieces of at most so many bytes travel in batches.
SMALL_BYTES = 64 << 10
# Most bytes, and most pieces, of a batch.
_BATCH_BYTES = 1 << 20
_LOOK_AHEAD = 2048
# Most bytes of unused buffers that are kept for the next pieces.
_KEEP_BYTES = 64 << 20
# Bytes that are read from another process at once: they are written while they are in the processor's cache.
_BLOCK_BYTES = 1 << 20


class Fetcher:
    """Fetches boxes from their owners."""

    def __init__(self, entries: Sequence[Entry], session: Center) -> None:
        """Creates the fetcher, and asks peers on this host how to read their memory.

        Args:
          entries: the entries of the snapshot.
          session: the session with the peers.
        """
        # A copy: the caller's list is going to refer to this object, and a reference cycle would keep the buffers alive until the garbage
        # collector runs. For the same reason `_upcoming` must not refer to this object.
        self._entries = tuple(entries)
        self._session = session
        self._scanning = threading.Lock()
        # Small pieces that have not been looked at yet.
        self._upcoming = _small_pieces(self._entries, session.process)
        # Small pieces that have been looked at and not been asked for yet, by owner.
        self._waiting: dict[int, dict[tuple[int, Box], None]] = defaultdict(dict)
        # Small pieces that have been fetched and not been used yet.
        self._ready: dict[tuple[int, Box], np.ndarray] = {}
        self._batching: dict[int, threading.Lock] = defaultdict(threading.Lock)
        self._buffers = Pool(_KEEP_BYTES)
        self._numbers = itertools.count()
        self._readers = self._open_readers() if self._has_large_pieces() else {}
        # By owner: the numbers of the arrays that have been read, which the owner may free.
        self._read: dict[int, deque[int]] = {owner: deque() for owner in self._readers}

    def _has_large_pieces(self) -> bool:
        contents = [entry.content for entry in self._entries]
        return any(
            content.nbytes > SMALL_BYTES
            for content in contents
            if isinstance(content, ArrayContent) and content.share is not None
        )

    def _open_readers(self) -> dict[int, Reader]:
        """Returns readers for the memory of the peers on this host that allow it, by process."""
        doing, session = "telling where its memory is", self._session
        offers = {
            process: dataclasses.asdict(offer)
            for process, offer in session.ask_all(AskMemory(), doing, session.local_peers).items()
        }
        readers, refused = _opened(offers)
        if refused:
            session.ask_all(AskConsent(os.getpid()), doing, refused)
            readers |= _opened({process: offers[process] for process in refused})[0]
        return readers

    def name(self, position: int) -> str:
        """Returns the name of the leaf at a position."""
        return self._entries[position].name

    def stream(self, owner: int, position: int, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | Blocks:
        """Returns a box of a large piece; block by block, if the memory of its owner can be read. Several threads may call this.

        Args:
          owner: index of the process that owns the piece.
          position: position of the leaf.
          start: first index of the box.
          shape: extents of the box.
        """
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        if owner in self._readers and math.prod(shape) * content.dtype.itemsize > SMALL_BYTES:
            return Blocks(shape, content.dtype, self._blocks(owner, position, Box(start, shape)))
        # Not in a batch, even if the box is small: a batch has whole pieces only, and this is a chunk of a piece.
        return self._ask(owner, [(position, Box(start, shape))])[0]

    def _blocks(self, owner: int, position: int, box: Box) -> Iterator[np.ndarray]:
        """Yields the bytes of a box, read from the memory of its owner."""
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        nbytes, number = math.prod(box.shape) * content.dtype.itemsize, next(self._numbers)
        request = Borrow(number, (position, *box), tuple(_emptied(self._read[owner])))
        doing = f"sending {self.name(position)}"
        lent = self._session.ask(owner, request, doing)
        if lent.nbytes != nbytes:
            raise ProcessError(f"Process {owner} did not send {self.name(position)}.", (owner,))
        buffer = self._buffers.take(min(nbytes, _BLOCK_BYTES))
        for first in range(0, nbytes, buffer.size):
            block = buffer[: min(buffer.size, nbytes - first)]
            with self._session.blaming(owner, doing):
                permitted = self._readers[owner].read(lent.at + first, block)
            if not permitted:
                self._session.ask(owner, AskLent(number, first, first + block.size), doing, into=[block])
            yield block
        self._read[owner].append(number)

    def fetch(self, owner: int, position: int, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """Returns a piece of a leaf. Several threads may call this.

        Args:
          owner: index of the process that owns the piece.
          position: position of the leaf.
          start: first index of the piece.
          shape: extents of the piece.
        """
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        nbytes = math.prod(shape) * content.dtype.itemsize
        if nbytes > SMALL_BYTES:
            return self._ask(owner, [(position, Box(start, shape))])[0]
        key = (position, Box(start, shape))
        if (found := self._ready.pop(key, None)) is not None:
            return found
        with self._scanning:
            lock = self._batching[owner]
        with lock:
            # Another thread may have fetched it in its batch meanwhile.
            if (found := self._ready.pop(key, None)) is not None:
                return found
            batch = self._batch(owner, key)
            for other, array in zip(batch, self._ask(owner, batch), strict=True):
                self._ready[other] = array
        return self._ready.pop(key)

    def _batch(self, owner: int, key: tuple[int, Box]) -> list[tuple[int, Box]]:
        """Returns a piece, and the next pieces of the same owner that the writer is going to ask for.

        Args:
          owner: index of the process that owns the piece.
          key: the piece.
        """
        with self._scanning:
            seen_at = None
            for step, (position, box, other) in enumerate(self._upcoming):
                self._waiting[other][position, box] = None
                if (position, box) == key:
                    seen_at = step
                if position > key[0] and (seen_at is None or step - seen_at > _LOOK_AHEAD):
                    break
            waiting = self._waiting[owner]
            waiting.pop(key, None)
            batch, held = [key], 0
            for position, box in list(waiting)[:_LOOK_AHEAD]:
                content = self._entries[position].content
                assert isinstance(content, ArrayContent)
                held += math.prod(box.shape) * content.dtype.itemsize
                if held > _BATCH_BYTES:
                    break
                batch.append((position, box))
                del waiting[position, box]
            return batch

    def _ask(self, owner: int, boxes: Sequence[tuple[int, Box]]) -> list[np.ndarray]:
        contents: list[ArrayContent] = [self._entries[position].content for position, _ in boxes]  # type: ignore[misc]
        sizes = [
            math.prod(box.shape) * content.dtype.itemsize for (_, box), content in zip(boxes, contents, strict=True)
        ]
        whole = self._buffers.take(sum(sizes))
        request = AskPieces(tuple((position, box.start, box.shape) for position, box in boxes))
        self._session.ask(owner, request, f"sending {self.name(boxes[0][0])}", into=[whole])
        arrays, at = [], 0
        for (_, box), content, size in zip(boxes, contents, sizes, strict=True):
            arrays.append(whole[at : at + size].view(content.dtype).reshape(box.shape))
            at += size
        return arrays


def _emptied(numbers: deque[int]) -> list[int]:
    """Empties a deque and returns its content. Several threads may call this."""
    taken = []
    with contextlib.suppress(IndexError):
        while True:
            taken.append(numbers.popleft())
    return taken


def _opened(offers: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, Reader], list[int]]:
    """Returns readers for the memory of other processes, and the processes whose consent is needed.

    Args:
      offers: the `Loans.offer` of each process.
    """
    readers, refused = {}, []
    for process, offer in offers.items():
        try:
            readers[process] = Reader(offer)
        except PermissionError:
            refused.append(process)
        except OSError:
            # The memory of this process cannot be read here. Its bytes go through the connection.
            pass
    return readers, refused


def _small_pieces(entries: Sequence[Entry], process: int) -> Iterator[tuple[int, Box, int]]:
    """Yields the small pieces of other processes: position of the leaf, box, and owner.

    Args:
      entries: the entries of the snapshot.
      process: index of this process.
    """
    for position, entry in enumerate(entries):
        content = entry.content
        if not isinstance(content, ArrayContent) or content.share is None:
            continue
        for box, owner in content.share.all():
            if owner != process and math.prod(box.shape) * content.dtype.itemsize <= SMALL_BYTES:
                yield position, box, owner
