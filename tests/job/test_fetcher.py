"""How the IO process uses the memory of its peers: boxes at once have slots of their own, and otherwise one slot is enough."""

import os
from typing import Any

import numpy as np
import pytest

from jaxckpt.job.modes.fetcher import Fetcher
from jaxckpt.job.modes.local_memory import SharedSlots
from jaxckpt.job.protocol.messages import AskPieces, Fill, Filled, Memory, Pieces
from jaxckpt.storage.item.content import ArrayContent, Blocks, Entry
from jaxckpt.tree.names import Key

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory files")
_SLOTS, _SLOT_BYTES = 2, 96 << 10
_DATA = np.arange(200_000, dtype=np.uint8)


class _Peer:
    """A session whose only peer, process 1, has the array."""

    process = 0
    local_peers = (1,)

    def __init__(self) -> None:
        self.memory = SharedSlots(_SLOTS, _SLOT_BYTES)
        self.asked: list[Any] = []

    def ask_all(self, *_: Any) -> dict[int, Memory]:
        return {1: Memory(self.memory.offer)}

    def ask(self, process: int, request: Any, doing: str, *, into: Any = None) -> Any:
        self.asked.append(request)
        if isinstance(request, AskPieces):
            into[0][:] = _DATA
            return Pieces()
        self.memory.slot(request.slot, request.last - request.first)[:] = _DATA[request.first : request.last]
        return Filled(request.last - request.first)


@pytest.fixture
def peer() -> _Peer:
    return _Peer()


@pytest.fixture
def fetcher(peer: _Peer) -> Fetcher:
    content = ArrayContent("jax.Array", _DATA.shape, _DATA.dtype, _DATA.shape, (), share=object())
    return Fetcher([Entry((Key("w", False),), content)], peer)  # type: ignore[arg-type]


def _begin(fetcher: Fetcher) -> Blocks:
    found = fetcher.stream(1, 0, (0,), _DATA.shape)
    assert isinstance(found, Blocks)
    return found


def test_one_box_after_the_other_uses_one_slot(fetcher: Fetcher, peer: _Peer) -> None:
    for _ in range(3):
        np.testing.assert_array_equal(_begin(fetcher).whole(), _DATA)
    assert {request.slot for request in peer.asked} == {1}
    assert [(request.first, request.last) for request in peer.asked[:3]] == [
        (0, _SLOT_BYTES),
        (_SLOT_BYTES, 2 * _SLOT_BYTES),
        (2 * _SLOT_BYTES, _DATA.size),
    ]


def test_boxes_at_once_have_slots_of_their_own(fetcher: Fetcher, peer: _Peer) -> None:
    """The third one finds none, and comes through the connection."""
    begun = [_begin(fetcher).blocks for _ in range(3)]
    found = [[bytes(next(blocks))] for blocks in begun]
    for parts, blocks in zip(found, begun, strict=True):
        parts.extend(bytes(block) for block in blocks)
    assert [b"".join(parts) for parts in found] == [_DATA.tobytes()] * 3
    assert [request.slot for request in peer.asked if isinstance(request, Fill)] == [1, 0, 1, 1, 0, 0]
    assert [type(request) for request in peer.asked].count(AskPieces) == 1
    # A box that is given up lets go of its slot, too.
    for _ in range(3):
        blocks = _begin(fetcher).blocks
        next(blocks)
        assert isinstance(peer.asked[-1], Fill)
        blocks.close()  # type: ignore[attr-defined]
