"""Finds the chunks that fill a box of an array, and decodes chunks. Reads no files itself: `Places` says where the chunks are."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.aligned import aligned_empty
from jaxckpt._lib.boxes import Slices, part_of, spans_of
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.arrays import plausible
from jaxckpt.storage.arrays.places import Places
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import layout
from jaxckpt.storage.ocdbt.model import Place

# Larger arrays are checked: they must not claim more bytes than the checkpoint has.
_ASK_BYTES = 1 << 20


class Read(NamedTuple):
    """A chunk to read.

    Attributes:
      owner: Orbax's name of the array, for errors.
      place: where the chunk and its crc32c are.
      shape: shape of the whole chunk.
      part: the wanted box of the chunk.
      target: array of the shape of that box, which is filled.
    """

    owner: str
    place: Place
    shape: tuple[int, ...]
    part: Slices
    target: np.ndarray

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
        found = _chunk(places, path + layout.chunk_key((0,) * len(chunk)), info.nbytes)
        # The index may have thousands of small arrays, so this path does nothing more.
        if isinstance(found, bytes):
            return part_of(decode(found, info.dtype, chunk), box)
    spans = spans_of(box, info.shape)
    shape = tuple([max(0, stop - start) for start, stop in spans])
    if target is None and info.nbytes > _ASK_BYTES:
        if info.nbytes > (stored := places.most(path).bytes):
            raise DamagedError(f"it claims {info.nbytes} bytes, but the checkpoint holds {stored}")
        plausible.check_memory(math.prod(shape) * info.dtype.itemsize)
    array = aligned_empty(shape, info.dtype) if target is None else target
    if isinstance(found, Place) and array.size:
        reads.append(Read(name, found, chunk, tuple([slice(*span) for span in spans]), array))
    elif array.size:
        reads.extend(_reads(places, name, array, [start for start, _ in spans], info.shape, chunk))
    return array


def _chunk(places: Places, key: str, nbytes: int) -> bytes | Place:
    """Returns a chunk of `nbytes` bytes, or where it is. Raises DamagedError if it is missing or has another size."""
    found = places.get(key)
    if found is None:
        raise DamagedError(f"its chunk {key} is missing")
    if isinstance(found, Place) and found.length != nbytes + layout.CHECKSUM_BYTES:
        raise DamagedError(f"its chunk {key} has {found.length} bytes")
    return found


def _reads(
    places: Places, name: str, array: np.ndarray, start: Sequence[int], shape: Sequence[int], chunk: tuple[int, ...]
) -> Iterator[Read]:
    """Yields the reads that fill a box of an array. Copies chunks that are in the index into the array at once.

    Args:
      places: where the chunks are.
      name: Orbax's name of the array.
      array: array of the shape of the box, to be filled.
      start: first index of the box along each axis of the whole array.
      shape: shape of the whole array.
      chunk: shape of its chunks.
    """
    path = layout.array_path(name)
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
        found = _chunk(places, key, nbytes)
        target: list[slice] = []
        part: list[slice] = []
        for i, cut, first, extent, whole in zip(number, chunk, start, array.shape, shape, strict=True):
            low, high = max(first, i * cut), min(first + extent, (i + 1) * cut, whole)
            target.append(slice(low - first, high - first))
            part.append(slice(low - i * cut, high - i * cut))
        if isinstance(found, bytes):
            array[tuple(target)] = decode(found, array.dtype, chunk)[tuple(part)]
        else:
            # The ellipsis makes the result an array even if it has no axes.
            yield Read(name, found, chunk, tuple(part), array[(*target, ...)])  # type: ignore[arg-type]


def decode(value: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Decodes a chunk whose codecs are bytes and crc32c.

    Args:
      value: the stored chunk, with its crc32c.
      dtype: dtype of the array.
      shape: shape of the chunk.

    Raises:
      DamagedError: the chunk has another length, or its checksum does not match.
    """
    data = value[: -layout.CHECKSUM_BYTES]
    if len(data) != (expected := math.prod(shape) * dtype.itemsize):
        raise DamagedError(f"its data is {len(data)} bytes long, expected {expected}")
    if not checksum.is_sealed(data, value[-layout.CHECKSUM_BYTES :]):
        raise DamagedError("the checksum of its data does not match")
    return np.frombuffer(data, dtype).reshape(shape)
