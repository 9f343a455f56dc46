"""OCDBT databases as structures that can be changed and encoded again with right checksums. Knows nothing of jaxckpt's own reader."""

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import tensorstore as ts

MANIFEST, NODE = 0x0CDB3A2A, 0x0CDB20DE
MISSING = (1 << 64) - 1


def varint(value: int) -> bytes:
    value %= 1 << 70
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def varints(values: list[int]) -> bytes:
    return b"".join(map(varint, values))


class Cursor:
    def __init__(self, framed: bytes) -> None:
        self.data = framed[14:-4]
        if framed[13]:
            self.data = expand(self.data)
        self.at = 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def varints(self, count: int) -> list[int]:
        return [self.varint() for _ in range(count)]


def framed(magic: int, body: bytes, *, compressed: bool) -> bytes:
    """A node or manifest around its body, with the right length and checksum."""
    if compressed:
        body = zstd_frame(body)
    content = struct.pack(">I", magic) + struct.pack("<Q", 14 + len(body) + 4) + bytes((0, compressed)) + body
    return content + google_crc32c.value(content).to_bytes(4, "little")


def zstd_frame(body: bytes) -> bytes:
    """A frame of zstd that does not compress; of one byte again and again it does."""
    frame = b"\x28\xb5\x2f\xfd\x00\x58"
    parts = [body[start : start + (128 << 10)] for start in range(0, len(body), 128 << 10)] or [b""]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part and part.count(part[:1]) == len(part):
            frame += (last | 1 << 1 | len(part) << 3).to_bytes(3, "little") + part[:1]
        else:
            frame += (last | len(part) << 3).to_bytes(3, "little") + part
    return frame


def expand(frame: bytes) -> bytes:
    """The content of a frame, as TensorStore sees it: the size is found by trial."""
    low, high = 0, 1 << 22
    while high - low > 1:
        size = (low + high) // 2
        metadata = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [size],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size]}},
            "chunk_key_encoding": {"name": "default"},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}],
        }
        context = ts.Context({"memory_key_value_store": {}})
        store = ts.KvStore.open({"driver": "memory"}, context=context).result()
        store.write("zarr.json", json.dumps(metadata).encode()).result()
        store.write("c/0", frame).result()
        spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "fill_missing_data_reads": False}
        try:
            return ts.open(spec, open=True, context=context).result().read().result().tobytes()
        except ValueError as error:
            if "Not enough data" in str(error):
                high = size
            else:
                low = size
    raise ValueError("this is not a frame")


@dataclass
class Tree:
    """A node of the B-tree, as the columns that it is written in.

    Attributes:
      height: above the leaves.
      files: path, and how much of it is the directory of its database.
      keys: without the prefix that the parent adds.
      columns: behind the keys: of an interior node common, file, offset, length, keys, tree bytes, value bytes; of a leaf length, kind,
        file, offset.
      values: of a leaf: the bytes of values that are in the node.
      children: of an interior node.
      claims: numbers that are written instead of the right ones: "files", "count", "height", and "prefix", "suffix" of all keys. With
        "raw", keys are what follows that prefix.
      compressed: as the node was.
    """

    height: int
    files: list[tuple[bytes, int]]
    keys: list[bytes]
    columns: list[list[int]]
    values: list[bytes] = field(default_factory=list)
    children: list["Tree | None"] = field(default_factory=list)
    claims: dict[str, int] = field(default_factory=dict)
    compressed: bool = False

    def encode(self) -> bytes:
        """The node with a right checksum, whatever is in it."""
        body = bytes((self.claims.get("height", self.height) % 256,))
        body += _table(self.files, self.claims)
        body += varint(self.claims.get("count", len(self.keys)))
        prefixes, suffixes = ([0] * (len(self.keys) - 1), self.keys) if "raw" in self.claims else _shared(self.keys)
        if "prefix" in self.claims:
            prefixes = [self.claims["prefix"]] * len(prefixes)
        lengths = [self.claims.get("suffix", len(suffix)) for suffix in suffixes]
        body += varints(prefixes) + varints(lengths)
        if self.height:
            body += varints(self.columns[0]) + b"".join(suffixes) + b"".join(map(varints, self.columns[1:]))
        else:
            body += b"".join(suffixes) + b"".join(map(varints, self.columns)) + b"".join(self.values)
        return framed(NODE, body, compressed=self.compressed)


def _shared(keys: list[bytes]) -> tuple[list[int], list[bytes]]:
    cuts, rests, before = [], [], b""
    for key in keys:
        cut, end = 0, min(len(key), len(before))
        while cut < end:
            middle = (cut + end + 1) // 2
            cut, end = (middle, end) if key[:middle] == before[:middle] else (cut, middle - 1)
        cuts.append(cut)
        rests.append(key[cut:])
        before = key
    return cuts[1:], rests


def _table(files: list[tuple[bytes, int]], claims: dict[str, int]) -> bytes:
    prefixes, suffixes = _shared([path for path, _ in files])
    count = varint(claims.get("files", len(files)))
    lengths = varints([len(suffix) for suffix in suffixes])
    return count + varints(prefixes) + lengths + varints([cut for _, cut in files]) + b"".join(suffixes)


def _read_table(cursor: Cursor) -> list[tuple[bytes, int]]:
    count = cursor.varint()
    if not count:
        return []
    prefixes, lengths, cuts = [0, *cursor.varints(count - 1)], cursor.varints(count), cursor.varints(count)
    return list(zip(_read_keys(cursor, prefixes, lengths), cuts, strict=True))


def _read_keys(cursor: Cursor, prefixes: list[int], lengths: list[int]) -> list[bytes]:
    keys, key = [], b""
    for cut, length in zip(prefixes, lengths, strict=True):
        key = key[:cut] + cursor.take(length)
        keys.append(key)
    return keys


@dataclass
class Database:
    """A manifest, and the newest tree.

    Attributes:
      root: None for a database without keys.
      head: what the manifest says before its table of files, but for the identifier.
      tail: what the manifest says behind the statistics of the root.
      statistics: keys, tree bytes, value bytes of the root.
    """

    root: Tree | None
    compressed: bool
    compression: bytes
    height: int
    statistics: list[int]
    claims: dict[str, int] = field(default_factory=dict)

    def encode(self, data: bytearray, name: bytes, at: int) -> bytes:
        """Appends all nodes to `data`, which begins at `at` of the data file `name`, and returns the manifest."""
        place = (MISSING, MISSING) if self.root is None else self._put(self.root, data, name, at)
        body = b"\x11" * 16 + varint(self.claims.get("kind", 0)) + varints([1024, 8 << 20]) + b"\x04"
        body += self.compression + _table([(name, self.claims.get("cut", 0))], self.claims)
        body += (
            varint(self.claims.get("versions", 1))
            + varint(1)
            + bytes((self.claims.get("root height", self.height) % 256,))
        )
        body += varint(self.claims.get("file", 0))
        body += varint(self.claims.get("offset", place[0])) + varint(self.claims.get("length", place[1]))
        body += varints(self.statistics) + struct.pack("<Q", 1) + varint(0)
        return framed(MANIFEST, body, compressed=self.compressed)

    def _put(self, node: Tree, data: bytearray, name: bytes, at: int) -> tuple[int, int]:
        for position, child in enumerate(node.children):
            if child is not None and position < min(map(len, node.columns)):
                number = self._number(node, name)
                offset, length = self._put(child, data, name, at)
                for column, value in zip((1, 2, 3), (number, offset, length), strict=True):
                    node.columns[column][position] = value
        if "self" in node.claims and node.height:
            # The length of the place of a node depends on itself.
            number = self._number(node, name)
            for _ in range(4):
                own = (number, at + len(data), len(node.encode()))
                for column, value in zip((1, 2, 3), own, strict=True):
                    node.columns[column][:] = [value] * len(node.columns[column])
        content = node.encode()
        place = (at + len(data), len(content))
        data += content
        return place

    @staticmethod
    def _number(node: Tree, name: bytes) -> int:
        paths = [path for path, _ in node.files]
        if name not in paths:
            node.files.append((name, 0))
        return [path for path, _ in node.files].index(name)


def decode(files: dict[str, bytes], folder: str) -> Database:
    """The newest version of the database in `folder`."""
    manifest = files[folder + "manifest.ocdbt"]
    cursor = Cursor(manifest)
    cursor.take(16)
    cursor.varints(3)
    cursor.take(1)
    method = cursor.varint()
    compression = varint(method) + cursor.take(4 * method)
    table = _read_table(cursor)
    count = cursor.varint()
    cursor.varints(count)
    heights = cursor.take(count)
    numbers, offsets, lengths = (cursor.varints(count)[-1] for _ in range(3))
    statistics = [cursor.varints(count)[-1] for _ in range(3)]
    root = None
    if offsets != MISSING:
        path, cut = table[numbers]
        root = _node(files, folder, path, path[:cut], offsets, lengths)
    return Database(root, bool(manifest[13]), compression, heights[-1], statistics)


def _node(files: dict[str, bytes], folder: str, path: bytes, base: bytes, offset: int, length: int) -> Tree:
    content = files[folder + path.decode()][offset : offset + length]
    cursor = Cursor(content)
    height = cursor.take(1)[0]
    table = [(base + name, len(base) + cut) for name, cut in _read_table(cursor)]
    count = cursor.varint()
    prefixes, lengths = [0, *cursor.varints(count - 1)], cursor.varints(count)
    compressed = bool(content[13])
    if height:
        common = cursor.varints(count)
        keys = _read_keys(cursor, prefixes, lengths)
        columns = [common, *(cursor.varints(count) for _ in range(6))]
        children: list[Tree | None] = []
        for number, start, size in zip(*columns[1:4], strict=True):
            name, cut = table[number]
            children.append(_node(files, folder, name, name[:cut], start, size))
        return Tree(height, table, keys, columns, [], children, {}, compressed)
    keys = _read_keys(cursor, prefixes, lengths)
    sizes, kinds = cursor.varints(count), cursor.varints(count)
    columns = [sizes, kinds, cursor.varints(sum(kinds)), cursor.varints(sum(kinds))]
    values = [cursor.take(size) for size, kind in zip(sizes, kinds, strict=True) if not kind]
    return Tree(height, table, keys, columns, values, [], {}, compressed)


def nodes(tree: Tree | None) -> list[Tree]:
    """All nodes of a tree."""
    found: list[Any] = [] if tree is None else [tree]
    for node in found:
        found.extend(child for child in node.children if child is not None)
    return found
