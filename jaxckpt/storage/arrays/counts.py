"""Counts what is read from data files, for tests and benchmarks."""

import threading
from typing import NamedTuple


class Counted(NamedTuple):
    """Chunks that this process has read, and their bytes in the data files. Chunks inside of a database's index are not counted."""

    chunks: int
    bytes: int


_lock = threading.Lock()
_chunks = _bytes = 0


def add(chunks: int, nbytes: int) -> None:
    """Counts chunks that jaxckpt's own code, or TensorStore, has read and decoded.

    Args:
      chunks: number of chunks.
      nbytes: their size in bytes: in the files if it is known, otherwise in memory.
    """
    global _chunks, _bytes
    with _lock:
        _chunks += chunks
        _bytes += nbytes


def so_far() -> Counted:
    """Returns the counts since the process began."""
    with _lock:
        return Counted(_chunks, _bytes)
