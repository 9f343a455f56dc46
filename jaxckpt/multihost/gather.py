"""Saving with an IO process: it pulls the pieces of all others, chunk by chunk, straight into the storage engine.

Because it pulls, nothing piles up: a peer sends what it is asked for, and lets go of it. Small pieces travel many at a time; large ones
of a peer on the same host go through memory that both share.
"""

import contextlib
import dataclasses
import math
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.multihost.buffers import Pool
from jaxckpt.multihost.center import Center
from jaxckpt.multihost.local_memory import OpenedMemory, Slots, open_offered
from jaxckpt.multihost.plan import HOST_OWNER, Box, Share
from jaxckpt.multihost.session import Answer, Handler
from jaxckpt.multihost.wire import Header
from jaxckpt.storage.content import ArrayContent, Blocks, Entry, Piece, Snapshot, StringContent
from jaxckpt.storage.ocdbt_writer import REMOTE_CHUNKS

_SMALL_BYTES = 64 << 10
_BATCH_BYTES = 1 << 20
_LOOK_AHEAD = 2048
_KEEP_BYTES = 64 << 20  # of buffers, for the next pieces
_PAGE_CHARS = 8 << 20
_BLOCK_BYTES = 2 << 20  # goes through shared memory at once: what is larger falls out of the cache on its way


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
        self._memory: OpenedMemory | None = None
        self._cut_now: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}  # of which a part has been asked for

    def handlers(self) -> dict[str, Handler]:
        """Returns what this process does for the IO process."""
        return {"memory": self._open, "get": self._get, "put": self._put, "hosts": self._hosts}

    def _open(self, header: Header) -> Answer:
        self._memory = open_offered(header["offer"])
        return {"t": "memory", "opened": self._memory is not None}, None

    def _get(self, header: Header) -> Answer:
        parts = []
        for position, start, shape in header["boxes"]:
            parts.append(self._cut(int(position), tuple(start), tuple(shape)))
        return {"t": "pieces"}, parts

    def _put(self, header: Header) -> Answer:
        """Puts a range of the bytes of a box into the memory that the IO process shares."""
        position, start, shape = header["box"]
        key = int(position), tuple(start)
        whole = self._cut_now.get(key)
        if whole is None:
            whole = self._cut_now[key] = self._cut(*key, tuple(shape)).reshape(-1).view(np.uint8)
        first, last = header["bytes"]
        if last == whole.size:
            del self._cut_now[key]
        assert self._memory is not None
        self._memory.write(int(header["at"]), whole[first:last])
        return {"t": "put", "id": header["id"]}, None

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
        self._slots: Slots | None = None
        self._sharing: Collection[int] = ()
        if session.local_peers and (largest := self._largest_piece()) > _SMALL_BYTES:
            with contextlib.suppress(OSError):  # A system without such memory: everything goes through the connections.
                self._slots = Slots(REMOTE_CHUNKS, min(largest, _BLOCK_BYTES))
                try:
                    self._sharing = self._offer(self._slots)
                finally:
                    self._slots.memory.withdraw()

    def _largest_piece(self) -> int:
        contents = [entry.content for entry in self._entries]
        return max(
            (
                math.prod(content.share.layout.grid) * content.dtype.itemsize
                for content in contents
                if isinstance(content, ArrayContent) and content.share is not None
            ),
            default=0,
        )

    def _offer(self, slots: Slots) -> Collection[int]:
        """Returns the processes that can put their pieces into shared memory."""
        header = {"t": "memory", "offer": slots.memory.offer}
        answers = self._session.ask_all(header, "opening shared memory", self._session.local_peers)
        return {process for process, answer in answers.items() if answer.get("opened") is True}

    def name(self, position: int) -> str:
        """Returns the name of a leaf."""
        return self._entries[position].name

    def stream(self, owner: int, position: int, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | Blocks:
        """Returns a box of a large piece, block by block if its owner shares memory. Safe from several threads."""
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        if owner in self._sharing and math.prod(shape) * content.dtype.itemsize > _SMALL_BYTES:
            assert self._slots is not None
            slot = self._slots.take()
            if slot is not None:  # There is one for every chunk that the writer takes at a time.
                return Blocks(shape, content.dtype, self._through_memory(owner, position, Box(start, shape), slot))
        # Not in a batch, even if it is a small chunk: it is no piece of its own, which batches are made of.
        return self._ask(owner, [(position, Box(start, shape))])[0]

    def _through_memory(
        self, owner: int, position: int, box: Box, slot: tuple[int, np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yields the bytes of a box: one half of the slot is filled while the other is taken."""
        at, memory = slot
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        nbytes = math.prod(box.shape) * content.dtype.itemsize
        half = memory.size // 2
        spans = [(first, min(nbytes, first + half)) for first in range(0, nbytes, half)]
        requests = (
            {"t": "put", "id": number, "box": [position, *box], "bytes": span, "at": at + number % 2 * half}
            for number, span in enumerate(spans)
        )
        answers = self._session.ask_ahead(owner, requests, f"sending {self.name(position)}")
        for number, ((first, last), _) in enumerate(zip(spans, answers, strict=True)):
            start = number % 2 * half
            yield memory[start : start + last - first]

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


def _small_pieces(entries: Sequence[Entry], process: int) -> Iterator[tuple[int, Box, int]]:
    """Yields the small pieces that other processes than `process` own, and their owners."""
    for position, entry in enumerate(entries):
        content = entry.content
        if not isinstance(content, ArrayContent) or content.share is None:
            continue
        for box, owner in content.share.all():
            if owner != process and math.prod(box.shape) * content.dtype.itemsize <= _SMALL_BYTES:
                yield position, box, owner
