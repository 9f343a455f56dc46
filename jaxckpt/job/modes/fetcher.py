"""Saving with an IO process: how it gets the pieces of the others.

Because it asks, nothing piles up: a peer sends what it is asked for, and lets go of it. Small pieces travel many at a time; large ones
of a peer on the same host are read where they are.
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
_BATCH_BYTES = 1 << 20
_LOOK_AHEAD = 2048
# Of buffers, for the next pieces.
_KEEP_BYTES = 64 << 20
# Is read from another process at once, and written while it is in the processor's cache.
_BLOCK_BYTES = 1 << 20


class Fetcher:
    """Gets boxes from their owners."""

    def __init__(self, entries: Sequence[Entry], session: Center) -> None:
        self._entries = tuple(entries)  # Not the list, which is going to refer to this.
        self._session = session
        self._scanning = threading.Lock()
        # Nothing that refers to this: in a circle, shared memory would stay until garbage is collected.
        self._upcoming = _small_pieces(self._entries, session.process)
        self._waiting: dict[int, dict[tuple[int, Box], None]] = defaultdict(
            dict
        )  # owner → small pieces not asked for yet
        self._ready: dict[tuple[int, Box], np.ndarray] = {}
        self._batching: dict[int, threading.Lock] = defaultdict(threading.Lock)
        self._buffers = Pool(_KEEP_BYTES)
        self._numbers = itertools.count()
        self._readers = self._open_readers() if self._has_large_pieces() else {}
        self._read: dict[int, deque[int]] = {owner: deque() for owner in self._readers}  # what it may let go of

    def _has_large_pieces(self) -> bool:
        contents = [entry.content for entry in self._entries]
        return any(
            math.prod(content.share.layout.grid) * content.dtype.itemsize > SMALL_BYTES
            for content in contents
            if isinstance(content, ArrayContent) and content.share is not None
        )

    def _open_readers(self) -> dict[int, Reader]:
        """Returns what reads the memory of those processes of this host that permit it."""
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
        """Returns the name of a leaf."""
        return self._entries[position].name

    def stream(self, owner: int, position: int, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | Blocks:
        """Returns a box of a large piece, block by block if its owner shares memory. Safe from several threads."""
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        if owner in self._readers and math.prod(shape) * content.dtype.itemsize > SMALL_BYTES:
            return Blocks(shape, content.dtype, self._blocks(owner, position, Box(start, shape)))
        # Not in a batch, even if it is a small chunk: it is no piece of its own, which batches are made of.
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
        """Returns a box of a leaf. Safe from several threads."""
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
        with lock:  # Perhaps it is in the batch that another thread is getting.
            if (found := self._ready.pop(key, None)) is not None:
                return found
            batch = self._batch(owner, key)
            for other, array in zip(batch, self._ask(owner, batch), strict=True):
                self._ready[other] = array
        return self._ready.pop(key)

    def _batch(self, owner: int, key: tuple[int, Box]) -> list[tuple[int, Box]]:
        """Returns this piece and the next ones of the same owner that the writer is going to ask for."""
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
    """Returns what a deque holds, and takes it out. Safe from several threads."""
    taken = []
    with contextlib.suppress(IndexError):
        while True:
            taken.append(numbers.popleft())
    return taken


def _opened(offers: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, Reader], list[int]]:
    """Returns what reads the memory of other processes, and the processes that have to consent to it."""
    readers, refused = {}, []
    for process, offer in offers.items():
        try:
            readers[process] = Reader(offer)
        except PermissionError:
            refused.append(process)
        except OSError:  # Not here: what it has goes through the connection.
            pass
    return readers, refused


def _small_pieces(entries: Sequence[Entry], process: int) -> Iterator[tuple[int, Box, int]]:
    """Yields the small pieces that other processes than `process` own, and their owners."""
    for position, entry in enumerate(entries):
        content = entry.content
        if not isinstance(content, ArrayContent) or content.share is None:
            continue
        for box, owner in content.share.all():
            if owner != process and math.prod(box.shape) * content.dtype.itemsize <= SMALL_BYTES:
                yield position, box, owner
