"""Divides arrays into blocks that fit into the processor's cache, and lends memory for one block to each thread."""

import itertools
import threading
from collections.abc import Iterator

import numpy as np

from jaxckpt._lib.boxes import Slices

# A block is read (or copied), checksummed and copied (or written) while it is in the cache.
BLOCK_BYTES = 1 << 20


def blocks(shape: tuple[int, ...], itemsize: int, limit: int = BLOCK_BYTES) -> Iterator[Slices]:
    """Yields boxes that tile an array, in the order of its bytes: each is contiguous if the array is.

    Args:
      shape: shape of the array; all extents are at least 1.
      itemsize: size of one element in bytes.
      limit: the largest size of a box in bytes. A box has at least one element.
    """
    inner, axis = itemsize, len(shape)
    while axis and inner * shape[axis - 1] <= limit:
        axis -= 1
        inner *= shape[axis]
    whole = tuple([slice(0, extent) for extent in shape[axis:]])
    if not axis:
        yield whole
        return
    step, extent = max(1, limit // inner), shape[axis - 1]
    for lead in itertools.product(*map(range, shape[: axis - 1])):
        head = tuple([slice(index, index + 1) for index in lead])
        for first in range(0, extent, step):
            yield (*head, slice(first, min(first + step, extent)), *whole)


_lent = threading.local()


def scratch(nbytes: int) -> np.ndarray:
    """Returns uninitialized memory of the calling thread: an array of uint8. The next call of the thread returns the same memory again.

    Args:
      nbytes: size of the array in bytes. Up to `BLOCK_BYTES` no new memory is made for it.
    """
    if nbytes > BLOCK_BYTES:
        return np.empty(nbytes, np.uint8)
    memory: np.ndarray | None = getattr(_lent, "memory", None)
    if memory is None:
        memory = _lent.memory = np.empty(BLOCK_BYTES, np.uint8)
    return memory[:nbytes]
