"""Saving with an IO process: small pieces of its peers come in batches, and small arrays become one chunk each.

Every process knows from the plan which pieces it owns, so each peer can number its small pieces, in the order of the leaves. The IO process
numbers them in the same way, and asks for the pieces from one number to another: a message names thousands of pieces in a few words.
"""

import math
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib.boxes import Box, slices_of
from jaxckpt.errors import ProcessError
from jaxckpt.job.modes.buffers import Pool
from jaxckpt.job.modes.windows import SMALL_BYTES, Pattern, Windows
from jaxckpt.job.protocol.messages import AskSmall
from jaxckpt.job.session.center import Center
from jaxckpt.storage.item.content import ArrayContent, Entry, InPack, Piece

_position: Callable[[tuple[int, Piece]], int] = operator.itemgetter(0)


class SmallPieces:
    """The small pieces of the peers, seen by the IO process. Several threads may use it."""

    def __init__(
        self,
        entries: Sequence[Entry],
        session: Center,
        buffers: Pool,
        kept: dict[str, Any] | None = None,
        pack: np.ndarray | None = None,
        rest: Sequence[int] | None = None,
    ) -> None:
        """Creates the object. Nothing is fetched yet.

        Args:
          entries: the entries of the snapshot.
          session: the session with the peers.
          buffers: a pool for the bytes of the batches.
          kept: `Snapshot.kept`.
          pack: `Snapshot.pack`.
          rest: the positions of the entries whose data is not in the pack; None if there is no pack.
        """
        self._entries = entries
        self._pack = pack
        self._session = session
        self._buffers = buffers
        self._lock = threading.Lock()
        self._kept = kept
        self._windows = _windows(entries, session.process, kept, rest)
        # What has been fetched and not been taken.
        self._arrays: dict[int, np.ndarray] = {}
        self._pieces: dict[tuple[int, Box], np.ndarray] = {}

    def array(self, position: int) -> np.ndarray:
        """Returns a small array, whose pieces on this process and on the peers are put together. Call it once for each array.

        Args:
          position: position of the leaf.
        """
        with self._lock:
            if position not in self._arrays:
                self._fetch(self._windows.of_array(position))
            return self._arrays.pop(position)

    def arrays(self) -> list[np.ndarray]:
        """Returns the arrays of all leaves, which are small arrays. Call it instead of `array`."""
        with self._lock:
            for position in range(len(self._entries)):
                if position not in self._arrays:
                    self._fetch(self._windows.of_array(position))
            found, self._arrays = self._arrays, {}
        return [found[position] for position in range(len(self._entries))]

    def piece(self, position: int, box: Box) -> np.ndarray:
        """Returns a small piece of a peer, of an array that is not small. Call it once for each piece.

        Args:
          position: position of the leaf.
          box: the piece.
        """
        content = _array_of(self._entries[position])
        if 0 in box.shape:
            # A piece without bytes is not sent.
            return np.empty(box.shape, content.dtype)
        with self._lock:
            if (position, box) not in self._pieces:
                self._fetch(self._windows.of_piece(position, box))
            part = self._pieces.pop((position, box))
        return part.view(content.dtype).reshape(box.shape)

    def _fetch(self, number: int) -> None:
        """Fetches a window. Its arrays and pieces keep the memory as long as they are needed."""
        window = self._windows.take(number)
        if self._kept is not None and self._windows.can_be_kept:
            self._kept["windows"] = self._windows
        answers: dict[int, np.ndarray] = {}
        for owner, message, nbytes in window.requests:
            content = answers[owner] = self._buffers.take(nbytes)
            name = self._entries[message.first_box[0]].name
            self._session.ask(owner, message, f"sending {name}", into=[content])
        for pattern in window.patterns:
            arrays = self._put_together(pattern, answers)
            # The ellipsis makes the items arrays even if they have no axes.
            self._arrays |= {position: arrays[number, ...] for number, position in enumerate(pattern.positions)}
        for (position, box), (owner, offset) in window.pieces.items():
            nbytes = math.prod(box.shape) * _array_of(self._entries[position]).dtype.itemsize
            self._pieces[position, box] = answers[owner][offset : offset + nbytes]

    def _put_together(self, pattern: Pattern, answers: dict[int, np.ndarray]) -> np.ndarray:
        """Returns the arrays of a pattern, one after the other.

        Args:
          pattern: the pattern.
          answers: the bytes of each owner.
        """
        count = len(pattern.positions)
        found = np.empty((count, *pattern.shape), pattern.dtype)
        for (box, owner, nbytes), offsets in zip(pattern.boxes, pattern.offsets, strict=True):
            if not nbytes:
                continue
            if offsets is None:
                content = self._own(pattern.positions, box)
            elif int(offsets[-1] - offsets[0]) == (count - 1) * nbytes:
                # The offsets ascend, and no two pieces overlap. So these follow each other.
                content = answers[owner][int(offsets[0]) : int(offsets[0]) + count * nbytes]
            else:
                content = answers[owner][offsets[:, None] + np.arange(nbytes)]
            parts = content.reshape(-1).view(pattern.dtype).reshape(count, *box.shape)
            found[(slice(None), *slices_of(box.start, box.shape))] = parts
        return found

    def _own(self, positions: Sequence[int], box: Box) -> np.ndarray:
        """Returns the bytes of pieces of this process, one after the other.

        Args:
          positions: positions of the leaves.
          box: the box of each piece.
        """
        return joined([self._own_piece(position, box) for position in positions], self._pack)

    def _own_piece(self, position: int, box: Box) -> Piece:
        for piece in _array_of(self._entries[position]).pieces:
            if piece.start == box.start:
                return piece
        raise AssertionError(f"{self._entries[position].name}: this process does not have the piece at {box.start}")


def _windows(
    entries: Sequence[Entry], process: int, kept: dict[str, Any] | None, rest: Sequence[int] | None
) -> Windows:
    """Returns the windows of a snapshot: those of the last save of its structure, if they hold for this one."""
    found: Windows | None = None if kept is None else kept.get("windows")
    return found if found is not None and found.is_for(entries, rest) else Windows(entries, process)


class OwnSmallPieces:
    """The small pieces of a peer, which it sends to the IO process and then frees."""

    def __init__(
        self,
        entries: Sequence[Entry],
        pack: np.ndarray | None = None,
        kept: dict[str, Any] | None = None,
        rest: Sequence[int] | None = None,
    ) -> None:
        """Numbers the pieces.

        Args:
          entries: the entries of this process's part of the snapshot.
          pack: `Snapshot.pack`.
          kept: `Snapshot.kept`.
          rest: the positions of the entries whose data is not in the pack; None if there is no pack.
        """
        self._pack = pack
        self._pieces: list[tuple[int, Piece] | None] = []
        if kept is None or rest is None:
            self._pieces += _small_pieces(entries, range(len(entries)))
            return
        packed: tuple[tuple[int, Piece], ...] | None = kept.get("small pieces")
        if packed is None:
            others = set(rest)
            inside = [position for position in range(len(entries)) if position not in others]
            packed = kept["small pieces"] = tuple(_small_pieces(entries, inside))
        # Only a few leaves, or none, are small and not in the pack. Pieces of one leaf keep their order.
        found = [*packed, *_small_pieces(entries, rest)]
        found.sort(key=_position)
        self._pieces += found

    def take(self, request: AskSmall) -> np.ndarray:
        """Returns the bytes of the pieces of a batch, one after the other, and forgets them.

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
        content = joined([piece for _, piece in pieces], self._pack)
        if last == len(self._pieces) and not any(self._pieces):
            # All of it has been sent.
            self._pack = None
        return content


def _small_pieces(entries: Sequence[Entry], positions: Iterable[int]) -> Iterator[tuple[int, Piece]]:
    """Yields the small pieces of the entries at some positions, each with its position."""
    for position in positions:
        content = entries[position].content
        if isinstance(content, ArrayContent):
            pieces = content.pieces
            for piece in pieces if len(pieces) < 2 else sorted(pieces, key=_start):
                if 0 < math.prod(piece.shape) * content.dtype.itemsize <= SMALL_BYTES:
                    yield position, piece


def joined(pieces: Sequence[Piece], pack: np.ndarray | None) -> np.ndarray:
    """Returns the bytes of pieces that this process has, one after the other. They may be a view of the pack.

    Args:
      pieces: the pieces.
      pack: the pack with the data of those that are in one.
    """
    sources = [piece.source for piece in pieces]
    packed = [source for source in sources if isinstance(source, InPack)]
    if not packed:
        return np.frombuffer(b"".join([piece.fetch(*piece[:2]).tobytes() for piece in pieces]), np.uint8)
    assert pack is not None
    first, last = packed[0], packed[-1]
    if [source.number for source in packed] == [*range(first.number, first.number + len(pieces))]:
        # All of them are in the pack, in this order.
        return pack[first.first : last.last]
    parts = [
        (pack[source.first : source.last] if isinstance(source, InPack) else piece.fetch(*piece[:2])).tobytes()
        for piece, source in zip(pieces, sources, strict=True)
    ]
    return np.frombuffer(b"".join(parts), np.uint8)


def _start(piece: Piece) -> tuple[int, ...]:
    return piece.start


def _array_of(entry: Entry) -> ArrayContent:
    assert isinstance(entry.content, ArrayContent)
    return entry.content
