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


def _taken(*sizes: int) -> SharedSlots:
    memory = kept_memory.take(sizes)
    assert memory is not None
    return memory


def test_the_next_save_takes_it() -> None:
    memory = _taken(100, 50)
    kept_memory.give_back(memory)
    assert open_slots(memory.offer) is not None
    assert kept_memory.take([100, 50]) is memory


def test_two_saves_at_once_have_their_own() -> None:
    one, other = _taken(100), _taken(100)
    assert one.offer != other.offer


def test_memory_of_one_save_is_kept() -> None:
    one, other = _taken(100), _taken(100)
    gone = one.offer
    kept_memory.give_back(one)
    kept_memory.give_back(other)
    del one
    assert open_slots(gone) is None
    assert kept_memory.take([100]) is other


def test_other_sizes_need_other_memory() -> None:
    memory = _taken(100)
    gone = memory.offer
    kept_memory.give_back(memory)
    del memory
    assert _taken(50, 50).offer.sizes == (50, 50)
    assert open_slots(gone) is None


def test_a_forked_process_does_not_take_the_memory_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = _taken(100)
    kept_memory.give_back(memory)
    monkeypatch.setattr(os, "getpid", lambda: memory.offer.pid + 1)
    assert kept_memory.take([100]) is not memory
