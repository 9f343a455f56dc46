"""Finds a chunk of an array: under a key of its own, or in a shard, which is a value that ends in an index of the chunks in it.

The index has offset and length of each chunk, as little-endian numbers of 64 bits, and their crc32c (zarr's codec "sharding_indexed").
Everything may come from a stranger: a chunk must lie in its shard, and have a length that its elements can have.
"""

import math

import numpy as np

from jaxckpt._lib import bounds, checksum
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.arrays import plausible
from jaxckpt.storage.arrays.places import Places
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.ocdbt.model import Place

# zstd may add so many bytes to a chunk that it cannot compress, and a 64th of the chunk.
_ZSTD_BYTES = 1024
_ENTRY_BYTES = 16
# Offset and length of a chunk that is absent.
_ABSENT = (1 << 64) - 1


class Shard:
    """A value that holds several chunks."""

    def __init__(self, places: Places, key: str, value: bytes | Place, counts: tuple[int, ...]) -> None:
        """Reads the index.

        Args:
          places: where the value is.
          key: key of the value, for errors.
          value: the value, or where it is.
          counts: number of its chunks along each axis.

        Raises:
          DamagedError: the index is damaged.
          OSError: the index cannot be read.
        """
        self._key, self._value, self._counts = key, value, counts
        nbytes = math.prod(counts) * _ENTRY_BYTES + checksum.BYTES
        self._end = (value.length if isinstance(value, Place) else len(value)) - nbytes
        if self._end < 0:
            raise DamagedError(f"its shard {key} is too short for its index")
        index = places.part(value, self._end, nbytes)
        if not checksum.is_sealed(index[: -checksum.BYTES], index[-checksum.BYTES :]):
            raise DamagedError(f"the checksum of the index of its shard {key} does not match")
        self._entries = np.frombuffer(index, "<u8", 2 * math.prod(counts))

    def get(self, number: tuple[int, ...]) -> bytes | Place | None:
        """Returns the bytes of a chunk, or where they are; None if it is absent.

        Args:
          number: index of the chunk in the shard, along each axis.

        Raises:
          DamagedError: the chunk would reach out of the shard.
        """
        at = 0
        for index, count in zip(number, self._counts, strict=True):
            at = at * count + index
        offset, length = map(int, self._entries[2 * at : 2 * at + 2])
        if offset == length == _ABSENT:
            return None
        if offset + length > self._end:
            raise DamagedError(f"a chunk in its shard {self._key} reaches out of it")
        if isinstance(self._value, Place):
            return Place(self._value.file, self._value.offset + offset, length)
        return self._value[offset : offset + length]


# The shards of an array that have been found, by their index along each axis; None for one that is absent.
Shards = dict[tuple[int, ...], Shard | None]


def find(places: Places, path: str, info: ArrayInfo, number: tuple[int, ...], shards: Shards) -> bytes | Place | None:
    """Returns the bytes of a chunk, or where they are; None if it is absent.

    Args:
      places: where the values are.
      path: path of the array.
      info: metadata of the array. The own code can decode its chunks.
      number: index of the chunk along each axis.
      shards: the shards of the array that have been found. This function adds to them.

    Raises:
      DamagedError: the chunk cannot have the size that is stored, or the index of its shard is damaged.
      MemoryError: the machine has less memory than the chunk takes.
      OSError: the chunk cannot be found, or the index of its shard cannot be read.
    """
    found = (
        _in_shard(places, path, info, number, shards)
        if info.encoding.is_sharded
        else places.get(path + info.encoding.keys.of(number))
    )
    if isinstance(found, Place):
        check_length(found, path + info.encoding.keys.of(number), info)
    return found


def largest(stored: int, *, is_compressed: bool) -> int:
    """Returns the largest number of bytes that may be stored as `stored` bytes."""
    return bounds.EXPANDED_CHUNK_BYTES + bounds.EXPANDED_CHUNK_RATIO * stored if is_compressed else stored


def _in_shard(
    places: Places, path: str, info: ArrayInfo, number: tuple[int, ...], shards: Shards
) -> bytes | Place | None:
    assert info.grid is not None
    assert info.chunk_shape is not None
    counts = tuple([whole // part for whole, part in zip(info.grid, info.chunk_shape, strict=True)])
    outer = tuple([index // count for index, count in zip(number, counts, strict=True)])
    if outer not in shards:
        key = path + info.encoding.keys.of(outer)
        value = places.get(key)
        shards[outer] = None if value is None else Shard(places, key, value, counts)
    shard = shards[outer]
    if shard is None:
        return None
    return shard.get(tuple([index % count for index, count in zip(number, counts, strict=True)]))


def check_length(place: Place, chunk: str, info: ArrayInfo) -> None:
    """Raises DamagedError if a chunk cannot have the length that is stored.

    Args:
      place: where the chunk is.
      chunk: its key, for errors.
      info: metadata of the array.
    """
    assert info.chunk_shape is not None
    stored = place.length
    nbytes = math.prod(info.chunk_shape) * info.dtype.itemsize
    length = stored - info.encoding.checksum_bytes
    if not info.encoding.is_compressed:
        if length != nbytes:
            raise DamagedError(f"its chunk {chunk} has {stored} bytes")
        return
    if not 0 < length <= nbytes + nbytes // 64 + _ZSTD_BYTES:
        raise DamagedError(f"its chunk {chunk} has {stored} bytes, but its elements only {nbytes}")
    if nbytes > largest(length, is_compressed=True):
        raise DamagedError(f"its chunk {chunk} has {stored} bytes, too few for elements of {nbytes} bytes")
    plausible.check_memory(nbytes)
