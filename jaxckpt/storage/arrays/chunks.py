"""Finds the chunks that fill a box of an array, and decodes chunks. Reads no files itself: `Places` says where the chunks are."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.aligned import aligned_empty
from jaxckpt._lib.boxes import Slices, part_of, spans_of
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.arrays import locating, plausible
from jaxckpt.storage.arrays.encoding import Encoding
from jaxckpt.storage.arrays.places import Places
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.content import nbytes
from jaxckpt.storage.ocdbt import zstd
from jaxckpt.storage.ocdbt.model import Place

# Larger arrays are checked: they must not claim more bytes than the checkpoint has.
_ASK_BYTES = 1 << 20


class Part(NamedTuple):
    """A box of a chunk, and where it goes.

    Attributes:
      box: the box of the chunk.
      target: array of the shape of the box, which is filled.
    """

    box: Slices
    target: np.ndarray

    def is_beginning_of(self, shape: tuple[int, ...]) -> bool:
        """Whether the target is contiguous, and the box is the beginning of the chunk's bytes.

        Then it is the first indices along the first axis longer than one.

        Args:
          shape: shape of the chunk.
        """
        if not self.target.flags.c_contiguous:
            return False
        for axis, extent in enumerate(shape):
            if self.box[axis].start != 0:
                return False
            if extent != 1:
                rest = zip(self.box[axis + 1 :], shape[axis + 1 :], strict=True)
                return all(box.start == 0 and box.stop == whole for box, whole in rest)
        return True


class Read(NamedTuple):
    """A chunk to read, once for all boxes that want a part of it.

    Attributes:
      owner: Orbax's name of the array, for errors.
      place: where the chunk is, with its crc32c if it has one.
      shape: shape of the whole chunk.
      dtype: dtype of the array.
      encoding: how the chunk is stored.
      parts: the wanted boxes of the chunk; at least one.
    """

    owner: str
    place: Place
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    encoding: Encoding
    parts: list[Part]

    @property
    def nbytes(self) -> int:
        """Size of the decoded chunk in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Reads:
    """The chunks to read for one call. A chunk that several boxes want is in it once."""

    def __init__(self) -> None:
        """Makes an empty plan."""
        self._reads: dict[tuple[str, Place], Read] = {}

    def add(self, owner: str, place: Place, info: ArrayInfo, part: Part) -> None:
        """Adds a wanted box of a chunk.

        Args:
          owner: Orbax's name of the array.
          place: where the chunk is.
          info: metadata of the array.
          part: the box, and where it goes.
        """
        found = self._reads.get((owner, place))
        if found is None:
            assert info.chunk_shape is not None
            self._reads[owner, place] = Read(owner, place, info.chunk_shape, info.dtype, info.encoding, [part])
        else:
            found.parts.append(part)

    def in_file_order(self) -> list[Read]:
        """Returns the chunks in the order of their places on disk."""
        return sorted(self._reads.values(), key=lambda read: read.place)


def plan(
    places: Places,
    name: str,
    info: ArrayInfo,
    box: Slices | None,
    reads: Reads,
    target: np.ndarray | None,
    *,
    is_complete: bool = True,
) -> np.ndarray:
    """Returns an array for a box, and adds the reads that will fill it to `reads`.

    Args:
      places: where the chunks are.
      name: Orbax's name of the array.
      info: metadata of the array.
      box: the wanted box of the array; None for the whole array.
      reads: plan to which the chunks are added.
      target: array of the shape of the box, to be filled; None for a new one.
      is_complete: whether every chunk must be there. If not, absent chunks are zeros, and the caller has called `plausible.check`.

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
    if info.only_key is not None:
        found = places.get(path + info.only_key)
        # The index may have thousands of small arrays, so this path does nothing more.
        if isinstance(found, bytes):
            return part_of(decode(found, info.dtype, chunk, info.encoding), box)
        if found is not None:
            locating.check_length(found, path + info.only_key, info)
    spans = spans_of(box, info.shape)
    shape = tuple([max(0, stop - start) for start, stop in spans])
    if is_complete and target is None and info.nbytes > _ASK_BYTES:
        stored = places.stored(path).bytes if info.is_compressed else places.most(path).bytes
        if info.nbytes > locating.largest(stored, is_compressed=info.is_compressed):
            raise DamagedError(f"it claims {info.nbytes} bytes, but the checkpoint holds {stored}")
        plausible.check_memory(math.prod(shape) * info.dtype.itemsize)
    array = aligned_empty(shape, info.dtype) if target is None else target
    if isinstance(found, Place) and array.size:
        reads.add(name, found, info, Part(tuple([slice(*span) for span in spans]), array))
    elif array.size:
        start = [start for start, _ in spans]
        _add(places, name, array, start, info, reads, is_complete=is_complete)
    return array


def _add(
    places: Places,
    name: str,
    array: np.ndarray,
    start: Sequence[int],
    info: ArrayInfo,
    reads: Reads,
    *,
    is_complete: bool,
) -> None:
    """Adds the chunks that fill a box of an array. Fills in at once what is in the index, and absent chunks.

    Args:
      places: where the chunks are.
      name: Orbax's name of the array.
      array: array of the shape of the box, to be filled.
      start: first index of the box along each axis of the whole array.
      info: metadata of the array.
      reads: plan to which the chunks are added.
      is_complete: whether every chunk must be there. If not, absent chunks are zeros.
    """
    path = layout.array_path(name)
    chunk, shape = info.chunk_shape, info.shape
    assert chunk is not None
    ranges = [
        range(first // cut, -(-(first + extent) // cut))
        for first, extent, cut in zip(start, array.shape, chunk, strict=True)
    ]
    number_of_chunks = math.prod(map(len, ranges))
    if is_complete and number_of_chunks > 1 and number_of_chunks > places.most(path).chunks * info.inner_chunks:
        raise DamagedError("it has more chunks than the checkpoint holds")
    shards: locating.Shards = {}
    for number in itertools.product(*ranges):
        found = locating.find(places, path, info, number, shards)
        target: list[slice] = []
        part: list[slice] = []
        for i, cut, first, extent, whole in zip(number, chunk, start, array.shape, shape, strict=True):
            low, high = max(first, i * cut), min(first + extent, (i + 1) * cut, whole)
            target.append(slice(low - first, high - first))
            part.append(slice(low - i * cut, high - i * cut))
        if isinstance(found, bytes):
            array[tuple(target)] = decode(found, array.dtype, chunk, info.encoding)[tuple(part)]
        elif found is not None:
            # The ellipsis makes the result an array even if it has no axes.
            reads.add(name, found, info, Part(tuple(part), array[(*target, ...)]))  # type: ignore[arg-type]
        elif is_complete:
            raise DamagedError(f"its chunk {path}{info.encoding.keys.of(number)} is missing")
        else:
            array[tuple(target)] = 0


def decode(value: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], encoding: Encoding) -> np.ndarray:
    """Decodes a chunk.

    Args:
      value: the stored chunk, with its crc32c if it has one.
      dtype: dtype of the array.
      shape: shape of the chunk.
      encoding: how it is stored.

    Returns:
      The chunk, read-only.

    Raises:
      DamagedError: the chunk has another length, its checksum does not match, or it does not decompress to its length.
    """
    data = value[: len(value) - encoding.checksum_bytes]
    expected = nbytes(shape, dtype)
    if len(data) != expected and not encoding.is_compressed:
        raise DamagedError(f"its data is {len(data)} bytes long, expected {expected}")
    if encoding.is_checked and not checksum.is_sealed(data, value[-checksum.BYTES :]):
        raise DamagedError("the checksum of its data does not match")
    if encoding.is_compressed:
        data = zstd.decompress_exactly(data, expected)
    array = np.frombuffer(data, dtype)
    return array if len(shape) == 1 else array.reshape(shape)
