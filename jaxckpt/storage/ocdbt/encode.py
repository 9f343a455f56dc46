"""Encodes OCDBT's manifest and B-tree nodes in the plainest format: uncompressed, one version, a single manifest. Pure."""

import itertools
import os
import re
import secrets
import struct
import time
from collections.abc import Sequence

from jaxckpt._lib import checksum
from jaxckpt.storage.ocdbt.model import HEADER_BYTES, MANIFEST, MISSING, NODE, Entry, Node, Place, Root

# Values up to this many bytes are stored in the B-tree.
INLINE_BYTES = 1024
# This is TensorStore's default.
_MAX_DECODED_NODE_BYTES = 8 << 20
_VERSION_TREE_ARITY_LOG2 = 4
_BASE = re.compile(r"(.*/)?(?=d/[^/]*$)", re.DOTALL)


def encode_leaf(entries: Sequence[Entry], common: int) -> bytes:
    """Encodes a leaf node.

    Args:
      entries: the entries of the node, sorted by key.
      common: number of bytes at the beginning of every key that are left out.
    """
    prefixes, suffixes = _key_columns([key[common:] for key, _ in entries])
    values = [value for _, value in entries]
    kinds = [isinstance(value, Place) for value in values]
    places = [value for value in values if isinstance(value, Place)]
    table, number = _file_table([place.file for place in places])
    sizes = [value.length if isinstance(value, Place) else len(value) for value in values]
    return _framed(
        NODE,
        b"".join(
            (
                b"\0",
                table,
                _varint(len(entries)),
                _varints(prefixes),
                _varints(list(map(len, suffixes))),
                *suffixes,
                _varints(sizes),
                bytes(kinds),
                _varints([number[place.file] for place in places]),
                _varints([place.offset for place in places]),
                *[value for value in values if isinstance(value, bytes)],
            )
        ),
    )


def encode_interior(nodes: Sequence[Node], height: int) -> bytes:
    """Encodes an interior node.

    Args:
      nodes: references to its children, in the order of their keys.
      height: number of levels of nodes below it.
    """
    prefixes, suffixes = _key_columns([node.first for node in nodes])
    table, number = _file_table([node.place.file for node in nodes])
    return _framed(
        NODE,
        b"".join(
            (
                bytes((height,)),
                table,
                _varint(len(nodes)),
                _varints(prefixes),
                _varints([len(suffix) for suffix in suffixes]),
                _varints([node.common for node in nodes]),
                *suffixes,
                _varints([number[node.place.file] for node in nodes]),
                _varints([node.place.offset for node in nodes]),
                _varints([node.place.length for node in nodes]),
                _varints([node.keys for node in nodes]),
                _varints([node.tree_bytes for node in nodes]),
                _varints([node.value_bytes for node in nodes]),
            )
        ),
    )


def encode_manifest(root: Root) -> bytes:
    """Encodes the manifest of a database with one version.

    Args:
      root: root of the tree.
    """
    node = root.node if root.node is not None else Node(b"", 0, Place("", MISSING, MISSING))
    return _framed(
        MANIFEST,
        b"".join(
            (
                secrets.token_bytes(16),
                # There is a single manifest file.
                _varint(0),
                _varint(INLINE_BYTES),
                _varint(_MAX_DECODED_NODE_BYTES),
                bytes((_VERSION_TREE_ARITY_LOG2,)),
                # Nodes are not compressed.
                _varint(0),
                _file_table([node.place.file])[0],
                # There is one version, and it has generation number 1.
                _varint(1),
                _varint(1),
                bytes((root.height,)),
                # The root is in the first file of the table.
                _varint(0),
                _varint(node.place.offset),
                _varint(node.place.length),
                _varint(node.keys),
                _varint(node.tree_bytes),
                _varint(node.value_bytes),
                struct.pack("<Q", time.time_ns()),
                # No older versions are stored elsewhere.
                _varint(0),
            )
        ),
    )


def base_of(file: str) -> str:
    """Returns the directory of the database that a data file was written for: the part of its path before ``d/``."""
    found = _BASE.match(file)
    return "" if found is None else found[1] or ""


def common_prefix(one: bytes, other: bytes) -> int:
    """Returns the length in bytes of the common prefix of two keys."""
    length = min(len(one), len(other))
    # As large numbers, whose highest bits are those of the first bytes.
    differing = int.from_bytes(one[:length]) ^ int.from_bytes(other[:length])
    return length - (differing.bit_length() + 7) // 8


def _framed(magic: int, body: bytes) -> bytes:
    length = HEADER_BYTES + len(body) + checksum.BYTES
    # The two zero bytes: version 0 of the format, and no compression.
    return checksum.sealed(struct.pack(">I", magic) + struct.pack("<Q", length) + b"\0\0" + body)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varints(values: Sequence[int]) -> bytes:
    if not values or max(values) < 128:
        return bytes(values)
    # Thousands of values have few sizes.
    encoded = {value: _varint(value) for value in set(values)}
    return b"".join(map(encoded.__getitem__, values))


def _file_table(paths: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    """Encodes the table of data files. Returns it, and the number of each file in it."""
    files = sorted(set(paths))
    encoded = [os.fsencode(path) for path in files]
    prefixes, suffixes = _key_columns(encoded)
    bases = [len(os.fsencode(base_of(path))) for path in files]
    table = (
        _varint(len(files)),
        _varints(prefixes),
        _varints([len(suffix) for suffix in suffixes]),
        _varints(bases),
        *suffixes,
    )
    return b"".join(table), {path: number for number, path in enumerate(files)}


def _key_columns(keys: Sequence[bytes]) -> tuple[list[int], list[bytes]]:
    """Returns how many bytes each key (except the first) shares with the key before, and the rest of every key."""
    cuts = [common_prefix(before, key) for before, key in itertools.pairwise(keys)]
    return cuts, [key[cut:] for key, cut in zip(keys, [0, *cuts], strict=False)]
