"""Decodes OCDBT's manifest and B-tree nodes, as TensorStore's documentation of the `ocdbt` driver defines them. Pure.

Only the plain form is known here: a single manifest file, no compression. `UnknownFormatError` says that TensorStore has to be asked,
`DamagedError` that the bytes are not what was written.
"""

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MANIFEST, NODE = 0x0CDB3A2A, 0x0CDB20DE
HEADER_BYTES, CHECKSUM_BYTES = 14, 4
MISSING = (1 << 64) - 1  # Offset and length of the root of an empty tree.
_VARINT_BYTES = 10


class UnknownFormatError(ValueError):
    """Not a form that is decoded here; TensorStore knows more."""


class DamagedError(ValueError):
    """Not what was written."""


class Place(NamedTuple):
    """Where bytes are: `length` bytes at `offset` in `file`, whose path is relative to the database."""

    file: str
    offset: int
    length: int


class Node(NamedTuple):
    """A reference to a B-tree node.

    Attributes:
      first: smallest key in its subtree, below the prefix that its parent adds.
      common: length of the prefix of `first` that the keys in the node leave out.
      place: where it is.
      base: directory that the paths in the node are relative to.
      keys, tree_bytes, value_bytes: statistics of the subtree: keys, bytes of its nodes, bytes of its values in data files.
    """

    first: bytes
    common: int
    place: Place
    base: str = ""
    keys: int = 0
    tree_bytes: int = 0
    value_bytes: int = 0


class Entry(NamedTuple):
    """A key and its value: the bytes, or where they are."""

    key: bytes
    value: bytes | Place


class Root(NamedTuple):
    """What a manifest says of the newest version: its root node (None: no keys) and the levels of interior nodes."""

    node: Node | None
    height: int


def decode_manifest(content: bytes) -> Root:
    """Returns the root of the newest version. Raises UnknownFormatError or DamagedError."""
    cursor = _Cursor(content, MANIFEST)
    cursor.take(16)  # identifier of the database
    if cursor.varint() != 0:
        raise UnknownFormatError("the manifest is not a single file")
    cursor.varints(2)
    cursor.take(1)
    if cursor.varint() != 0:
        raise UnknownFormatError("nodes are compressed")
    files = cursor.files("")
    count = cursor.varint()
    if count == 0:
        return Root(None, 0)
    cursor.varints(count)
    heights = cursor.take(count)
    numbers, offsets, lengths = cursor.varints(count), cursor.varints(count), cursor.varints(count)
    if offsets[-1] == lengths[-1] == MISSING:
        return Root(None, 0)
    base, name = cursor.file(files, numbers[-1])
    return Root(Node(b"", 0, Place(base + name, offsets[-1], lengths[-1]), base), heights[-1])


def decode_node(content: bytes, height: int, base: str) -> "list[Node] | list[Entry]":
    """Returns the children of an interior node, or the entries of a leaf.

    Args:
      content: of the node.
      height: above the leaves.
      base: `Node.base`.

    Raises:
      UnknownFormatError, DamagedError: see the module.
    """
    cursor = _Cursor(content, NODE)
    if cursor.take(1)[0] != height:
        raise DamagedError("a B-tree node is of another height")
    files = cursor.files(base)
    count = cursor.varint()
    if count == 0:
        raise DamagedError("a B-tree node is empty")
    prefixes, lengths = [0, *cursor.varints(count - 1)], cursor.varints(count)
    if height:
        common = cursor.varints(count)
        keys = cursor.keys(prefixes, lengths)
        columns = zip(*(cursor.varints(count) for _ in range(6)), strict=True)
        children = []
        for key, cut, (number, offset, length, *statistics) in zip(keys, common, columns, strict=True):
            folder, name = cursor.file(files, number)
            children.append(Node(key, cut, Place(folder + name, offset, length), folder, *statistics))
        cursor.end()
        return children
    keys = cursor.keys(prefixes, lengths)
    sizes, kinds = cursor.varints(count), cursor.varints(count)
    if not set(kinds) <= {0, 1}:
        raise UnknownFormatError("a value of an unknown kind")
    paths = ["".join(file) for file in files]
    numbers, offsets = iter(cursor.varints(sum(kinds))), iter(cursor.varints(sum(kinds)))
    entries = []
    for key, size, kind in zip(keys, sizes, kinds, strict=True):
        if kind:
            number = next(numbers)
            if number >= len(paths):
                raise DamagedError("a B-tree node names no such file")
            entries.append(Entry(key, Place(paths[number], next(offsets), size)))
        else:
            entries.append(Entry(key, cursor.take(size)))
    cursor.end()
    return entries


class _Cursor:
    """Reads the body of a manifest or node from its beginning, after its length and checksum were checked."""

    def __init__(self, content: bytes, magic: int) -> None:
        import google_crc32c

        if len(content) < HEADER_BYTES + CHECKSUM_BYTES or struct.unpack_from(">I", content)[0] != magic:
            raise DamagedError("this is no part of an OCDBT database")
        if struct.unpack_from("<Q", content, 4)[0] != len(content):
            raise DamagedError("its length is not the one that was written")
        self._data = content[:-CHECKSUM_BYTES]
        if google_crc32c.value(self._data) != int.from_bytes(content[-CHECKSUM_BYTES:], "little"):
            raise DamagedError("its checksum does not match")
        if content[12] != 0 or content[13] != 0:
            raise UnknownFormatError("a later version of the format, or compressed")
        self._at = HEADER_BYTES
        self._array = np.frombuffer(self._data, np.uint8)

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise DamagedError("it is too short")
        return self._data[start : self._at]

    def end(self) -> None:
        if self._at != len(self._data):
            raise DamagedError("it is too long")

    def varint(self) -> int:
        return self.varints(1)[0]

    def varints(self, count: int) -> list[int]:
        head = self._data[self._at : self._at + count]
        if len(head) == count and head.isascii():  # All below 128: a byte each.
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
        return [int(value) for value in values.tolist()]

    def files(self, base: str) -> list[tuple[str, str]]:
        """Returns the table of files, each as the directory of its database and the path below that."""
        count = self.varint()
        if count == 0:
            return []
        prefixes = [0, *self.varints(count - 1)]
        suffixes, bases = self.varints(count), self.varints(count)
        paths = self.keys(prefixes, suffixes)
        return [
            (base + os.fsdecode(path[:cut]), os.fsdecode(path[cut:])) for path, cut in zip(paths, bases, strict=True)
        ]

    def file(self, files: Sequence[tuple[str, str]], number: int) -> tuple[str, str]:
        if number >= len(files):
            raise DamagedError("it names a file that its table does not have")
        return files[number]

    def keys(self, prefixes: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        keys, key = [], b""
        for cut, length in zip(prefixes, lengths, strict=True):
            if cut > len(key):
                raise DamagedError("a key shares more with the one before than that has")
            key = key[:cut] + self.take(length)
            keys.append(key)
        return keys
