"""Saving with an IO process, the side of its peers: they answer its requests for pieces, and free the pieces that have been sent."""

import math
from typing import Any

import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import kept_memory
from jaxckpt.job.modes.local_memory import SLOT_BYTES, SharedSlots
from jaxckpt.job.modes.small import OwnSmallPieces
from jaxckpt.job.modes.states import States
from jaxckpt.job.modes.windows import SMALL_BYTES
from jaxckpt.job.protocol.messages import (
    AskHostValues,
    AskMemory,
    AskPieces,
    AskSmall,
    AskState,
    Fill,
    Filled,
    Hosts,
    Memory,
    Pieces,
)
from jaxckpt.job.session.session import Answer, Handlers
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.content import ArrayContent, Entry, Snapshot, StringContent

_PAGE_CHARS = 8 << 20
# As many as the boxes of other processes that the IO process writes at a time.
_SLOTS = 4


class PeerAnswers:
    """A peer's part of a save: answers the IO process's requests for pieces."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Prepares the answers.

        Args:
          snapshot: this process's part of the snapshot. Pass the only reference to it, so that pieces are freed once they are sent.
        """
        self._small = OwnSmallPieces(snapshot.entries, snapshot.pack, snapshot.kept, snapshot.rest)
        # The others have small pieces only, and their data is not in their entries.
        rest = range(len(snapshot.entries)) if snapshot.rest is None else snapshot.rest
        self._left = {
            position: large
            for position in rest
            if isinstance(content := snapshot.entries[position].content, ArrayContent)
            # A small array has small pieces only.
            and (content.nbytes > SMALL_BYTES or content.share is None)
            and (large := _large_bytes(content))
        }
        self._pieces = {position: tuple(snapshot.entries[position].content.pieces) for position in self._left}  # type: ignore[union-attr]
        entries = list(snapshot.entries)
        for position in rest:
            entries[position] = _without_data(entries[position])
        self._entries = tuple(entries)
        self._memory: SharedSlots | None = None
        # The bytes of the box that is being sent through a slot, by slot.
        self._sending: dict[int, np.ndarray] = {}
        self._states = States(snapshot)

    def keep(self) -> None:
        """Keeps the shared memory for the next save.

        Call this only when the IO process has told that the save is complete. After a failure it may still be reading the memory.
        """
        # In this order: after an interrupt between the two steps the memory is freed, and is not both kept and withdrawn.
        memory, self._memory = self._memory, None
        if memory is not None:
            kept_memory.give_back(memory)

    def close(self) -> None:
        """Frees the shared memory, unless it is kept. Idempotent."""
        self._sending.clear()
        if self._memory is not None:
            self._memory.withdraw()

    def handlers(self) -> Handlers:
        """Returns the functions that answer the requests of the IO process."""
        return {
            AskMemory: self._share,
            Fill: self._fill,
            AskPieces: self._get,
            AskSmall: self._get_small,
            AskHostValues: self._hosts,
            AskState: self._states.answer,
        }

    def _share(self, request: AskMemory) -> Answer:
        self._memory = self._memory or kept_memory.take(_SLOTS, SLOT_BYTES)
        return Memory(None if self._memory is None else self._memory.offer), None

    def _fill(self, request: Fill) -> Answer:
        """Puts the next bytes of a box into a slot."""
        if self._memory is None:
            raise ProcessError("The IO process asked for bytes in a slot, and this process shares no memory.")
        slot, first, last = request.slot, request.first, request.last
        target = self._memory.slot(slot, last - first)
        if first == 0:
            self._sending[slot] = self._cut(*request.box).reshape(-1).view(np.uint8)
        content = self._sending[slot]
        target[...] = content[first:last]
        if last == content.size:
            del self._sending[slot]
        return Filled(target.size), None

    def _get(self, request: AskPieces) -> Answer:
        parts = []
        for position, start, shape in request.boxes:
            parts.append(self._cut(position, start, shape))
        return Pieces(), parts

    def _get_small(self, request: AskSmall) -> Answer:
        return Pieces(), [self._small.take(request)]

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
        raise ProcessError(
            f"{self._entries[position].name}: this process does not have this piece, or has sent it already."
        )

    def _hosts(self, request: AskHostValues) -> Answer:
        """Answers with values that only process 0 knows: texts, and the shapes and dtypes of leaves where these depend on the value."""
        texts: list[tuple[int, str]] = []
        forms: list[tuple[int, tuple[int, ...], str]] = []
        chars = 0
        position = request.position
        while position < len(self._entries) and chars < _PAGE_CHARS:
            content = self._entries[position].content
            if isinstance(content, StringContent):
                texts.append((position, content.text))
                chars += len(content.text)
            elif _is_shapeless(content):
                assert isinstance(content, ArrayContent)
                forms.append((position, content.shape, content.dtype.name))
                chars += 64
            position += 1
        following = position if position < len(self._entries) else None
        return Hosts(tuple(texts), tuple(forms), following), None


def _large_bytes(content: ArrayContent) -> int:
    """Returns the bytes of those pieces of an array that are not sent in batches."""
    sizes = (math.prod(piece.shape) * content.dtype.itemsize for piece in content.pieces)
    return sum(size for size in sizes if size > SMALL_BYTES)


def _without_data(entry: Entry) -> Entry:
    content = entry.content
    if not isinstance(content, ArrayContent) or not content.pieces:
        return entry
    return entry._replace(content=content._replace(pieces=()))


def _is_shapeless(content: Any) -> bool:
    """Returns whether shape or dtype depend on the value, so that processes may have different ones."""
    return isinstance(content, ArrayContent) and (content.value_type == "scalar" or notes.has_own_shape(content.note))
