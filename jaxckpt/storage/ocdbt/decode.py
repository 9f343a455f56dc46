"""Decodes OCDBT's manifest and B-tree nodes, as TensorStore's documentation of the `ocdbt` driver defines them. Pure.

It decodes the formats that jaxckpt and Orbax write: one manifest file, compressed or not. It raises `UnknownFormatError` for another
format, and `DamagedError` for damaged bytes.
"""

import itertools
import operator
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxckpt._lib import bounds, checksum
from jaxckpt._lib.documents import DamagedError
from jaxckpt._lib.inner_path import checked_name
from jaxckpt.storage.ocdbt import zstd
from jaxckpt.storage.ocdbt.model import (
    HEADER_BYTES,
    MANIFEST,
    MISSING,
    NODE,
    Node,
    Place,
    Root,
    UnknownFormatError,
)

_VARINT_BYTES = 10


class Values(NamedTuple):
    """The content of a leaf node, in columns: there are thousands of values.

    Attributes:
      keys: the keys; they ascend.
      values: the value of each key, or its place.
    """

    keys: list[bytes]
    values: list[bytes | Place]


class Memory:
    """The number of bytes that the keys and paths of a database may still take in memory. On disk they share prefixes; in memory not."""

    def __init__(self) -> None:
        self.left = bounds.EXPANDED_KEY_BYTES

    def take(self, nbytes: int) -> None:
        """Counts bytes in memory. Raises DamagedError if fewer than `nbytes` are left."""
        self.left -= nbytes
        if self.left < 0:
            raise DamagedError(
                "its keys share so many bytes that they take more memory than their size on disk justifies"
            )


def decode_manifest(content: bytes) -> Root:
    """Decodes a manifest, and returns the root of the newest version of the database.

    Args:
      content: content of the manifest file.

    Raises:
      UnknownFormatError: the database has another format.
      DamagedError: the manifest is damaged.
    """
    cursor = _Cursor(content, MANIFEST, Memory())
    # The identifier of the database.
    cursor.take(16)
    if cursor.varint() != 0:
        raise UnknownFormatError("the manifest is not a single file")
    cursor.varints(2)
    cursor.take(1)
    method = cursor.varint()
    if method > 1:
        raise UnknownFormatError("an unknown compression")
    # The level of zstd.
    cursor.take(4 * method)
    files = cursor.files("")
    count = cursor.count()
    if count == 0:
        return Root(None, 0)
    cursor.varints(count)
    heights = cursor.take(count)
    numbers, offsets, lengths = cursor.varints(count), cursor.varints(count), cursor.varints(count)
    if offsets[-1] == lengths[-1] == MISSING:
        return Root(None, 0)
    if heights[-1] > bounds.TREE_HEIGHT:
        raise DamagedError("its B-tree is too high")
    base, name = files.split(numbers[-1])
    return Root(Node(b"", 0, Place(base + name, offsets[-1], lengths[-1]), base), heights[-1])


def decode_node(content: bytes, height: int, base: str, memory: Memory | None = None) -> list[Node] | Values:
    """Decodes a node: returns the children of an interior node, or the values of a leaf node. Their keys ascend.

    Args:
      content: the bytes of the node.
      height: number of levels of nodes below it; 0 for a leaf node.
      base: the `Node.base` of the reference to it.
      memory: bound for the memory of the keys; None for a new one.

    Raises:
      UnknownFormatError: the node has another format.
      DamagedError: the node is damaged.
    """
    memory = Memory() if memory is None else memory
    cursor = _Cursor(content, NODE, memory)
    if cursor.take(1)[0] != height:
        raise DamagedError("a B-tree node does not have the height that its parent says")
    files = cursor.files(base)
    count = cursor.count()
    if count == 0:
        raise DamagedError("a B-tree node is empty")
    prefixes, lengths = [0, *cursor.varints(count - 1)], cursor.varints(count)
    if height:
        common = cursor.varints(count)
        keys = cursor.keys(prefixes, lengths, bounds.KEY_BYTES)
        _check_order(keys)
        columns = zip(*(cursor.varints(count) for _ in range(6)), strict=True)
        children = []
        for key, cut, (number, offset, length, *statistics) in zip(keys, common, columns, strict=True):
            folder, name = files.split(number)
            if cut > len(key):
                raise DamagedError("a B-tree node says that its keys share more bytes than they have")
            children.append(Node(key, cut, Place(folder + name, offset, length), folder, *statistics))
        cursor.end()
        return children
    keys = cursor.keys(prefixes, lengths, bounds.KEY_BYTES)
    _check_order(keys)
    sizes, kinds = cursor.varints(count), cursor.varints(count)
    if not set(kinds) <= {0, 1}:
        raise UnknownFormatError("a value of an unknown kind")
    outside = sum(kinds)
    values: list[bytes | Place]
    if outside:
        numbers, positions = iter(cursor.varints(outside)), cursor.varints(outside)
        if max(positions) >= 1 << 62:
            raise DamagedError("a value lies beyond the end of any file")
        offsets = iter(positions)
        inline = iter(cursor.cut([size for size, kind in zip(sizes, kinds, strict=True) if not kind]))
        values = [
            Place(files.path(next(numbers)), next(offsets), size) if kind else next(inline)
            for size, kind in zip(sizes, kinds, strict=True)
        ]
    else:
        values = [*cursor.cut(sizes)]
    cursor.end()
    return Values(keys, values)


def _check_order(keys: Sequence[bytes]) -> None:
    if not all(map(operator.lt, keys, keys[1:])):
        raise DamagedError("the keys of a B-tree node do not ascend")


class _Files:
    """The table of files of a node. A name is checked when a value or a node refers to it."""

    def __init__(self, base: str, paths: Sequence[bytes], cuts: Sequence[int]) -> None:
        self._base, self._paths, self._cuts = base, paths, cuts
        self._known: dict[int, str] = {}

    def path(self, number: int) -> str:
        """Returns the path of a file. Raises DamagedError if the table does not have the number, or the path leads out of the database."""
        found = self._known.get(number)
        return "".join(self.split(number)) if found is None else found

    def split(self, number: int) -> tuple[str, str]:
        """Returns the path of a file in two parts: the directory of its database, and the rest. Raises DamagedError as `path` does."""
        if number >= len(self._paths):
            raise DamagedError("it names a file that its table does not have")
        path, cut = self._paths[number], self._cuts[number]
        base, name = self._base + os.fsdecode(path[:cut]), os.fsdecode(path[cut:])
        self._known[number] = checked_name(base + name)
        return base, name


class _Cursor:
    """Reads the body of a manifest or node from its beginning. Checks its length and checksum first."""

    def __init__(self, content: bytes, magic: int, memory: Memory) -> None:
        if len(content) < HEADER_BYTES + checksum.BYTES or struct.unpack_from(">I", content)[0] != magic:
            raise DamagedError("this is not a part of an OCDBT database")
        if (expected := struct.unpack_from("<Q", content, 4)[0]) != len(content):
            raise DamagedError(f"it is {len(content)} bytes long, expected {expected}")
        self._data = content[: -checksum.BYTES]
        if not checksum.is_sealed(self._data, content[-checksum.BYTES :]):
            raise DamagedError("its checksum does not match")
        if content[12] != 0 or content[13] > 1:
            raise UnknownFormatError("a later version of the format, or an unknown compression")
        self._at = HEADER_BYTES
        # A node has at most one entry for each of its bytes; a compressed one may have more.
        self._most = len(content)
        if content[13]:
            self._most = bounds.NODE_ENTRIES + bounds.NODE_ENTRIES_RATIO * len(content)
            limit = bounds.EXPANDED_NODE_BYTES + bounds.EXPANDED_NODE_RATIO * len(content)
            self._data = zstd.decompress(self._data[HEADER_BYTES:], limit)
            self._at = 0
        self._memory = memory
        memory.left += min(
            bounds.EXPANDED_KEY_RATIO * len(self._data), bounds.EXPANDED_KEY_COMPRESSED_RATIO * len(content)
        )
        self._array = np.frombuffer(self._data, np.uint8)

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise DamagedError("it is too short")
        return self._data[start : self._at]

    def cut(self, lengths: Sequence[int]) -> list[bytes]:
        """Returns consecutive parts of these lengths."""
        data = self._data
        ends = list(itertools.accumulate(lengths, initial=self._at))
        self._at = ends[-1]
        if self._at > len(data):
            raise DamagedError("it is too short")
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    def end(self) -> None:
        if self._at != len(self._data):
            raise DamagedError("it is too long")

    def varint(self) -> int:
        return self.varints(1)[0]

    def count(self) -> int:
        """Reads the number of items that follow. Each item takes at least one byte."""
        number = self.varint()
        if number > min(self._most, len(self._data) - self._at):
            raise DamagedError("it is too short for the number of entries that it claims")
        return number

    def varints(self, count: int) -> list[int]:
        head = self._data[self._at : self._at + count]
        # If all numbers are below 128, each takes one byte.
        if len(head) == count and head.isascii():
            self._at += count
            return list(head)
        window = self._array[self._at : self._at + _VARINT_BYTES * count]
        ends = np.flatnonzero(window < 128)[:count]
        if len(ends) < count:
            raise DamagedError("it is too short")
        starts = np.concatenate((np.zeros(1, ends.dtype), ends[:-1] + 1))
        lengths = ends - starts + 1
        if lengths.max() > _VARINT_BYTES:
            raise DamagedError("a number is too long")
        values = np.zeros(count, np.uint64)
        for position in range(int(lengths.max())):
            has = lengths > position
            values[has] |= (window[starts[has] + position].astype(np.uint64) & np.uint64(127)) << np.uint64(
                7 * position
            )
        self._at += int(ends[-1]) + 1
        numbers: list[int] = values.tolist()
        return numbers

    def files(self, base: str) -> _Files:
        """Reads the table of files."""
        count = self.count()
        if count == 0:
            return _Files(base, (), ())
        prefixes = [0, *self.varints(count - 1)]
        suffixes, bases = self.varints(count), self.varints(count)
        return _Files(base, self.keys(prefixes, suffixes, bounds.PATH_BYTES), bases)

    def keys(self, prefixes: Sequence[int], lengths: Sequence[int], limit: int) -> list[bytes]:
        """Reads keys.

        Args:
          prefixes: number of bytes that each key shares with the key before.
          lengths: number of bytes that follow in each key.
          limit: the largest length of a key in bytes.
        """
        self._memory.take(sum(prefixes) + sum(lengths))
        sizes = list(map(operator.add, prefixes, lengths))
        if max(sizes) > limit:
            raise DamagedError("a key is too long")
        suffixes = self.cut(lengths)
        if any(map(operator.gt, prefixes, [0, *sizes[:-1]])):
            raise DamagedError("a key shares more bytes with the key before than that key has")
        key = b""
        return [key := key[:cut] + suffix for cut, suffix in zip(prefixes, suffixes, strict=True)]
