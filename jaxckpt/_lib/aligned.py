"""Aligned memory for arrays that are read: JAX's CPU backend uses it without a copy, and the kernel backs it with huge pages."""

import math
from typing import Any

import numpy as np

# The alignment that XLA needs, in bytes.
_ALIGNMENT = 64
_HUGE_PAGE = 2 << 20
# numpy asks the kernel for huge pages from this size on, in bytes.
_HUGE_FROM = 4 << 20


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Returns a new, uninitialized array at an aligned address: a multiple of 64, or of a huge page's size for an array of several pages.

    Without this, an array that begins in the middle of a huge page would have hundreds of small pages at both ends. The kernel supplies
    each of them at the first write, which takes as long as reading the array. The skipped memory before the array is never touched, so the
    kernel never supplies it.

    Args:
      shape: shape of the array.
      dtype: dtype of the array.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    alignment = _HUGE_PAGE if nbytes >= _HUGE_FROM else _ALIGNMENT
    memory = np.empty(nbytes + alignment, np.uint8)
    start = -memory.__array_interface__["data"][0] % alignment
    return memory[start : start + nbytes].view(dtype).reshape(shape)
