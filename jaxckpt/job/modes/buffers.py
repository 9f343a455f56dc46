"""Buffers for received bytes. They are reused, so that the kernel need not clear new memory each time."""

import weakref
from collections import deque

import numpy as np

_ROUND = 1 << 20


class Pool:
    """A pool of buffers. A buffer is reused when nothing refers to it, or to a view of it, any more. Several threads may use the pool."""

    def __init__(self, keep_bytes: int) -> None:
        """Creates an empty pool.

        Args:
          keep_bytes: most bytes of unused buffers that are kept.
        """
        self._keep = keep_bytes
        # A deque, because its methods are atomic: buffers come back on any thread, at any time.
        self._free: deque[np.ndarray] = deque()

    def take(self, nbytes: int) -> np.ndarray:
        """Returns a buffer: an array of uint8 of `nbytes` bytes with arbitrary content."""
        memory = self._find(nbytes)
        # Views of `lease` refer to `lease`, not to `memory`. So `lease` is freed when its last view is, and then `memory` comes back.
        lease: np.ndarray = np.frombuffer(memory.data, np.uint8, nbytes)
        weakref.finalize(lease, self._give_back, memory).atexit = False
        return lease

    def _find(self, nbytes: int) -> np.ndarray:
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:
                break
            if nbytes <= memory.nbytes <= 2 * nbytes + _ROUND:
                return memory
            self._free.append(memory)
        return np.empty(-(-max(nbytes, 1) // _ROUND) * _ROUND, np.uint8)

    def _give_back(self, memory: np.ndarray) -> None:
        self._free.append(memory)
        try:
            while sum(each.nbytes for each in tuple(self._free)) > self._keep:
                self._free.popleft()
        except (IndexError, RuntimeError):
            # Another thread is changing the pool at the same moment. It frees the buffers that are too many.
            pass
