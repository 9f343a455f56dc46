"""Saving with an IO process: it fetches the pieces of its peers.

A peer sends a piece only when the IO process asks for it, and then frees it. So pieces do not pile up in memory. Small pieces travel in
batches (see `small`). Large pieces of a peer on the same host travel through memory that the peer shares.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib.boxes import Box
from jaxckpt.errors import ProcessError
from jaxckpt.job.modes.buffers import Pool
from jaxckpt.job.modes.local_memory import OpenedSlots, open_slots
from jaxckpt.job.modes.small import SmallPieces
from jaxckpt.job.modes.windows import SMALL_BYTES
from jaxckpt.job.protocol.messages import AskMemory, AskPieces, Fill
from jaxckpt.job.session.center import Center
from jaxckpt.storage.item.content import ArrayContent, Blocks, Entry

# Most bytes of unused buffers that are kept for the next pieces.
_KEEP_BYTES = 64 << 20


class Fetcher:
    """Fetches boxes from their owners.

    Attributes:
      small: fetches the small pieces.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        session: Center,
        kept: dict[str, Any] | None = None,
        pack: np.ndarray | None = None,
        rest: Sequence[int] | None = None,
    ) -> None:
        """Creates the fetcher, and asks peers on this host to share memory.

        Args:
          entries: the entries of the snapshot.
          session: the session with the peers.
          kept: `Snapshot.kept`.
          pack: `Snapshot.pack`.
          rest: `Snapshot.rest`.
        """
        # A copy: the caller's list is going to refer to this object, and a reference cycle would keep the buffers alive until the garbage
        # collector runs.
        self._entries = tuple(entries)
        self._session = session
        self._buffers = Pool(_KEEP_BYTES)
        self.small = SmallPieces(self._entries, session, self._buffers, kept, pack, rest)
        # What is in the pack is very small.
        large = self._has_large_pieces(
            self._entries if rest is None else [self._entries[position] for position in rest]
        )
        self._memories = self._open_memories() if large else {}
        # The slots that no box is using, by owner.
        self._free = {owner: deque(range(memory.offer.count)) for owner, memory in self._memories.items()}

    @staticmethod
    def _has_large_pieces(entries: Sequence[Entry]) -> bool:
        contents = [entry.content for entry in entries]
        return any(
            content.nbytes > SMALL_BYTES
            for content in contents
            if isinstance(content, ArrayContent) and content.share is not None
        )

    def _open_memories(self) -> dict[int, OpenedSlots]:
        """Returns the memory that peers on this host share, by process. The bytes of the other peers go through their connections."""
        session = self._session
        answers = session.ask_all(AskMemory(), "sharing memory", session.local_peers)
        opened = {process: open_slots(answer.offer) for process, answer in answers.items()}
        return {process: memory for process, memory in opened.items() if memory is not None}

    def name(self, position: int) -> str:
        """Returns the name of the leaf at a position."""
        return self._entries[position].name

    def stream(self, owner: int, position: int, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | Blocks:
        """Returns a box of a large piece; block by block, if its owner shares memory. Several threads may call this.

        Args:
          owner: index of the process that owns the piece.
          position: position of the leaf.
          start: first index of the box.
          shape: extents of the box.
        """
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        if owner in self._memories and math.prod(shape) * content.dtype.itemsize > SMALL_BYTES:
            return Blocks(shape, content.dtype, self._blocks(owner, position, Box(start, shape)))
        # Not in a batch, even if the box is small: a batch has whole pieces only, and this is a chunk of a piece.
        return self._ask(owner, [(position, Box(start, shape))])[0]

    def _blocks(self, owner: int, position: int, box: Box) -> Iterator[np.ndarray]:
        """Yields the bytes of a box, which its owner puts into a slot, one part after the other."""
        content = self._entries[position].content
        assert isinstance(content, ArrayContent)
        free = self._free[owner]
        try:
            # The one that was used last: its memory is still in the processor's cache.
            slot = free.pop()
        except IndexError:
            # Not expected, unless a write that has failed still holds the slots.
            yield self._ask(owner, [(position, box)])[0].reshape(-1).view(np.uint8)
            return
        try:
            nbytes, memory = math.prod(box.shape) * content.dtype.itemsize, self._memories[owner]
            for first in range(0, nbytes, memory.offer.slot_bytes):
                last = min(nbytes, first + memory.offer.slot_bytes)
                request = Fill(slot, (position, *box), first, last)
                filled = self._session.ask(owner, request, f"sending {self.name(position)}")
                if filled.nbytes != last - first:
                    raise ProcessError(f"Process {owner} did not send {self.name(position)}.", (owner,))
                yield memory.slot(slot, last - first)
        finally:
            # Another box may use it only now, when its last bytes have been read.
            free.append(slot)

    def _ask(self, owner: int, boxes: Sequence[tuple[int, Box]]) -> list[np.ndarray]:
        contents: list[ArrayContent] = [self._entries[position].content for position, _ in boxes]  # type: ignore[misc]
        sizes = [
            math.prod(box.shape) * content.dtype.itemsize for (_, box), content in zip(boxes, contents, strict=True)
        ]
        whole = self._buffers.take(sum(sizes))
        request = AskPieces(tuple((position, box.start, box.shape) for position, box in boxes))
        self._session.ask(owner, request, f"sending {self.name(boxes[0][0])}", into=[whole])
        arrays, at = [], 0
        for (_, box), content, size in zip(boxes, contents, sizes, strict=True):
            arrays.append(whole[at : at + size].view(content.dtype).reshape(box.shape))
            at += size
        return arrays
