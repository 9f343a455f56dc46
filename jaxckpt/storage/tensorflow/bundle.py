"""Reads the tensors of a checkpoint, and checks every byte of them against its checksum."""

import os
from typing import Literal

import numpy as np

from jaxckpt._lib import bounds, checksum
from jaxckpt._lib.aligned import aligned_empty
from jaxckpt._lib.boxes import slices_of
from jaxckpt._lib.documents import DamagedError, damage
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage.arrays import plausible
from jaxckpt.storage.flat.file_bytes import FileBytes
from jaxckpt.storage.stores.inside import Inside
from jaxckpt.storage.tensorflow import index, types
from jaxckpt.storage.tensorflow.index import Entry, Place
from jaxckpt.storage.tensorflow.table import masked
from jaxckpt.storage.tensorflow.wire import varint

SUFFIX = ".index"
_LENGTH_CHECKSUM_BYTES = 4
_VARINT_BYTES = 10


class Bundle:
    """The files of one checkpoint.

    Attributes:
      entries: the tensors, by key.
      files: names of the index and the data files, relative to their directory.
    """

    def __init__(self, inside: Inside, name: str) -> None:
        """Reads the index, and compares what it claims with the sizes of the data files.

        Args:
          inside: the files of the directory.
          name: name of the checkpoint in it, such as ``ckpt-3``.

        Raises:
          CorruptCheckpointError: the index is damaged, or a data file is missing or too short.
          OSError: a file cannot be read.
        """
        self._inside = inside
        self._name = name
        where = os.path.join(inside.directory, name + SUFFIX)
        with damage(where):
            self._index = index.parse(inside.read(name + SUFFIX, bounds.METADATA_FILE_BYTES))
        self.entries = {entry.key: entry for entry in self._index.entries}
        shards = sorted({place.shard for entry in self._index.entries for _, place in entry.parts if place.size})
        self.files = [name + SUFFIX, *(self._file(shard) for shard in shards)]
        sizes = {shard: self._size(shard) for shard in shards}
        for entry in self._index.entries:
            for _, place in entry.parts:
                size = sizes.get(place.shard)
                if size is not None and place.size and place.offset + place.size > size:
                    raise CorruptCheckpointError.at(
                        os.path.join(inside.directory, self._file(place.shard)),
                        f"this data file of the TensorFlow checkpoint is too short: it has {size} bytes, but {entry.key!r} ends at byte "
                        f"{place.offset + place.size}. Copy it again, or take another checkpoint.",
                    )
        # Each tensor has bytes of its own, so a small file cannot claim to hold much.
        claims = sum(entry.size for entry in self._index.entries)
        if inside.is_local and claims > sum(size or 0 for size in sizes.values()):
            raise CorruptCheckpointError.at(where, "this file is damaged: its tensors claim more bytes than there are.")

    def _file(self, shard: int) -> str:
        return f"{self._name}.data-{shard:05d}-of-{self._index.shards:05d}"

    def _size(self, shard: int) -> int | None:
        name = self._file(shard)
        path = os.path.join(self._inside.directory, name)
        try:
            with damage(path):
                return self._inside.size(name)
        except FileNotFoundError as error:
            raise CorruptCheckpointError.at(
                path, "this data file of the TensorFlow checkpoint is missing. Copy it too, or take another checkpoint."
            ) from error

    def array(self, entry: Entry) -> np.ndarray:
        """Returns a tensor of numbers.

        Args:
          entry: the tensor. Its type has a numpy dtype.

        Raises:
          DamagedError: its data is damaged.
          OSError: its data cannot be read.
        """
        dtype = types.dtype_of(entry.type)
        assert dtype is not None
        plausible.check_memory(entry.size)
        if not self._inside.is_local and entry.size > bounds.UNKNOWN_ARRAY_BYTES:
            raise DamagedError(f"it claims {entry.size} bytes, too much for a bucket, where stored sizes are not known")
        array = aligned_empty(entry.shape, dtype)
        for box, place in entry.parts:
            whole = box.shape == entry.shape
            part = array if whole else aligned_empty(box.shape, dtype)
            flat = part.reshape(-1).view(np.uint8)
            if masked(self._bytes(place).fill(flat)) != place.crc:
                raise DamagedError("the checksum of its data does not match")
            if self._index.is_big_endian:
                width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
                numbers = flat.view(f"u{width}")
                numbers.byteswap(inplace=True)
            if not whole:
                array[slices_of(*box)] = part
        return array

    def strings(self, entry: Entry) -> list[bytes]:
        """Returns the strings of a tensor of strings, in C order.

        Args:
          entry: the tensor.

        Raises:
          DamagedError: its data is damaged.
          OSError: its data cannot be read.
        """
        plausible.check_memory(entry.size)
        if len(entry.parts) == 1:
            (box, place) = entry.parts[0]
            return self._strings(place, int(np.prod(box.shape, dtype=np.int64)))
        array = np.empty(entry.shape, object)
        for box, place in entry.parts:
            part = np.empty(box.shape, object)
            part.reshape(-1)[:] = self._strings(place, part.size)
            array[slices_of(*box)] = part
        found: list[bytes] = array.reshape(-1).tolist()
        return found

    def length(self, entry: Entry) -> int:
        """Returns the length in bytes of a scalar string, from the first bytes of its data only.

        Args:
          entry: the tensor.

        Raises:
          DamagedError: its data is damaged.
          OSError: its data cannot be read.
        """
        (_, place), *_ = entry.parts
        start = np.empty(min(place.size, _VARINT_BYTES), np.uint8)
        self._bytes(place).fill(start)
        length, at = varint(start.tobytes(), 0)
        if at + _LENGTH_CHECKSUM_BYTES + length != place.size:
            raise DamagedError(f"the length of {entry.key!r} is damaged")
        return length

    def _strings(self, place: Place, number: int) -> list[bytes]:
        """Returns the strings of one place: their lengths, a checksum of these, and their bytes."""
        memory = np.empty(place.size, np.uint8)
        self._bytes(place).fill(memory)
        content = memory.tobytes()
        lengths, at = [], 0
        for _ in range(number):
            length, at = varint(content, at)
            lengths.append(length)
        # The checksum is about the lengths as numbers of 4 bytes, or of 8 bytes if they need them.
        order: Literal["big", "little"] = "big" if self._index.is_big_endian else "little"
        numbers = b"".join(length.to_bytes(4 if length < 1 << 32 else 8, order) for length in lengths)
        seal = content[at : at + _LENGTH_CHECKSUM_BYTES]
        crc = checksum.crc32c(numbers)
        start = at + _LENGTH_CHECKSUM_BYTES
        if masked(crc) != int.from_bytes(seal, order) or start + sum(lengths) != place.size:
            raise DamagedError("the lengths of its strings are damaged")
        if masked(checksum.extended(crc, memory[at:])) != place.crc:
            raise DamagedError("the checksum of its data does not match")
        found = []
        for length in lengths:
            found.append(content[start : start + length])
            start += length
        return found

    def _bytes(self, place: Place) -> FileBytes:
        return FileBytes(self._inside, self._file(place.shard), place.offset)
