"""TensorFlow's index files, taken apart and put together again, with right checksums whatever they say."""

import struct
from typing import Any

import google_crc32c

MAGIC = bytes.fromhex("57fb808b247547db")


def varint(value: int) -> bytes:
    """Returns an unsigned integer as TensorFlow writes it."""
    out = bytearray()
    while True:
        out.append(value & 127 | (128 if value > 127 else 0))
        value >>= 7
        if not value:
            return bytes(out)


def _read(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def decode(content: bytes) -> list[tuple[bytes, bytes]]:
    """Returns the keys and values of a sound index."""
    at = len(content) - 48
    for _ in range(2):
        _, at = _read(content, at)
    offset, at = _read(content, at)
    size, _ = _read(content, at)
    entries = []
    for _, handle in _block(content, offset, size):
        start, at = _read(handle, 0)
        length, _ = _read(handle, at)
        entries += _block(content, start, length)
    return entries


def _block(content: bytes, offset: int, size: int) -> list[tuple[bytes, bytes]]:
    block = content[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at, key, found = 0, b"", []
    while at < end:
        shared, at = _read(block, at)
        own, at = _read(block, at)
        length, at = _read(block, at)
        key = key[:shared] + block[at : at + own]
        at += own
        found.append((key, block[at : at + length]))
        at += length
    return found


def masked(content: bytes) -> int:
    """Returns the checksum that TensorFlow stores for some bytes."""
    return mask(google_crc32c.value(content))


def mask(crc: int) -> int:
    """Returns the number that is stored for a checksum."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def encode(entries: list[tuple[bytes, bytes]], *, kind: int = 0, prefixes: bool = False, blocks: int = 1) -> bytes:
    """Returns an index.

    Args:
      entries: keys and values.
      kind: the byte for the compression. Nothing is compressed.
      prefixes: whether each key claims to begin like the whole key before it.
      blocks: how often the only data block is listed.
    """
    content = bytearray()

    def put(block: bytes) -> bytes:
        offset = len(content)
        sealed = block + bytes([kind])
        content.extend(sealed + struct.pack("<I", masked(sealed)))
        return varint(offset) + varint(len(block))

    handle = put(_encoded(entries, prefixes))
    meta = put(_encoded([], False))
    index = put(_encoded([(bytes([255, number % 256]), handle) for number in range(blocks)], False))
    footer = meta + index
    return bytes(content) + footer + bytes(40 - len(footer)) + MAGIC


def _encoded(entries: list[tuple[bytes, bytes]], prefixes: bool) -> bytes:
    block, last = b"", b""
    for key, value in entries:
        shared = len(last) if prefixes else 0
        block += varint(shared) + varint(len(key)) + varint(len(value)) + key + value
        last = last[:shared] + key
    return block + struct.pack("<II", 0, 1)


Field = tuple[int, int, Any]


def fields(content: bytes) -> list[Field]:
    """Returns the fields of a message: number, wire type, value. Raises IndexError if it is not a message."""
    at, found = 0, []
    while at < len(content):
        tag, at = _read(content, at)
        kind: int = tag & 7
        value: Any
        if kind == 0:
            value, at = _read(content, at)
        elif kind == 5:
            value, at = struct.unpack("<I", content[at : at + 4])[0], at + 4
        elif kind == 2:
            length, at = _read(content, at)
            value, at = content[at : at + length], at + length
        else:
            raise IndexError(kind)
        found.append((tag >> 3, kind, value))
    return found


def message(found: list[Field]) -> bytes:
    """Returns a message."""
    out = bytearray()
    for number, kind, value in found:
        out += varint(number << 3 | kind)
        if kind == 2:
            out += varint(len(value)) + value
        else:
            out += varint(value) if kind == 0 else struct.pack("<I", value & 0xFFFFFFFF)
    return bytes(out)


def node(
    children: list[tuple[int, str]], keys: list[bytes] | None = None, slots: list[tuple[int, str, int]] | None = None
) -> bytes:
    """Returns an object of an object graph."""
    found: list[Field] = [(1, 2, message([(1, 0, child), (2, 2, name.encode())])) for child, name in children]
    found += [(2, 2, message([(1, 2, b"VARIABLE_VALUE"), (3, 2, key)])) for key in keys or []]
    found += [(3, 2, message([(1, 0, one), (2, 2, name.encode()), (3, 0, other)])) for one, name, other in slots or []]
    return message(found)
