"""Compares the size that an array claims with the bytes that the checkpoint has for it.

TensorStore does not check this: it allocates memory for a chunk before it looks for the chunk, and if there is not enough, it ends the
process.
"""

import functools
import math
import os

from jaxckpt._lib import bounds
from jaxckpt._lib.boxes import Slices, spans_of
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.stores.inside import Stored as Stored

# The index of a shard takes this many bytes for each chunk in it.
_INDEX_BYTES = 16
_ADVICE = "restore it into a target of its shape, or read another checkpoint"


class Absent:
    """The number of bytes of absent chunks that one call may still fill in with the fill value."""

    def __init__(self) -> None:
        self.left = bounds.ABSENT_BYTES

    def take(self, nbytes: int) -> None:
        """Counts bytes that are filled in. Raises DamagedError if fewer than `nbytes` are left."""
        self.left -= nbytes
        if self.left < 0:
            raise DamagedError(
                f"{nbytes} of the bytes that it claims are not stored, more than can be filled in without a target; {_ADVICE}"
            )


def check(
    info: ArrayInfo, box: Slices | None, stored: Stored | None, absent: Absent | None, *, is_complete: bool
) -> None:
    """Makes sure that TensorStore can be asked to read a box of an array.

    Args:
      info: metadata of the array, which may be wrong.
      box: the wanted box; None for the whole array.
      stored: number and sizes of its stored chunks; None if they are not known.
      absent: bound for the bytes that are filled in; None if the array goes into a target of its shape.
      is_complete: whether every chunk must be stored.

    Raises:
      DamagedError: the array claims more than the stored bytes justify.
      MemoryError: the machine has less memory than the read takes.
    """
    grid = info.grid
    assert grid is not None
    spans = spans_of(box, info.shape)
    itemsize = info.dtype.itemsize
    nbytes = math.prod(max(0, stop - start) for start, stop in spans) * itemsize
    chunks = math.prod(max(0, -(-stop // cut) - start // cut) for (start, stop), cut in zip(spans, grid, strict=True))
    chunk_bytes = math.prod(grid) * itemsize
    if stored is None:
        if chunk_bytes > max(bounds.UNKNOWN_CHUNK_BYTES, itemsize) or chunks > bounds.ABSENT_CHUNKS:
            raise DamagedError(
                f"it claims {chunks} chunks of {chunk_bytes} bytes, too much for a bucket, where stored sizes are not known"
            )
        if absent is not None and nbytes > bounds.UNKNOWN_ARRAY_BYTES:
            raise DamagedError(
                f"it claims {nbytes} bytes, too much for a bucket, where stored sizes are not known; {_ADVICE}"
            )
        return
    most = stored.bytes
    if info.is_compressed:
        most = bounds.EXPANDED_CHUNK_BYTES + bounds.EXPANDED_CHUNK_RATIO * stored.bytes
    if (
        stored.largest
        > chunk_bytes + chunk_bytes // 64 + info.inner_chunks * _INDEX_BYTES + bounds.ARRAY_METADATA_BYTES
    ):
        raise DamagedError(
            f"a stored chunk is {stored.largest} bytes long, but its elements are only {chunk_bytes} bytes"
        )
    allowed = stored.files if is_complete else stored.files + bounds.ABSENT_CHUNKS
    if chunks > allowed:
        raise DamagedError(f"it claims {chunks} chunks, but the checkpoint holds {stored.files}")
    # On disk, a chunk at the edge of the array is as large as the others. A shard need not hold its chunks outside of the array.
    if info.chunk_shape is not None and info.encoding.is_sharded:
        chunk_bytes = math.prod(info.chunk_shape) * itemsize
    if chunk_bytes > most and (is_complete or chunk_bytes > max(bounds.EXPANDED_CHUNK_BYTES, info.nbytes)):
        raise DamagedError(f"it claims chunks of {chunk_bytes} bytes, but the checkpoint holds {stored.bytes}")
    if info.inner_chunks * _INDEX_BYTES > stored.bytes + bounds.EXPANDED_CHUNK_BYTES:
        raise DamagedError(
            f"it claims {info.inner_chunks} chunks in a shard, but the checkpoint holds {stored.bytes} bytes"
        )
    if nbytes > most:
        if is_complete:
            raise DamagedError(f"it claims {nbytes} bytes, but the checkpoint holds {stored.bytes}")
        if absent is not None:
            absent.take(nbytes - most)
    check_memory(max(nbytes, chunk_bytes, stored.largest))


def check_memory(nbytes: int) -> None:
    """Raises MemoryError for more bytes than the memory of the machine. (A sparse file may claim any size.)"""
    if nbytes > _memory():
        raise MemoryError(f"it takes {nbytes} bytes")


@functools.cache
def _memory() -> int:
    """Returns the memory of the machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_note(leaf: StoredLeaf, info: ArrayInfo) -> None:
    """Makes sure that an array fits the kind of leaf in the tree metadata, such as bytes or a PRNG key.

    Args:
      leaf: tree metadata of the leaf.
      info: metadata of its array.

    Raises:
      DamagedError: the array does not fit.
    """
    note = None if leaf.note is None else notes.find(leaf.note)
    if note is not None and note.fits is not None and not note.fits(info.shape, info.dtype):
        raise DamagedError(f"an array of shape {info.shape} and dtype {info.dtype} cannot be {note.word}")
    if leaf.key_impl is not None and (not info.shape or info.dtype != "uint32"):
        raise DamagedError(f"an array of shape {info.shape} and dtype {info.dtype} cannot be a PRNG key")
