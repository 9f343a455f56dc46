"""Saving with an IO process, the side of its peers: they answer its requests for pieces, and free the pieces that have been sent."""

from typing import Any

import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.job.modes.peer_memory import Loans
from jaxckpt.job.protocol.messages import (
    AskConsent,
    AskHostValues,
    AskLent,
    AskMemory,
    AskPieces,
    Borrow,
    Done,
    Hosts,
    Lent,
    MemoryOffer,
    Pieces,
)
from jaxckpt.job.session.session import Answer, Handlers
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.content import ArrayContent, Entry, Snapshot, StringContent

_PAGE_CHARS = 8 << 20


class PeerAnswers:
    """A peer's part of a save: answers the IO process's requests for pieces."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Prepares the answers.

        Args:
          snapshot: this process's part of the snapshot. Pass the only reference to it, so that pieces are freed once they are sent.
        """
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
        """Frees the arrays that are lent. Idempotent."""
        self._loans.close()

    def handlers(self) -> Handlers:
        """Returns the functions that answer the requests of the IO process."""
        return {
            AskMemory: self._offer,
            AskConsent: self._consent,
            Borrow: self._lend,
            AskLent: self._lent,
            AskPieces: self._get,
            AskHostValues: self._hosts,
        }

    def _offer(self, request: AskMemory) -> Answer:
        return MemoryOffer(**self._loans.offer), None

    def _consent(self, request: AskConsent) -> Answer:
        self._loans.consent(request.pid)
        return Done(), None

    def _lend(self, request: Borrow) -> Answer:
        """Answers with the address of the bytes of a box. Keeps them there until the IO process says that it has read them."""
        self._loans.take_back(request.back)
        part = self._cut(*request.box)
        return Lent(self._loans.lend(request.number, part), part.nbytes), None

    def _lent(self, request: AskLent) -> Answer:
        """Sends a range of the bytes of a lent array, because the IO process cannot read them any more."""
        return Pieces(), [self._loans.lent(request.number)[request.first : request.last]]

    def _get(self, request: AskPieces) -> Answer:
        parts = []
        for position, start, shape in request.boxes:
            parts.append(self._cut(position, start, shape))
        return Pieces(), parts

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


def _without_data(entry: Entry) -> Entry:
    return (
        entry._replace(content=entry.content._replace(pieces=())) if isinstance(entry.content, ArrayContent) else entry
    )


def _is_shapeless(content: Any) -> bool:
    """Returns whether shape or dtype depend on the value, so that processes may have different ones."""
    return isinstance(content, ArrayContent) and (content.value_type == "scalar" or notes.has_own_shape(content.note))
