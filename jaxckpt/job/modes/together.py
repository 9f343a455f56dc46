"""Saving into a shared directory: process 0 writes very small arrays for all processes, each as one chunk.

The cost of such an array is not its bytes but its entries: an array of a few bytes that four processes write as four chunks has four
entries in the index, each of which is written, merged and read again.
"""

import bisect
import dataclasses
from collections.abc import Sequence

from jaxckpt.job.modes.buffers import Pool
from jaxckpt.job.modes.small import OwnSmallPieces, SmallPieces
from jaxckpt.job.session.center import Center
from jaxckpt.storage.item.content import ArrayContent, Entry, Piece, Snapshot

# A NamedTuple's own constructor takes twice as long, and there are thousands of arrays.
_new = tuple.__new__

VERY_SMALL_BYTES = 4 << 10
"""Arrays of at most so many bytes are very small. Process 0 holds them in memory until it has written them."""


def gathered(snapshot: Snapshot, session: Center) -> Snapshot:
    """Returns the snapshot of process 0 with the very small arrays of all processes.

    Args:
      snapshot: its part of the snapshot.
      session: the session with the peers, which answer with the pieces of `own_small_pieces`.

    Raises:
      ProcessError: a peer failed, ended or does not answer.
    """
    positions = _very_small(snapshot)
    entries = list(snapshot.entries)
    chosen = tuple([entries[position] for position in positions])
    small = SmallPieces(chosen, session, Pool(0), snapshot.kept, snapshot.pack, _unpacked(snapshot, positions))
    arrays = small.arrays()
    for position, (path, content), array in zip(positions, chosen, arrays, strict=True):
        assert isinstance(content, ArrayContent)
        piece = _new(Piece, ((0,) * array.ndim, array.shape, array))
        entries[position] = _new(Entry, (path, content.with_pieces((piece,), array.shape)))
    return dataclasses.replace(snapshot, entries=tuple(entries))


def own_small_pieces(snapshot: Snapshot) -> OwnSmallPieces:
    """Returns the pieces that a peer sends to process 0.

    Args:
      snapshot: the peer's part of the snapshot.
    """
    positions = _very_small(snapshot)
    entries = [snapshot.entries[position] for position in positions]
    return OwnSmallPieces(entries, snapshot.pack, snapshot.kept, _unpacked(snapshot, positions))


def rest(snapshot: Snapshot) -> Snapshot:
    """Returns the part of a peer without the pieces that it sends to process 0.

    Args:
      snapshot: the peer's part of the snapshot.
    """
    entries = snapshot.entries
    if snapshot.rest is not None:
        # What is in the pack is very small.
        left = [entries[position] for position in snapshot.rest if not is_very_small(entries[position].content)]
    else:
        chosen = set(_very_small(snapshot))
        left = [entry for position, entry in enumerate(entries) if position not in chosen]
    return dataclasses.replace(snapshot, entries=tuple(left), pack=None, rest=None)


def _unpacked(snapshot: Snapshot, positions: Sequence[int]) -> Sequence[int] | None:
    """Returns which of the very small arrays are not in the pack: their places in `positions`. None if there is no pack."""
    if snapshot.rest is None:
        return None
    found = (position for position in snapshot.rest if is_very_small(snapshot.entries[position].content))
    return [bisect.bisect_left(positions, position) for position in found]


def _very_small(snapshot: Snapshot) -> Sequence[int]:
    """Returns the positions of very small arrays that are divided into several pieces. Every process finds the same ones."""
    if snapshot.groups is not None:
        # The program has said which pieces share a file.
        return ()
    entries, kept = snapshot.entries, snapshot.kept
    positions: Sequence[int] | None = None if kept is None else kept.get("very small")
    if positions is None:
        positions = [position for position, entry in enumerate(entries) if is_very_small(entry.content)]
        if kept is not None:
            kept["very small"] = positions
    return positions


def is_very_small(content: object) -> bool:
    """Returns whether an array is divided among several processes, and so small that one of them writes it.

    Args:
      content: the content of an entry of a snapshot.
    """
    return (
        isinstance(content, ArrayContent)
        and content.share is not None
        and content.share.grid != content.shape
        and 0 < content.nbytes <= VERY_SMALL_BYTES
    )
