"""Saving into a shared directory: process 0 writes very small arrays for all processes, each as one chunk.

The cost of such an array is not its bytes but its entries: an array of a few bytes that four processes write as four chunks has four
entries in the index, each of which is written, merged and read again.
"""

import dataclasses
from collections.abc import Mapping

from jaxckpt.job.modes.buffers import Pool
from jaxckpt.job.modes.small import OwnSmallPieces, SmallPieces
from jaxckpt.job.session.center import Center
from jaxckpt.storage.item.content import ArrayContent, Entry, Piece, Snapshot

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
    chosen = _very_small(snapshot)
    small = SmallPieces(tuple(chosen.values()), session, Pool(0), snapshot.kept, snapshot.pack)
    entries = list(snapshot.entries)
    for number, (position, entry) in enumerate(chosen.items()):
        content = entry.content
        assert isinstance(content, ArrayContent)
        shape = content.shape
        piece = Piece((0,) * len(shape), shape, small.array(number))
        entries[position] = Entry(entry.path, content.with_pieces((piece,), shape))
    return dataclasses.replace(snapshot, entries=tuple(entries))


def own_small_pieces(snapshot: Snapshot) -> OwnSmallPieces:
    """Returns the pieces that a peer sends to process 0.

    Args:
      snapshot: the peer's part of the snapshot.
    """
    return OwnSmallPieces(tuple(_very_small(snapshot).values()), snapshot.pack)


def rest(snapshot: Snapshot) -> Snapshot:
    """Returns the part of a peer without the pieces that it sends to process 0.

    Args:
      snapshot: the peer's part of the snapshot.
    """
    chosen = _very_small(snapshot)
    entries = (entry for position, entry in enumerate(snapshot.entries) if position not in chosen)
    return dataclasses.replace(snapshot, entries=tuple(entries), pack=None)


def _very_small(snapshot: Snapshot) -> Mapping[int, Entry]:
    """Returns the very small arrays that are divided into several pieces, by position. Every process finds the same ones."""
    if snapshot.groups is not None:
        # The program has said which pieces share a file.
        return {}
    entries, kept = snapshot.entries, snapshot.kept
    positions = None if kept is None else kept.get("very small")
    if positions is None:
        positions = [position for position, entry in enumerate(entries) if is_very_small(entry.content)]
        if kept is not None:
            kept["very small"] = positions
    return {position: entries[position] for position in positions}


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
