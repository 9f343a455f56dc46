"""Memory for what arrives, used again, so that the kernel need not clear it each time."""

import weakref
from collections import deque

import numpy as np

_ROUND = 1 << 20


class Pool:
    """Buffers that are used again once nobody refers to them, or to a view of them, any more. Safe from several threads."""

    def __init__(self, keep_bytes: int) -> None:
        """Args: most bytes of buffers that are kept for later."""
        self._keep = keep_bytes
        # Its methods are atomic: buffers come back from any thread, at any time.
        self._free: deque[np.ndarray] = deque()

    def take(self, nbytes: int) -> np.ndarray:
        """Returns a buffer of uint8 with any content."""
        memory = self._find(nbytes)
        # Views of it refer to it, not to what it is a view of: it goes when the last of them goes.
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
        except (IndexError, RuntimeError):  # Another thread was at it in the same moment, and sees to it.
            pass
