"""Saving with an IO process: the IO process fetches the pieces of the others chunk by chunk, while it writes them."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib.boxes import Box
from jaxckpt.job.modes.fetcher import Fetcher
from jaxckpt.job.modes.small import SmallPieces
from jaxckpt.job.modes.windows import SMALL_BYTES
from jaxckpt.job.plan import HOST_OWNER, Share
from jaxckpt.job.protocol.messages import AskHostValues
from jaxckpt.job.session.center import Center
from jaxckpt.storage.item.content import ArrayContent, Blocks, EmptyContent, Entry, Piece, Snapshot, StringContent

# Under this name the completed entries of very small arrays are kept (see `Snapshot.kept`).
_PACKED = "completed"
_NOTHING = Entry((), EmptyContent("None"))


def complete(snapshot: Snapshot, session: Center) -> tuple[Snapshot, Callable[[], None]]:
    """Completes the snapshot of the IO process.

    Args:
      snapshot: the IO process's part.
      session: the session with the peers.

    Returns:
      The snapshot of the whole job: the IO process's own part, and the pieces of the others, which are fetched when written. And a function
      to be called when all has been written: it keeps the entries of very small arrays for the next save of the structure. After an error
      it must not be called, because threads may still be asking for pieces.

    Raises:
      ProcessError: process 0, which has the host leaves, failed or does not answer.
    """
    entries, rest, kept = list(snapshot.entries), snapshot.rest, snapshot.kept
    if session.process != HOST_OWNER:
        _take_hosts(entries, session)
    fetcher = Fetcher(entries, session, kept, snapshot.pack, rest)
    if kept is None or rest is None:
        _complete(entries, range(len(entries)), fetcher, _Source(fetcher.small))
        return dataclasses.replace(snapshot, entries=tuple(entries)), lambda: None
    # Two saves of one structure may run at the same time: only one of them gets what is kept.
    packed: _Packed = kept.pop(_PACKED, None) or _packed(entries, rest, fetcher)
    source, completed = packed
    source.small = fetcher.small
    whole = list(completed)
    whole[len(completed) :] = entries[len(completed) :]
    for position in rest:
        whole[position] = entries[position]
    _complete(whole, rest, fetcher, source)

    def keep() -> None:
        source.small = None
        kept[_PACKED] = packed

    return dataclasses.replace(snapshot, entries=tuple(whole)), keep


def _packed(entries: Sequence[Entry], rest: Sequence[int], fetcher: Fetcher) -> "_Packed":
    """Returns the completed entries of very small arrays. Those at other positions have no meaning."""
    source = _Source(fetcher.small)
    others = set(rest)
    positions = [position for position in range(len(entries)) if position not in others]
    # Not the other entries, which hold data.
    found: list[Entry] = [_NOTHING] * (positions[-1] + 1 if positions else 0)
    for position in positions:
        found[position] = entries[position]
    _complete(found, positions, fetcher, source)
    return source, found


def _complete(entries: list[Entry], positions: Iterable[int], fetcher: Fetcher, source: "_Source") -> None:
    for position in positions:
        entry = entries[position]
        content = entry.content
        if not isinstance(content, ArrayContent) or content.share is None:
            continue
        if 0 < content.nbytes <= SMALL_BYTES:
            # One chunk, however many processes have parts of it. What counts for small arrays is the number of chunks.
            one = _OnePiece(position, content.shape, source)
            entries[position] = Entry(entry.path, content.with_pieces(one, content.shape))
        else:
            every = _AllPieces(position, content, fetcher)
            entries[position] = Entry(entry.path, content.with_pieces(every, content.write_shape))


def _take_hosts(entries: list[Entry], session: Center) -> None:
    """Replaces this process's host leaves in `entries` by those of process 0."""
    position: int | None = 0
    while position is not None:
        hosts = session.ask(HOST_OWNER, AskHostValues(position), "sending its host leaves")
        for found, text in hosts.texts:
            entries[found] = entries[found]._replace(content=StringContent(text))
        for found, shape, name in hosts.forms:
            entry, dtype = entries[found], np.dtype(name)
            content = entry.content
            assert isinstance(content, ArrayContent)
            share = content.share
            if shape != content.shape:
                share = share.plan.host_share(shape)
            entries[found] = entry._replace(
                content=content._replace(shape=shape, dtype=dtype, write_shape=shape, share=share)
            )
        position = hosts.next


class _Source:
    """Where the small arrays of a save come from.

    Attributes:
      small: fetches them; None between two saves.
    """

    def __init__(self, small: SmallPieces) -> None:
        self.small: SmallPieces | None = small


# Where very small arrays come from, and their completed entries, by position.
_Packed = tuple[_Source, Sequence[Entry]]


class _OnePiece(Sequence[Piece]):
    """A small array as one piece, which is fetched when it is looked at."""

    def __init__(self, position: int, shape: tuple[int, ...], source: _Source) -> None:
        self._position = position
        self._shape = shape
        self._start = (0,) * len(shape)
        self._source = source

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        return (*self,)[index]

    def __iter__(self) -> Iterator[Piece]:
        small = self._source.small
        assert small is not None, "The save of this piece is over"
        yield Piece(self._start, self._shape, small.array(self._position))


class _AllPieces(Sequence[Piece]):
    """The pieces of one array. They are created one at a time, because there may be as many as devices."""

    def __init__(self, position: int, content: ArrayContent, fetcher: Fetcher) -> None:
        self._position = position
        self._share: Share = content.share
        self._own = {Box(piece.start, piece.shape): piece for piece in content.pieces}
        self._fetcher = fetcher
        self._itemsize = content.dtype.itemsize

    def __len__(self) -> int:
        return sum(1 for _ in self._share.all())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._piece(box, owner) for box, owner in list(self._share.all())[index]]
        return self._piece(*list(self._share.all())[index])

    def __iter__(self) -> Iterator[Piece]:
        for box, owner in self._share.all():
            yield self._piece(box, owner)

    def _piece(self, box: Box, owner: int) -> Piece:
        if (own := self._own.get(box)) is not None:
            return own
        if math.prod(box.shape) * self._itemsize <= SMALL_BYTES:
            # Small pieces are fetched now: thousands of them come in one batch, and data that is there already is written faster.
            return Piece(box.start, box.shape, self._fetcher.small.piece(self._position, box))

        def fetch(start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | Blocks:
            return self._fetcher.stream(owner, self._position, start, shape)

        return Piece(box.start, box.shape, fetch)
