"""Saving with an IO process: small pieces of its peers come in batches, and small arrays become one chunk each.

Every process knows from the plan which pieces it owns, so each peer can number its small pieces, in the order of the leaves. The IO process
numbers them in the same way, and asks for the pieces from one number to another: a message names thousands of pieces in a few words.
"""

import math
import threading
from collections.abc import Sequence

import numpy as np

from jaxckpt._lib.boxes import Box
from jaxckpt.errors import ProcessError
from jaxckpt.job.layouts import Layout
from jaxckpt.job.modes.buffers import Pool
from jaxckpt.job.plan import Share
from jaxckpt.job.protocol.messages import AskSmall
from jaxckpt.job.protocol.parts import BoxAt
from jaxckpt.job.session.center import Center
from jaxckpt.storage.item.content import ArrayContent, Entry, Piece

# Pieces of at most so many bytes are small.
SMALL_BYTES = 64 << 10
# Most bytes, and most pieces, of a batch.
_BATCH_BYTES = 1 << 20
_BATCH_PIECES = 8192
# Most pieces, of all owners together, that are numbered before they are needed.
_LOOK_AHEAD = 4 * _BATCH_PIECES

# A box, its owner and its bytes.
_Owned = tuple[Box, int, int]


class SmallPieces:
    """The small pieces of the peers, seen by the IO process. Several threads may use it."""

    def __init__(self, entries: Sequence[Entry], session: Center, buffers: Pool) -> None:
        """Creates the object. Nothing is fetched yet.

        Args:
          entries: the entries of the snapshot.
          session: the session with the peers.
          buffers: a pool for the bytes of the batches.
        """
        self._entries = entries
        self._session = session
        self._buffers = buffers
        self._lock = threading.Lock()
        # The position of the first leaf whose pieces have no numbers yet, and how many pieces have got theirs and have not been used.
        self._next = self._ahead = 0
        # The batches that take more pieces, and the number of the next piece, by owner.
        self._open: dict[int, _Batch] = {}
        self._numbers: dict[int, int] = {}
        # By position and box: the batch of a piece, and where in the batch its bytes begin.
        self._places: dict[int, dict[Box, tuple[_Batch, int]]] = {}
        self._boxes: dict[tuple[Layout, int], tuple[_Owned, ...]] = {}

    def array(self, position: int) -> np.ndarray:
        """Returns a small array, whose pieces on this process and on the peers are put together. Call it once for each array.

        Args:
          position: position of the leaf.
        """
        content = _array_of(self._entries[position])
        own = {piece.start: piece for piece in content.pieces}
        boxes = self._owned(content)
        with self._lock:
            parts = [
                self._taken(position, box, nbytes)
                if owner != self._session.process
                else np.ascontiguousarray(own[box.start].fetch(box.start, box.shape)).reshape(-1).view(np.uint8)
                for box, owner, nbytes in boxes
            ]
        if all(box.shape[1:] == content.shape[1:] for box, _, _ in boxes):
            # The boxes divide the first axis only, so their bytes follow each other.
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return whole.view(content.dtype).reshape(content.shape)
        array = np.empty(content.shape, content.dtype)
        for (box, _, _), part in zip(boxes, parts, strict=True):
            place = tuple(slice(first, first + extent) for first, extent in zip(box.start, box.shape, strict=True))
            array[place] = part.view(content.dtype).reshape(box.shape)
        return array

    def piece(self, position: int, box: Box) -> np.ndarray:
        """Returns a small piece of a peer. Call it once for each piece.

        Args:
          position: position of the leaf.
          box: the piece.
        """
        content = _array_of(self._entries[position])
        with self._lock:
            part = self._taken(position, box, math.prod(box.shape) * content.dtype.itemsize)
        return part.view(content.dtype).reshape(box.shape)

    def _taken(self, position: int, box: Box, nbytes: int) -> np.ndarray:
        """Returns the bytes of a piece, and forgets it."""
        if not nbytes:
            # A piece without bytes is not sent.
            return np.empty(0, np.uint8)
        while position >= self._next:
            self._number_next()
        places = self._places[position]
        batch, at = places.pop(box)
        if not places:
            del self._places[position]
        self._ahead -= 1
        if batch.content is None:
            self._fetch(batch)
        content = batch.content
        assert content is not None
        batch.unused -= 1
        if not batch.unused:
            # The pieces that have been taken keep the buffer as long as they need it.
            batch.content = None
        return content[at : at + nbytes]

    def _fetch(self, batch: "_Batch") -> None:
        while self._open.get(batch.owner) is batch and self._next < len(self._entries) and self._ahead < _LOOK_AHEAD:
            self._number_next()
        if self._open.get(batch.owner) is batch:
            del self._open[batch.owner]
        content = self._buffers.take(batch.nbytes)
        request = AskSmall(batch.first, batch.count, batch.first_box, batch.last_box)
        name = self._entries[batch.first_box[0]].name
        self._session.ask(batch.owner, request, f"sending {name}", into=[content])
        batch.content = content

    def _number_next(self) -> None:
        """Gives the small pieces of the next leaf their numbers, and their places in batches."""
        position = self._next
        self._next += 1
        content = self._entries[position].content
        if not isinstance(content, ArrayContent) or content.share is None:
            return
        places = {}
        for box, owner, nbytes in self._owned(content):
            if owner == self._session.process or not 0 < nbytes <= SMALL_BYTES:
                continue
            batch = self._open.get(owner)
            if batch is None or batch.nbytes + nbytes > _BATCH_BYTES or batch.count == _BATCH_PIECES:
                batch = self._open[owner] = _Batch(owner, self._numbers.get(owner, 0), (position, *box))
            self._numbers[owner] = batch.first + batch.count + 1
            places[box] = batch, batch.nbytes
            batch.add((position, *box), nbytes)
        if places:
            self._places[position] = places
            self._ahead += len(places)

    def _owned(self, content: ArrayContent) -> tuple[_Owned, ...]:
        """Returns the boxes of an array in C order. They are computed once for all arrays of a layout without replicas."""
        share: Share = content.share
        layout, itemsize = share.layout, content.dtype.itemsize
        found = self._boxes.get((layout, itemsize)) if layout is not None else None
        if found is None:
            # In C order, as their owners number them.
            found = tuple((box, owner, math.prod(box.shape) * itemsize) for box, owner in sorted(share.all()))
            if layout is not None:
                self._boxes[layout, itemsize] = found
        return found


class _Batch:
    """Pieces of one owner that are sent together.

    Attributes:
      owner: index of the process that sends them.
      first: number of the first piece.
      first_box: the first piece.
      last_box: the last piece.
      count: number of pieces.
      nbytes: their bytes.
      unused: number of its pieces that have not been asked for yet.
      content: their bytes, one piece after the other; None as long as they have not been fetched.
    """

    __slots__ = ("content", "count", "first", "first_box", "last_box", "nbytes", "owner", "unused")

    def __init__(self, owner: int, first: int, box: BoxAt) -> None:
        self.owner = owner
        self.first = first
        self.first_box = self.last_box = box
        self.count = self.nbytes = self.unused = 0
        self.content: np.ndarray | None = None

    def add(self, box: BoxAt, nbytes: int) -> None:
        self.last_box = box
        self.count += 1
        self.unused += 1
        self.nbytes += nbytes


class OwnSmallPieces:
    """The small pieces of a peer, which it sends to the IO process and then frees."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Numbers the pieces.

        Args:
          entries: the entries of this process's part of the snapshot.
        """
        self._pieces: list[tuple[int, Piece] | None] = []
        for position, entry in enumerate(entries):
            content = entry.content
            if isinstance(content, ArrayContent):
                self._pieces += [
                    (position, piece)
                    for piece in sorted(content.pieces, key=_start)
                    if 0 < math.prod(piece.shape) * content.dtype.itemsize <= SMALL_BYTES
                ]

    def take(self, request: AskSmall) -> list[np.ndarray]:
        """Returns the pieces of a batch, and forgets them.

        Args:
          request: the request of the IO process.

        Raises:
          ProcessError: this process numbers its pieces in another way, or has sent them already.
        """
        first, last = request.first, request.first + request.count
        found = self._pieces[first:last] if 0 <= first < last <= len(self._pieces) else []
        pieces = [piece for piece in found if piece is not None]
        ends = [(position, piece.start, piece.shape) for position, piece in (*pieces[:1], *pieces[-1:])]
        if len(pieces) != request.count or ends != [request.first_box, request.last_box]:
            raise ProcessError(
                f"The IO process asked for the small pieces {first} to {last}, from {request.first_box} to {request.last_box}. "
                "This process does not have them, or has sent them already."
            )
        self._pieces[first:last] = [None] * request.count
        return [np.ascontiguousarray(piece.fetch(piece.start, piece.shape)) for _, piece in pieces]


def _start(piece: Piece) -> tuple[int, ...]:
    return piece.start


def _array_of(entry: Entry) -> ArrayContent:
    assert isinstance(entry.content, ArrayContent)
    return entry.content
