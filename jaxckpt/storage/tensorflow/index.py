"""Parses the index of a checkpoint: what it says about each tensor. Pure.

The messages are TensorFlow's `BundleHeaderProto` (under the empty key), `BundleEntryProto`, `TensorShapeProto` and `TensorSliceProto`.
"""

import functools
import math
from typing import NamedTuple

from jaxckpt._lib import bounds
from jaxckpt._lib.boxes import Box
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.tensorflow import slices, table, types
from jaxckpt.storage.tensorflow.wire import as_bytes, as_int, fields, text

# TensorFlow writes version 1. A reader must refuse files whose `min_consumer` is larger.
_VERSION = 1
_SHARDS = 99_999


class Place(NamedTuple):
    """Where the bytes of a tensor, or of one slice of it, are.

    Attributes:
      shard: number of the data file.
      offset: first byte in it.
      size: number of bytes.
      crc: masked crc32c of the bytes.
    """

    shard: int
    offset: int
    size: int
    crc: int


class Entry(NamedTuple):
    """A tensor.

    Attributes:
      key: TensorFlow's name of it.
      type: TensorFlow's number of its type.
      shape: its shape.
      parts: the boxes in which it is stored, and their places. A tensor that is stored as a whole has one.
    """

    key: str
    type: int
    shape: tuple[int, ...]
    parts: tuple[tuple[Box, Place], ...]

    @property
    def size(self) -> int:
        """Number of stored bytes."""
        return sum(place.size for _, place in self.parts)


class Index(NamedTuple):
    """The index of a checkpoint.

    Attributes:
      shards: number of data files.
      is_big_endian: whether numbers are stored with their first byte first.
      entries: all tensors, sorted by key.
    """

    shards: int
    is_big_endian: bool
    entries: tuple[Entry, ...]


class _Raw(NamedTuple):
    type: int
    shape: tuple[int, ...]
    place: Place
    slices: tuple[tuple[tuple[int, int | None], ...], ...]


def parse(content: bytes) -> Index:
    """Parses the content of an index.

    Args:
      content: content of the file.

    Raises:
      DamagedError: TensorFlow does not write such a content.
    """
    found: dict[bytes, _Raw] = {}
    header: bytes | None = None
    for key, value in table.entries(content):
        if not key:
            header = value
        else:
            found[key] = _entry(value)
    if header is None:
        raise DamagedError("it has no header")
    shards, is_big_endian = _header(header)
    # The keys of slices begin with a zero.
    wholes = [(key, raw) for key, raw in found.items() if key[:1] != b"\0"]
    tensors = tuple(_tensor(key, raw, found) for key, raw in wholes)
    for tensor in tensors:
        if any(place.shard >= shards for _, place in tensor.parts):
            raise DamagedError(f"{tensor.key!r} is in a data file that does not exist")
    return Index(shards, is_big_endian, tensors)


def _header(content: bytes) -> tuple[int, bool]:
    """Returns the number of data files, and whether they are big-endian."""
    shards = endianness = least = 0
    for number, value in fields(content):
        if number == 1:
            shards = as_int(value)
        elif number == 2:
            endianness = as_int(value)
        elif number == 3:
            least = max((as_int(each) for field, each in fields(as_bytes(value)) if field == 2), default=0)
    if not 0 <= shards <= _SHARDS:
        raise DamagedError(f"it claims {shards} data files")
    if endianness not in (0, 1):
        raise DamagedError("its byte order is unknown")
    if least > _VERSION:
        raise DamagedError(f"it needs a reader of version {least} of the format; this one knows version {_VERSION}")
    return shards, endianness == 1


def _entry(content: bytes) -> _Raw:
    kind = shard = offset = size = crc = 0
    shape: tuple[int, ...] = ()
    parts = []
    for number, value in fields(content):
        if number == 2:
            shape = _shape(as_bytes(value))
        elif number == 7:
            parts.append(_slice(as_bytes(value)))
        elif number in (1, 3, 4, 5, 6):
            found = as_int(value)
            if found < 0:
                raise DamagedError("a number in it is negative")
            kind = found if number == 1 else kind
            shard = found if number == 3 else shard
            offset = found if number == 4 else offset
            size = found if number == 5 else size
            crc = found if number == 6 else crc
    if not kind:
        raise DamagedError("a tensor has no type")
    return _Raw(kind, shape, Place(shard, offset, size, crc), tuple(parts))


@functools.lru_cache(maxsize=4096)
def _shape(content: bytes) -> tuple[int, ...]:
    extents = []
    for number, value in fields(content):
        if number == 2:
            extents.append(sum(as_int(each) for field, each in fields(as_bytes(value)) if field == 1))
        elif number == 3 and value:
            raise DamagedError("a tensor has an unknown number of axes")
    if len(extents) > bounds.AXES:
        raise DamagedError(f"a tensor has {len(extents)} axes, more than {bounds.AXES}")
    if min(extents, default=0) < 0 or math.prod(max(1, extent) for extent in extents) > bounds.ARRAY_BYTES // 16:
        raise DamagedError("the shape of a tensor is impossible")
    return tuple(extents)


# Each slice is listed with its tensor and stored under a key of its own, and tensors are often divided in the same way.
@functools.lru_cache(maxsize=4096)
def _slice(content: bytes) -> tuple[tuple[int, int | None], ...]:
    spans: list[tuple[int, int | None]] = []
    for number, value in fields(content):
        if number == 1:
            inner = {field: as_int(each) for field, each in fields(as_bytes(value))}
            spans.append((inner.get(1, 0), inner.get(2)))
    if len(spans) > bounds.AXES or any(start < 0 or (extent or 0) < 0 for start, extent in spans):
        raise DamagedError("a slice is impossible")
    return tuple(spans)


def _tensor(key: bytes, raw: _Raw, found: dict[bytes, _Raw]) -> Entry:
    name = text(key)
    if not raw.slices:
        whole = Box((0,) * len(raw.shape), raw.shape)
        parts: tuple[tuple[Box, Place], ...] = ((whole, raw.place),)
    else:
        listed = []
        for spans in raw.slices:
            stored = found.get(slices.key_of(key, spans))
            if stored is None:
                raise DamagedError(f"a slice of {name!r} is missing")
            box = slices.box_of(spans, raw.shape)
            if stored.shape != box.shape or stored.type != raw.type:
                raise DamagedError(f"a slice of {name!r} has another shape or type than its tensor")
            listed.append((box, stored.place))
        slices.check_cover([box for box, _ in listed], raw.shape)
        parts = tuple(listed)
    dtype = types.dtype_of(raw.type)
    for box, place in parts:
        number = math.prod(box.shape)
        if dtype is not None and place.size != number * dtype.itemsize:
            raise DamagedError(f"{name!r} has shape {box.shape} and type {dtype}, but {place.size} bytes")
        if raw.type == types.STRING and place.size < number:
            raise DamagedError(f"{name!r} claims {number} strings in {place.size} bytes")
    return Entry(name, raw.type, raw.shape, parts)
