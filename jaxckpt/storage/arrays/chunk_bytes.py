"""Reads the bytes of one chunk in order, checks them while they are in the cache, and puts them where they are wanted.

A chunk is read block by block, so memory for a whole one is never made, however large chunks are.
"""

import math
import os
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.blocks import BLOCK_BYTES, blocks, scratch
from jaxckpt._lib.boxes import Slices
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.arrays.chunks import Part, Read
from jaxckpt.storage.ocdbt import zstd


class Content(Protocol):
    """The decoded bytes of a chunk. They may be wrong until `finish` has returned."""

    def fill(self, target: np.ndarray) -> None:
        """Fills an array of uint8 with the next bytes. Raises DamagedError or OSError."""

    def finish(self) -> None:
        """Reads the rest, and checks the whole chunk. Raises DamagedError or OSError."""


def content_of(descriptor: int, read: Read) -> Content:
    """Returns the content of a chunk.

    Args:
      descriptor: of its data file, open as long as the content is used.
      read: the chunk.
    """
    encoding = read.encoding
    nbytes = read.place.length - encoding.checksum_bytes
    stored = _Stored(descriptor, read.place.offset, nbytes, is_checked=encoding.is_checked)
    return _Compressed(stored, read.nbytes) if encoding.is_compressed else stored


def deliver(content: Content, read: Read) -> None:
    """Reads a chunk once, and fills the targets of all parts. If it raises, the targets may hold anything.

    Args:
      content: the content of the chunk, of which nothing has been read.
      read: the chunk, and its parts.

    Raises:
      DamagedError: the chunk is damaged.
      OSError: the chunk cannot be read.
    """
    if len(read.parts) == 1 and read.parts[0].is_beginning_of(read.shape):
        content.fill(_bytes(read.parts[0].target))
    else:
        for block in blocks(read.shape, read.dtype.itemsize):
            _deliver_block(content, read, block)
    content.finish()


def _deliver_block(content: Content, read: Read, block: Slices) -> None:
    shape = tuple([span.stop - span.start for span in block])
    wanted = [found for part in read.parts if (found := _common(block, part)) is not None]
    if len(wanted) == 1:
        _, target = wanted[0]
        if target.shape == shape and target.flags.c_contiguous:
            content.fill(_bytes(target))
            return
    memory = scratch(math.prod(shape) * read.dtype.itemsize)
    content.fill(memory)
    array = memory.view(read.dtype).reshape(shape)
    for inside, target in wanted:
        target[...] = array[inside]


def _common(block: Slices, part: Part) -> tuple[Slices, np.ndarray] | None:
    """Returns what a block of a chunk and a part have in common: as a box of the block, and as a view of the target. None if nothing."""
    inside, there = [], []
    for span, wanted in zip(block, part.box, strict=True):
        low, high = max(span.start, wanted.start), min(span.stop, wanted.stop)
        if low >= high:
            return None
        inside.append(slice(low - span.start, high - span.start))
        there.append(slice(low - wanted.start, high - wanted.start))
    # The ellipsis makes the result an array even if it has no axes.
    return tuple(inside), part.target[(*there, ...)]  # type: ignore[arg-type]


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


class _Stored:
    """Bytes that are stored as they are: those of a chunk before its crc32c, if it has one."""

    def __init__(self, descriptor: int, offset: int, nbytes: int, *, is_checked: bool) -> None:
        self._descriptor, self._offset, self._nbytes, self._is_checked = descriptor, offset, nbytes, is_checked
        self._checksum = self._done = 0

    @property
    def is_at_end(self) -> bool:
        return self._done == self._nbytes

    def fill(self, target: np.ndarray) -> None:
        done = 0
        while done < target.size:
            done += self._next(target[done : done + BLOCK_BYTES])

    def read(self, size: int, /) -> bytes:
        """Returns the next bytes, at most `size`; none at the end."""
        wanted = min(size, self._nbytes - self._done)
        if not wanted:
            return b""
        found = os.pread(self._descriptor, wanted, self._offset + self._done)
        self._count(found, len(found))
        return found

    def finish(self) -> None:
        while not self.is_at_end:
            self.fill(scratch(min(BLOCK_BYTES, self._nbytes - self._done)))
        if self._is_checked:
            stored = os.pread(self._descriptor, checksum.BYTES, self._offset + self._nbytes)
            if stored != checksum.encoded(self._checksum):
                raise DamagedError("the checksum of its data does not match")

    def _next(self, target: np.ndarray) -> int:
        got = os.preadv(self._descriptor, [target.data], self._offset + self._done)
        self._count(target[:got], got)
        return got

    def _count(self, found: np.ndarray | bytes, nbytes: int) -> None:
        if not nbytes:
            raise DamagedError("its data file is shorter than it was")
        if self._is_checked:
            self._checksum = checksum.extended(self._checksum, found)
        self._done += nbytes


class _Compressed:
    """Bytes that zstd has compressed."""

    def __init__(self, stored: _Stored, nbytes: int) -> None:
        self._stored, self._left = stored, nbytes
        self._content = zstd.Content(stored)

    def fill(self, target: np.ndarray) -> None:
        self._content.fill(target)
        self._left -= target.size

    def finish(self) -> None:
        while self._left:
            self.fill(scratch(min(BLOCK_BYTES, self._left)))
        self._content.end()
        if not self._stored.is_at_end:
            raise DamagedError("other bytes follow its compressed content")
        self._stored.finish()


def nbytes_of(reads: Iterable[Read]) -> int:
    """Returns the size in bytes of chunks in their data files."""
    return sum(read.place.length for read in reads)
