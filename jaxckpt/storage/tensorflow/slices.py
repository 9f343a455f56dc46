"""The slices in which a partitioned tensor is stored: their places in the tensor, and the keys under which they are. Pure."""

import math
from collections.abc import Sequence

from jaxckpt._lib.boxes import Box
from jaxckpt._lib.documents import DamagedError

# An extent that reaches over the whole axis, as TensorFlow writes it into a key.
_WHOLE = -1
# Slices whose places are compared in pairs, at most.
_OVERLAPPING = 4096


def key_of(name: bytes, spans: Sequence[tuple[int, int | None]]) -> bytes:
    """Returns the key of a slice: a zero, the tensor's name, the number of axes, and start and extent along each of them.

    The numbers are encoded so that keys sort as the numbers do (TensorFlow's "ordered code").

    Args:
      name: key of the whole tensor.
      spans: start and extent along each axis; the extent is None if the slice reaches over the whole axis.
    """
    escaped = name.replace(b"\xff", b"\xff\1").replace(b"\0", b"\0\xff").replace(b"\xff\1", b"\xff\0")
    parts = [_unsigned(0), escaped + b"\0\1", _unsigned(len(spans))]
    for start, extent in spans:
        parts += [_signed(start), _signed(_WHOLE if extent is None else extent)]
    return b"".join(parts)


def _unsigned(value: int) -> bytes:
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _signed(value: int) -> bytes:
    # As many bytes as hold 7 bits each, without the bit for the sign.
    length = ((value if value >= 0 else ~value).bit_length()) // 7 + 1
    header = ((1 << length) - 1) << (16 - length) if length > 1 else 0x8000
    size = max(length, 2)
    code = bytearray(value.to_bytes(10, "big", signed=True)[10 - size :])
    if length == 1:
        return bytes([code[1] ^ 0x80])
    code[0] ^= header >> 8
    code[1] ^= header & 0xFF
    return bytes(code)


def box_of(spans: Sequence[tuple[int, int | None]], shape: Sequence[int]) -> Box:
    """Returns the box of a slice. Raises DamagedError if it lies outside of the tensor.

    Args:
      spans: start and extent along each axis; the extent is None if the slice reaches over the whole axis.
      shape: shape of the whole tensor.
    """
    if len(spans) != len(shape):
        raise DamagedError(f"a slice has {len(spans)} axes, but the tensor has {len(shape)}")
    start, extents = [], []
    for (first, extent), whole in zip(spans, shape, strict=True):
        length = whole if extent is None else extent
        if not 0 <= first <= whole or not 0 <= length <= whole - first or (extent is None and first):
            raise DamagedError(f"a slice lies outside of the shape {tuple(shape)}")
        start.append(first)
        extents.append(length)
    return Box(tuple(start), tuple(extents))


def check_cover(boxes: Sequence[Box], shape: Sequence[int]) -> None:
    """Raises DamagedError unless boxes contain every element of a shape exactly once.

    Args:
      boxes: the boxes, inside of the shape.
      shape: the shape.
    """
    boxes = [box for box in boxes if math.prod(box.shape)]
    if sum(math.prod(box.shape) for box in boxes) != math.prod(shape):
        raise DamagedError(f"its slices are not exactly the shape {tuple(shape)}")
    if not boxes or not shape:
        if len(boxes) > 1:
            raise DamagedError("its slices overlap")
        return
    # Along the axis with the most different starts, few boxes are open at once.
    axis = max(range(len(shape)), key=lambda each: len({box.start[each] for box in boxes}))
    boxes.sort(key=lambda box: box.start[axis])
    opened: list[Box] = []
    for box in boxes:
        opened = [each for each in opened if each.start[axis] + each.shape[axis] > box.start[axis]]
        if len(opened) > _OVERLAPPING:
            raise DamagedError(f"more than {_OVERLAPPING} slices lie side by side")
        if any(_overlap(each, box) for each in opened):
            raise DamagedError("its slices overlap")
        opened.append(box)


def _overlap(one: Box, other: Box) -> bool:
    return all(
        a < d + e and d < a + b for a, b, d, e in zip(one.start, one.shape, other.start, other.shape, strict=True)
    )
