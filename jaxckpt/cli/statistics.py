"""Statistics of the values of stored arrays. They are read block by block, so that large arrays need little memory."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxckpt._lib.boxes import Box, slices_of
from jaxckpt.leaf_kinds.dtypes import number_kind
from jaxckpt.leaf_kinds.registry import stored_kind
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.source import OpenCheckpoint

# Bytes that are read in one step, and elements that are looked at in one step.
_BYTES = 16 << 20
_ELEMENTS = 1 << 19
# Chunks that are read in one step. Each takes an object, however small it is.
_CHUNKS = 256


@dataclass(frozen=True)
class Statistics:
    """Statistics of numbers. Those that are NaN or infinite are counted, and otherwise left out. Of complex numbers, magnitudes count.

    Attributes:
      count: number of elements.
      nans: number of those that are NaN.
      infs: number of those that are infinite.
      min: smallest number; NaN if there is none.
      max: largest number; NaN if there is none.
      mean: their mean; NaN if there is none.
      rms: square root of the mean of their squares; NaN if there is none.
    """

    count: int = 0
    nans: int = 0
    infs: int = 0
    min: float = math.nan
    max: float = math.nan
    mean: float = math.nan
    rms: float = math.nan

    @property
    def finite(self) -> int:
        """How many numbers there are that are neither NaN nor infinite."""
        return self.count - self.nans - self.infs

    def __add__(self, other: "Statistics") -> "Statistics":
        """Returns the statistics of the elements of both."""
        counts = self.count + other.count, self.nans + other.nans, self.infs + other.infs
        mine, others = self.finite, other.finite
        if not others or not mine:
            known = self if mine else other
            return Statistics(*counts, known.min, known.max, known.mean, known.rms)
        part = others / (mine + others)
        return Statistics(
            *counts,
            min(self.min, other.min),
            max(self.max, other.max),
            self.mean * (1 - part) + other.mean * part,
            # Not the squares themselves, which may be too large for a float.
            math.hypot(self.rms * math.sqrt(1 - part), other.rms * math.sqrt(part)),
        )


def has_statistics(leaf: StoredLeaf, info: ArrayInfo) -> bool:
    """Whether the elements of an array leaf are numbers: not PRNG keys, nor bytes."""
    is_number = info.dtype == np.bool_ or number_kind(info.dtype) in ("f", "i", "c")
    return leaf.key_impl is None and is_number and not stored_kind(leaf).is_one_value


def statistics_of(
    stored: OpenCheckpoint, leaf: StoredLeaf, info: ArrayInfo, advance: Callable[[int], None] = lambda _: None
) -> Statistics:
    """Reads an array and returns its statistics.

    Args:
      stored: the checkpoint.
      leaf: the leaf.
      info: its shape and dtype, as `stored.infos` returned it.
      advance: called with the number of bytes after each step.

    Raises:
      CorruptCheckpointError: the array is damaged; names the leaf.
      FileNotFoundError: the checkpoint was deleted or replaced.
      OSError: it cannot be read.
    """
    found = Statistics()
    for block in blocks(stored, leaf, info):
        for start in range(0, block.size, _ELEMENTS):
            found += of_numbers(block[start : start + _ELEMENTS])
        advance(block.nbytes)
    return found


def blocks(stored: OpenCheckpoint, leaf: StoredLeaf, info: ArrayInfo) -> Iterator[np.ndarray]:
    """Yields all elements of an array as flat arrays, each at most a few MiB: whole chunks, or parts of a large chunk.

    The last parts of a chunk are checked after the others were yielded. TensorFlow's checkpoints and safetensors files are read array by
    array.

    Args:
      stored: the checkpoint.
      leaf: the leaf.
      info: its shape and dtype, as `stored.infos` returned it.
    """
    if 0 in info.shape:
        return
    wanted: list[tuple[str, Any]] = []
    size = 0
    for box in _chunks(info):
        nbytes = math.prod(box.shape) * info.dtype.itemsize
        slices = slices_of(box.start, box.shape)
        if nbytes > _BYTES and (stream := stored.stream(leaf.param_name, slices)) is not None:
            step = _BYTES // info.dtype.itemsize * info.dtype.itemsize
            for start in range(0, stream.nbytes, step):
                part = np.empty(min(step, stream.nbytes - start), np.uint8)
                stream.fill(part)
                yield part.view(info.dtype)
            continue
        if wanted and (size + nbytes > _BYTES or len(wanted) == _CHUNKS):
            yield from map(np.ravel, stored.read(wanted))
            wanted, size = [], 0
        wanted.append((leaf.param_name, slices))
        size += nbytes
    if wanted:
        yield from map(np.ravel, stored.read(wanted))


def _chunks(info: ArrayInfo) -> Iterator[Box]:
    grid = info.shape if info.grid is None else info.grid
    starts = [range(0, extent, max(1, step)) for extent, step in zip(info.shape, grid, strict=True)]
    for start in itertools.product(*starts):
        shape = [min(step, extent - first) for first, step, extent in zip(start, grid, info.shape, strict=True)]
        yield Box(start, tuple(shape))


def of_numbers(numbers: np.ndarray) -> Statistics:
    """Returns the statistics of a flat array of numbers."""
    kind = numbers.dtype.kind
    if kind == "c":
        with np.errstate(all="ignore"):
            values = np.abs(numbers.astype(np.complex128))
        # The magnitude of (inf, nan) is infinite, but NaN is what people look for.
        values[np.isnan(numbers)] = np.nan
    elif kind in "iub":
        values = numbers
    else:
        # Also the small floats and ints of ml_dtypes, which numpy cannot compute with.
        values = numbers.astype(np.float64)
    finite = values
    nans = infs = 0
    if values.dtype.kind == "f":
        nans = int(np.isnan(values).sum())
        infs = int(np.isinf(values).sum())
        finite = values[np.isfinite(values)] if nans or infs else values
    if not finite.size:
        return Statistics(numbers.size, nans, infs)
    low, high = finite.min().item(), finite.max().item()
    largest = max(abs(low), abs(high))
    # Numbers below 1, so that no sum and no square overflows.
    scaled = finite.astype(np.float64) / largest if largest else np.zeros(1)
    mean = min(max(scaled.mean().item() * largest, low), high)
    rms = math.sqrt(np.square(scaled).mean().item()) * largest
    return Statistics(numbers.size, nans, infs, low, high, mean, rms)
