"""Shared memory that a process keeps for its next save: that of one save at most, and never that of another process."""

import os
from collections.abc import Iterator

import pytest

from jaxckpt.job.modes import kept_memory
from jaxckpt.job.modes.local_memory import SharedSlots, open_slots

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory files")


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    kept_memory._kept.clear()
    yield
    kept_memory._kept.clear()


def _taken(count: int = 2, slot_bytes: int = 100) -> SharedSlots:
    memory = kept_memory.take(count, slot_bytes)
    assert memory is not None
    return memory


def test_the_next_save_takes_it() -> None:
    memory = _taken()
    kept_memory.give_back(memory)
    assert open_slots(memory.offer) is not None
    assert kept_memory.take(2, 100) is memory


def test_two_saves_at_once_have_their_own() -> None:
    one, other = _taken(), _taken()
    assert one.offer != other.offer


def test_memory_of_one_save_is_kept() -> None:
    one, other = _taken(), _taken()
    gone = one.offer
    kept_memory.give_back(one)
    kept_memory.give_back(other)
    del one
    assert open_slots(gone) is None
    assert kept_memory.take(2, 100) is other


def test_other_sizes_need_other_memory() -> None:
    memory = _taken()
    gone = memory.offer
    kept_memory.give_back(memory)
    del memory
    assert _taken(1, 100).offer.count == 1
    kept_memory.give_back(_taken())
    assert _taken(2, 50).offer.slot_bytes == 50
    assert open_slots(gone) is None


def test_a_forked_process_does_not_take_the_memory_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = _taken()
    kept_memory.give_back(memory)
    monkeypatch.setattr(os, "getpid", lambda: memory.offer.pid + 1)
    assert kept_memory.take(2, 100) is not memory
