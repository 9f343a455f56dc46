"""What an array claims to be, compared with the bytes that the checkpoint has for it.

TensorStore believes what it reads: it makes room for a chunk before it looks for it, and ends the process if there is not enough.
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

_INDEX_BYTES = 16  # For each chunk in a shard.
_ADVICE = "restore it into a target of its shape, or read another checkpoint"


class Absent:
    """How many bytes of chunks that are not there one call may still fill in."""

    def __init__(self) -> None:
        self.left = bounds.ABSENT_BYTES

    def take(self, nbytes: int) -> None:
        """Raises DamagedError if there are not so many left."""
        self.left -= nbytes
        if self.left < 0:
            raise DamagedError(
                f"{nbytes} bytes of what it claims are not stored, more than are filled in without a target; {_ADVICE}"
            )


def check(
    info: ArrayInfo, box: Slices | None, stored: Stored | None, absent: Absent | None, *, is_complete: bool
) -> None:
    """Makes sure that an array can be read.

    Args:
      info: what its metadata claim.
      box: what is wanted of it; None for all.
      stored: what there is of its chunks; None if that is not known.
      absent: bounds what is filled in; None if the array goes into a target of its shape.
      is_complete: no chunk may be absent.

    Raises:
      DamagedError: it claims more than there is.
      MemoryError: the machine has less memory than it takes.
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
            raise DamagedError(f"it claims {chunks} chunks of {chunk_bytes} bytes, and sizes of objects are not known")
        if absent is not None and nbytes > bounds.UNKNOWN_ARRAY_BYTES:
            raise DamagedError(f"it claims {nbytes} bytes, and sizes of objects are not known; {_ADVICE}")
        return
    most = stored.bytes
    if info.is_compressed:
        most = bounds.EXPANDED_CHUNK_BYTES + bounds.EXPANDED_CHUNK_RATIO * stored.bytes
    if (
        stored.largest
        > chunk_bytes + chunk_bytes // 64 + info.inner_chunks * _INDEX_BYTES + bounds.ARRAY_METADATA_BYTES
    ):
        raise DamagedError(f"what is stored of a chunk has {stored.largest} bytes, but a chunk only {chunk_bytes}")
    allowed = stored.files if is_complete else stored.files + bounds.ABSENT_CHUNKS
    if chunks > allowed:
        raise DamagedError(f"it claims {chunks} chunks, but the checkpoint holds {stored.files}")
    # A chunk at the edge of the array has its whole size on disk.
    if chunk_bytes > most and (is_complete or chunk_bytes > max(bounds.EXPANDED_CHUNK_BYTES, info.nbytes)):
        raise DamagedError(f"it claims chunks of {chunk_bytes} bytes, but the checkpoint holds {stored.bytes}")
    if info.inner_chunks * _INDEX_BYTES > stored.bytes + bounds.EXPANDED_CHUNK_BYTES:
        raise DamagedError(f"it claims {info.inner_chunks} chunks in a shard")
    if nbytes > most:
        if is_complete:
            raise DamagedError(f"it claims {nbytes} bytes, but the checkpoint holds {stored.bytes}")
        if absent is not None:
            absent.take(nbytes - most)
    check_memory(max(nbytes, chunk_bytes, stored.largest))


def check_memory(nbytes: int) -> None:
    """Raises MemoryError for more bytes than the machine has: a file may have holes, and any size."""
    if nbytes > _memory():
        raise MemoryError(f"it takes {nbytes} bytes")


@functools.cache
def _memory() -> int:
    """Returns the bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_kind(leaf: StoredLeaf, info: ArrayInfo) -> None:
    """Makes sure that an array can be what the tree metadata say that it is, such as bytes, or a PRNG key. Raises DamagedError."""
    note = None if leaf.kind is None else notes.find(leaf.kind)
    if note is not None and note.fits is not None and not note.fits(info.shape, info.dtype):
        raise DamagedError(f"an array of shape {info.shape} and dtype {info.dtype} cannot be {note.word}")
    if leaf.key_impl is not None and (not info.shape or info.dtype != "uint32"):
        raise DamagedError(f"an array of shape {info.shape} and dtype {info.dtype} cannot be a PRNG key")
