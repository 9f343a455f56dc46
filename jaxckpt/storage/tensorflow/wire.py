"""Parses messages of Protocol Buffers without their schema: numbers of fields, and values. Pure.

The fields of TensorFlow's messages that are read here are integers, and bytes (texts and inner messages).
"""

from collections.abc import Iterator

from jaxckpt._lib.documents import DamagedError

_VARINT_BYTES = 10


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Returns an unsigned integer of up to 64 bits, and the position after it.

    Args:
      content: the bytes.
      at: position of its first byte.

    Raises:
      DamagedError: the bytes are not such an integer.
    """
    value = shift = 0
    for position in range(at, min(at + _VARINT_BYTES, len(content))):
        byte = content[position]
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
        shift += 7
    raise DamagedError("a number in it does not end")


def fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field of a message, in their order.

    Args:
      content: the message.

    Raises:
      DamagedError: the bytes are not a message.
    """
    at, size = 0, len(content)
    while at < size:
        tag = content[at]
        if tag < 128:
            at += 1
        else:
            tag, at = varint(content, at)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            # Nearly all numbers have one byte.
            if at < size and content[at] < 128:
                value, at = content[at], at + 1
            else:
                value, at = varint(content, at)
        elif kind in (1, 5):
            end = at + (8 if kind == 1 else 4)
            value, at = int.from_bytes(_cut(content, at, end), "little"), end
        elif kind == 2:
            length, at = varint(content, at)
            value, at = _cut(content, at, at + length), at + length
        else:
            raise DamagedError(f"a field in it has the unknown type {kind}")
        yield tag >> 3, value


def as_int(value: int | bytes) -> int:
    """Returns the value of a field that holds a signed integer of 64 bits. Raises DamagedError."""
    if isinstance(value, bytes):
        raise DamagedError("a field in it holds bytes instead of a number")
    return value - (1 << 64) if value >> 63 else value


def as_bytes(value: int | bytes) -> bytes:
    """Returns the value of a field that holds bytes or a message. Raises DamagedError."""
    if isinstance(value, int):
        raise DamagedError("a field in it holds a number instead of bytes")
    return value


def as_text(value: int | bytes) -> str:
    """Returns the value of a field that holds text. Raises DamagedError."""
    return text(as_bytes(value))


def text(content: bytes) -> str:
    """Returns text in UTF-8. Raises DamagedError."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise DamagedError("a name in it is not text") from None


def _cut(content: bytes, start: int, end: int) -> bytes:
    if end > len(content):
        raise DamagedError("a field in it reaches behind its end")
    return content[start:end]
