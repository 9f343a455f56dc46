"""Shared memory that a process keeps from one save to the next. New memory costs more processor time than to copy 100 MB through it."""

import os
from collections import deque
from collections.abc import Sequence

from jaxckpt.job.modes.local_memory import SharedSlots, share_slots

# A deque, because its methods are atomic. It drops the older memory when another one comes, so a process keeps that of one save at most.
_kept: deque[SharedSlots] = deque(maxlen=1)


def take(sizes: Sequence[int]) -> SharedSlots | None:
    """Returns memory for one save: that of an earlier one, or new memory. None if this system does not have it.

    Args:
      sizes: bytes of each slot.
    """
    try:
        memory = _kept.pop()
    except IndexError:
        return share_slots(sizes)
    # A process that was forked has the memory of its parent.
    if memory.offer.pid == os.getpid() and memory.offer.sizes == tuple(sizes):
        return memory
    return share_slots(sizes)


def give_back(memory: SharedSlots) -> None:
    """Keeps memory for the next save, which takes it instead of new one. No other process may be reading it any more.

    Args:
      memory: what `take` returned.
    """
    _kept.append(memory)
