"""Saving with an IO process, the side of the others: they answer its requests for pieces, and let go of what they have sent."""

from typing import Any

import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.job.modes.peer_memory import Loans
from jaxckpt.job.protocol.wire import Header
from jaxckpt.job.session.session import Answer, Handler
from jaxckpt.storage.item.content import ArrayContent, Entry, Snapshot, StringContent

_PAGE_CHARS = 8 << 20


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
