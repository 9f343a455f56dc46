"""Shared memory that a process keeps from one save to the next. New memory takes as much processor time as to copy 60 MB through it."""

import os
from collections import deque

from jaxckpt.job.modes.local_memory import SharedSlots, share_slots

# A deque, because its methods are atomic. It drops the older memory when another one comes, so a process keeps that of one save at most.
_kept: deque[SharedSlots] = deque(maxlen=1)


def take(count: int, slot_bytes: int) -> SharedSlots | None:
    """Returns memory for one save: that of an earlier one, or new memory. None if this system does not have it.

    Args:
      count: number of slots.
      slot_bytes: bytes of each slot.
    """
    try:
        memory = _kept.pop()
    except IndexError:
        return share_slots(count, slot_bytes)
    # A process that was forked has the memory of its parent.
    offer = memory.offer
    if (offer.pid, offer.count, offer.slot_bytes) == (os.getpid(), count, slot_bytes):
        return memory
    return share_slots(count, slot_bytes)


def give_back(memory: SharedSlots) -> None:
    """Keeps memory for the next save, which takes it instead of new one. No other process may be reading it any more.

    Args:
      memory: what `take` returned.
    """
    _kept.append(memory)
