"""Saving with an IO process: it pulls the pieces of all others, chunk by chunk, straight into the storage engine.

Because it pulls, nothing piles up: a peer sends what it is asked for, and lets go of it. Small pieces travel many at a time; large ones
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
from jaxckpt.job.modes.peer_memory import Loans, Reader
from jaxckpt.job.plan import HOST_OWNER, Share
from jaxckpt.job.protocol.wire import Header
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.session import Answer, Handler
from jaxckpt.storage.item.content import ArrayContent, Blocks, Entry, Piece, Snapshot, StringContent

_SMALL_BYTES = 64 << 10
_BATCH_BYTES = 1 << 20
_LOOK_AHEAD = 2048
_KEEP_BYTES = 64 << 20  # of buffers, for the next pieces
_PAGE_CHARS = 8 << 20
_BLOCK_BYTES = 1 << 20  # is read from another process at once, and written while it is in the processor's cache


class Supplier:
    """A peer's part of a save: answers the IO process's requests for pieces."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Args: this process's part of the snapshot. Pass on the only reference: pieces are let go of as they are sent."""
        self._entries = snapshot.entries
        self._left = {
            position: content.share_bytes
            for position, entry in enumerate(snapshot.entries)
            if isinstance(content := entry.content, ArrayContent) and content.pieces
        }
        self._pieces = {position: tuple(snapshot.entries[position].content.pieces) for position in self._left}  # type: ignore[union-attr]
        self._entries = tuple(_without_data(entry) for entry in snapshot.entries)
        self._loans = Loans()

    def close(self) -> None:
        """Lets go of what is lent. Idempotent."""
        self._loans.close()

    def handlers(self) -> dict[str, Handler]:
        """Returns what this process does for the IO process."""
        return {
            "offer": self._offer,
            "consent": self._consent,
            "lend": self._lend,
            "lent": self._lent,
            "get": self._get,
            "hosts": self._hosts,
        }

    def _offer(self, header: Header) -> Answer:
        return {"t": "offer", "offer": self._loans.offer}, None

    def _consent(self, header: Header) -> Answer:
        self._loans.consent(int(header["pid"]))
        return {"t": "consent"}, None

    def _lend(self, header: Header) -> Answer:
        """Says where the bytes of a box are, and keeps them there until it is told that they have been read."""
        self._loans.take_back(header["back"])
        position, start, shape = header["box"]
        part = self._cut(int(position), tuple(start), tuple(shape))
        return {"t": "lent", "at": self._loans.lend(int(header["id"]), part), "bytes": part.nbytes}, None

    def _lent(self, header: Header) -> Answer:
        """Sends a range of the bytes of what is lent, where they cannot be read any more."""
        first, last = header["bytes"]
        return {"t": "pieces"}, self._loans.lent(int(header["id"]))[first:last]

    def _get(self, header: Header) -> Answer:
        parts = []
        for position, start, shape in header["boxes"]:
            parts.append(self._cut(int(position), tuple(start), tuple(shape)))
        return {"t": "pieces"}, parts

    def _cut(self, position: int, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        for piece in self._pieces.get(position, ()):
            if all(
                own <= first and first + extent <= own + size
                for first, extent, own, size in zip(start, shape, piece.start, piece.shape, strict=True)
            ):
                part = np.ascontiguousarray(piece.fetch(start, shape))
                self._left[position] -= part.nbytes
                if self._left[position] <= 0:
                    del self._pieces[position]
                return part
        raise ProcessError(f"{self._entries[position].name}: this process has no such piece, or has sent it already.")

    def _hosts(self, header: Header) -> Answer:
        """Answers what process 0 alone knows: texts, and the form of values whose form is part of their value."""
        found: list[Any] = []
        chars = 0
        position = int(header["from"])
        while position < len(self._entries) and chars < _PAGE_CHARS:
            content = self._entries[position].content
            if isinstance(content, StringContent):
                found.append([position, content.text])
                chars += len(content.text)
            elif _is_shapeless(content):
                assert isinstance(content, ArrayContent)
                found.append([position, [list(content.shape), content.dtype.name]])
                chars += 64
            position += 1
        return {"t": "hosts", "found": found, "next": position if position < len(self._entries) else None}, None


def _without_data(entry: Entry) -> Entry:
    return (
        entry._replace(content=entry.content._replace(pieces=())) if isinstance(entry.content, ArrayContent) else entry
    )


def _is_shapeless(content: Any) -> bool:
    """Whether shape or dtype depend on the value, so that processes may differ in them."""
    return isinstance(content, ArrayContent) and (content.kind == "bytes" or content.value_type == "scalar")


def complete(snapshot: Snapshot, session: Center) -> Snapshot:
    """Returns the snapshot of the whole job: the IO process's own part, and the others' pieces, which are fetched when they are written.

    Raises:
      ProcessError: process 0, which has the host leaves, failed or does not answer.
    """
    entries = list(snapshot.entries)
    if session.process != HOST_OWNER:
        _take_hosts(entries, session)
    fetcher = _Fetcher(entries, session)
    for position, entry in enumerate(entries):
        content = entry.content
        if isinstance(content, ArrayContent) and content.share is not None:
            entries[position] = entry._replace(content=content._replace(pieces=_AllPieces(position, content, fetcher)))
    return dataclasses.replace(snapshot, entries=tuple(entries))


def _take_hosts(entries: list[Entry], session: Center) -> None:
    """Replaces what this process knows of host leaves by what process 0 says."""
    position: int | None = 0
    while position is not None:
        header = session.ask(HOST_OWNER, {"t": "hosts", "from": position}, "sending its host leaves").header
        for found, value in header["found"]:
            entry = entries[found]
            if isinstance(value, str):
                entries[found] = entry._replace(content=StringContent(value))
                continue
            shape, dtype = tuple(value[0]), np.dtype(value[1])
            content = entry.content
            assert isinstance(content, ArrayContent)
            share = content.share
            if shape != content.shape:
                share = share._replace(layout=share.plan.host_layout(shape))
            entries[found] = entry._replace(
                content=content._replace(shape=shape, dtype=dtype, write_shape=shape, share=share)
            )
        position = header["next"]


class _AllPieces(Sequence[Piece]):
    """The pieces of one array, made one at a time: there may be as many as devices."""

    def __init__(self, position: int, content: ArrayContent, fetcher: "_Fetcher") -> None:
        self._position = position
        self._share: Share = content.share
        self._own = {Box(piece.start, piece.shape): piece for piece in content.pieces}
        self._fetcher = fetcher
        self._itemsize = content.dtype.itemsize

    def __len__(self) -> int:
        return len(self._share.layout.boxes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        layout, turn, plan = self._share
        return self._piece(layout.boxes[index], layout.owner(index, turn, plan.center))

    def __iter__(self) -> Iterator[Piece]:
        for box, owner in self._share.all():
            yield self._piece(box, owner)

    def _piece(self, box: Box, owner: int) -> Piece:
        if (own := self._own.get(box)) is not None:
            return own
        if math.prod(box.shape) * self._itemsize <= _SMALL_BYTES:
            # Here and now: it comes with thousands of others, and what need not be waited for is written more quickly.
            return Piece(box.start, box.shape, self._fetcher.fetch(owner, self._position, box.start, box.shape))

        def fetch(start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | Blocks:
            return self._fetcher.stream(owner, self._position, start, shape)

        return Piece(box.start, box.shape, fetch)


class _Fetcher:
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
            math.prod(content.share.layout.grid) * content.dtype.itemsize > _SMALL_BYTES
            for content in contents
            if isinstance(content, ArrayContent) and content.share is not None
        )

    def _open_readers(self) -> dict[int, Reader]:
        """Returns what reads the memory of those processes of this host that permit it."""
        doing, session = "telling where its memory is", self._session
        offers = {
            process: header["offer"]
            for process, header in session.ask_all({"t": "offer"}, doing, session.local_peers).items()
        }
        readers, refused = _opened(offers)
        if refused:
            session.ask_all({"t": "consent", "pid": os.getpid()}, doing, refused)
            readers |= _opened({process: offers[process] for process in refused})[0]
        return readers

    def name(self, position: int) -> str:
        """Returns the name of a leaf."""
        return self._entries[position].name

    def stream(self, owner: int, position: int, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | Blocks:
        """Returns a box of a large piece, block by block if its owner shares memory. Safe from several threads."""
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        if owner in self._readers and math.prod(shape) * content.dtype.itemsize > _SMALL_BYTES:
            return Blocks(shape, content.dtype, self._blocks(owner, position, Box(start, shape)))
        # Not in a batch, even if it is a small chunk: it is no piece of its own, which batches are made of.
        return self._ask(owner, [(position, Box(start, shape))])[0]

    def _blocks(self, owner: int, position: int, box: Box) -> Iterator[np.ndarray]:
        """Yields the bytes of a box, read from the memory of its owner."""
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        nbytes, number = math.prod(box.shape) * content.dtype.itemsize, next(self._numbers)
        header = {"t": "lend", "id": number, "box": [position, *box], "back": _emptied(self._read[owner])}
        doing = f"sending {self.name(position)}"
        lent = self._session.ask(owner, header, doing).header
        if lent.get("bytes") != nbytes:
            raise ProcessError(f"Process {owner} did not send {self.name(position)}.", (owner,))
        buffer = self._buffers.take(min(nbytes, _BLOCK_BYTES))
        for first in range(0, nbytes, buffer.size):
            block = buffer[: min(buffer.size, nbytes - first)]
            with self._session.blaming(owner, doing):
                permitted = self._readers[owner].read(lent["at"] + first, block)
            if not permitted:
                header = {"t": "lent", "id": number, "bytes": [first, first + block.size]}
                self._session.ask(owner, header, doing, into=[block])
            yield block
        self._read[owner].append(number)

    def fetch(self, owner: int, position: int, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """Returns a box of a leaf. Safe from several threads."""
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        nbytes = math.prod(shape) * content.dtype.itemsize
        if nbytes > _SMALL_BYTES:
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
        message = self._session.ask(
            owner,
            {"t": "get", "boxes": [[position, box.start, box.shape] for position, box in boxes]},
            f"sending {self.name(boxes[0][0])}",
            into=[whole],
        )
        if message.header.get("n") != whole.nbytes:
            raise ProcessError(f"Process {owner} did not send {self.name(boxes[0][0])}.", (owner,))
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
            if owner != process and math.prod(box.shape) * content.dtype.itemsize <= _SMALL_BYTES:
                yield position, box, owner
