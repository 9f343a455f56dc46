"""Memory for arrays that are read: JAX's CPU backend takes it without a copy, and the kernel gives it in large pages."""

import math
from typing import Any

import numpy as np

_ALIGNMENT = 64  # XLA's
_HUGE_PAGE = 2 << 20
_HUGE_FROM = 4 << 20  # bytes of memory that numpy asks the kernel to back with huge pages


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Returns a new array at an address that is a multiple of 64, or of a huge page's size for an array of several of them.

    An array that begins in the middle of a huge page has its ends in small pages, hundreds of them, and every one has to be asked for
    when it is written first: that takes as long as reading it. Memory before the beginning is never touched, and so never given.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    alignment = _HUGE_PAGE if nbytes >= _HUGE_FROM else _ALIGNMENT
    memory = np.empty(nbytes + alignment, np.uint8)
    start = -memory.__array_interface__["data"][0] % alignment
    return memory[start : start + nbytes].view(dtype).reshape(shape)
