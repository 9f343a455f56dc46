"""Finds the chunks that fill a box of an array, and decodes chunks. Reads no files itself: `Places` says where the chunks are."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxckpt._lib import bounds, checksum
from jaxckpt._lib.aligned import aligned_empty
from jaxckpt._lib.boxes import Slices, part_of, spans_of
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.arrays import plausible
from jaxckpt.storage.arrays.places import Places
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import layout
from jaxckpt.storage.ocdbt import zstd
from jaxckpt.storage.ocdbt.model import Place

# Larger arrays are checked: they must not claim more bytes than the checkpoint has.
_ASK_BYTES = 1 << 20
# zstd may add so many bytes to a chunk that it cannot compress, and a 64th of the chunk.
_ZSTD_BYTES = 1024


class Read(NamedTuple):
    """A chunk to read.

    Attributes:
      owner: Orbax's name of the array, for errors.
      place: where the chunk and its crc32c are.
      shape: shape of the whole chunk.
      part: the wanted box of the chunk.
      target: array of the shape of that box, which is filled.
      is_compressed: whether zstd has compressed the chunk.
    """

    owner: str
    place: Place
    shape: tuple[int, ...]
    part: Slices
    target: np.ndarray
    is_compressed: bool = False

    @property
    def is_of_first_bytes(self) -> bool:
        """Whether the wanted box is the beginning of the chunk's bytes: the first indices along the first axis longer than one."""
        for axis, extent in enumerate(self.shape):
            if self.part[axis].start != 0:
                return False
            if extent != 1:
                rest = zip(self.part[axis + 1 :], self.shape[axis + 1 :], strict=True)
                return all(box.start == 0 and box.stop == whole for box, whole in rest)
        return True


def plan(
    places: Places, name: str, info: ArrayInfo, box: Slices | None, reads: list[Read], target: np.ndarray | None
) -> np.ndarray:
    """Returns an array for a box, and adds the reads that will fill it to `reads`.

    Args:
      places: where the chunks are.
      name: Orbax's name of the array.
      info: metadata of the array.
      box: the wanted box of the array; None for the whole array.
      reads: list to which the reads are added.
      target: array of the shape of the box, to be filled; None for a new one.

    Returns:
      The array that the reads fill: `target` or a new one. If the value is in the index, it is another array, complete at once and perhaps
      read-only.

    Raises:
      DamagedError: a chunk is missing or damaged, or the array claims more bytes than are stored.
      MemoryError: the machine has less memory than the box takes.
      OSError: the store cannot find a chunk.
    """
    chunk = info.chunk_shape
    assert chunk is not None
    path = layout.array_path(name)
    found: bytes | Place | None = None
    if chunk == info.shape:
        found = _chunk(places, path + layout.chunk_key((0,) * len(chunk)), info.nbytes, info.is_compressed)
        # The index may have thousands of small arrays, so this path does nothing more.
        if isinstance(found, bytes):
            return part_of(decode(found, info.dtype, chunk, info.is_compressed), box)
    spans = spans_of(box, info.shape)
    shape = tuple([max(0, stop - start) for start, stop in spans])
    if target is None and info.nbytes > _ASK_BYTES:
        stored = places.stored(path).bytes if info.is_compressed else places.most(path).bytes
        if info.nbytes > _most(stored, info.is_compressed):
            raise DamagedError(f"it claims {info.nbytes} bytes, but the checkpoint holds {stored}")
        plausible.check_memory(math.prod(shape) * info.dtype.itemsize)
    array = aligned_empty(shape, info.dtype) if target is None else target
    if isinstance(found, Place) and array.size:
        reads.append(Read(name, found, chunk, tuple([slice(*span) for span in spans]), array, info.is_compressed))
    elif array.size:
        reads.extend(_reads(places, name, array, [start for start, _ in spans], info))
    return array


def _most(stored: int, is_compressed: bool) -> int:
    """Returns the largest number of bytes that may be stored as `stored` bytes."""
    return bounds.EXPANDED_CHUNK_BYTES + bounds.EXPANDED_CHUNK_RATIO * stored if is_compressed else stored


def _chunk(places: Places, key: str, nbytes: int, is_compressed: bool) -> bytes | Place:
    """Returns a chunk of `nbytes` bytes, or where it is. Raises DamagedError if it is missing or cannot have that size."""
    found = places.get(key)
    if found is None:
        raise DamagedError(f"its chunk {key} is missing")
    if isinstance(found, Place):
        length = found.length - layout.CHECKSUM_BYTES
        if is_compressed:
            if not 0 < length <= nbytes + nbytes // 64 + _ZSTD_BYTES:
                raise DamagedError(f"its chunk {key} has {found.length} bytes, but its elements only {nbytes}")
            if nbytes > _most(length, is_compressed):
                raise DamagedError(f"its chunk {key} has {found.length} bytes, too few for elements of {nbytes} bytes")
            plausible.check_memory(nbytes)
        elif length != nbytes:
            raise DamagedError(f"its chunk {key} has {found.length} bytes")
    return found


def _reads(places: Places, name: str, array: np.ndarray, start: Sequence[int], info: ArrayInfo) -> Iterator[Read]:
    """Yields the reads that fill a box of an array. Copies chunks that are in the index into the array at once.

    Args:
      places: where the chunks are.
      name: Orbax's name of the array.
      array: array of the shape of the box, to be filled.
      start: first index of the box along each axis of the whole array.
      info: metadata of the array.
    """
    path = layout.array_path(name)
    chunk, shape, is_compressed = info.chunk_shape, info.shape, info.is_compressed
    assert chunk is not None
    ranges = [
        range(first // cut, -(-(first + extent) // cut))
        for first, extent, cut in zip(start, array.shape, chunk, strict=True)
    ]
    nbytes = math.prod(chunk) * array.dtype.itemsize
    number_of_chunks = math.prod(map(len, ranges))
    if number_of_chunks > 1 and number_of_chunks > places.most(path).chunks:
        raise DamagedError("it has more chunks than the checkpoint holds")
    for number in itertools.product(*ranges):
        key = path + layout.chunk_key(number)
        found = _chunk(places, key, nbytes, is_compressed)
        target: list[slice] = []
        part: list[slice] = []
        for i, cut, first, extent, whole in zip(number, chunk, start, array.shape, shape, strict=True):
            low, high = max(first, i * cut), min(first + extent, (i + 1) * cut, whole)
            target.append(slice(low - first, high - first))
            part.append(slice(low - i * cut, high - i * cut))
        if isinstance(found, bytes):
            array[tuple(target)] = decode(found, array.dtype, chunk, is_compressed)[tuple(part)]
        else:
            # The ellipsis makes the result an array even if it has no axes.
            yield Read(name, found, chunk, tuple(part), array[(*target, ...)], is_compressed)  # type: ignore[arg-type]


def decode(value: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], is_compressed: bool = False) -> np.ndarray:
    """Decodes a chunk whose codecs are bytes, perhaps zstd, and crc32c.

    Args:
      value: the stored chunk, with its crc32c.
      dtype: dtype of the array.
      shape: shape of the chunk.
      is_compressed: whether zstd has compressed it.

    Returns:
      The chunk, read-only.

    Raises:
      DamagedError: the chunk has another length, its checksum does not match, or it does not decompress to its length.
    """
    data = value[: -layout.CHECKSUM_BYTES]
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected and not is_compressed:
        raise DamagedError(f"its data is {len(data)} bytes long, expected {expected}")
    if not checksum.is_sealed(data, value[-layout.CHECKSUM_BYTES :]):
        raise DamagedError("the checksum of its data does not match")
    return decompressed(data, dtype, shape) if is_compressed else np.frombuffer(data, dtype).reshape(shape)


def decompressed(data: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Decompresses a chunk whose checksum has been checked.

    Args:
      data: the compressed bytes, without their crc32c.
      dtype: dtype of the array.
      shape: shape of the chunk.

    Returns:
      The chunk, read-only.

    Raises:
      DamagedError: the bytes do not decompress to the length of the chunk.
    """
    return np.frombuffer(zstd.decompress_exactly(data, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
