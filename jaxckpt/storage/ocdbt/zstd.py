"""Decompresses zstd through TensorStore, as an array in memory, because the oldest supported Python has no zstd."""

import json
import re
from typing import Any

from jaxckpt._lib.documents import DamagedError

_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK = 128 << 10
# TensorStore's error if the decompressed content is shorter than the array.
_MISSING = re.compile(r"Not enough data: expected at least (\d+) or (\d+) more")


class UnknownSizeError(ValueError):
    """TensorStore does not say how large the content is."""


def decompress(frame: bytes, limit: int) -> bytes:
    """Returns the content of a single frame.

    Args:
      frame: the compressed frame.
      limit: the largest size of the content in bytes. It is compared with `largest_content`, which may be up to 128 KiB too large.

    Raises:
      DamagedError: this is not a zstd frame, it is damaged, or its content may be larger than `limit`.
      UnknownSizeError: TensorStore does not say how large the content is.
    """
    size = largest_content(frame)
    if size > limit:
        raise DamagedError(
            f"its {len(frame)} compressed bytes decompress to up to {size}, more than the limit of {limit}"
        )
    if size == 0:
        return b""
    try:
        return _read(frame, size)
    except ValueError as error:
        found = _MISSING.search(str(error))
        if found is None:
            if "Not enough data" in str(error):
                raise UnknownSizeError(str(error)) from error
            raise DamagedError("its compressed content is not readable") from error
    size -= int(found[2])
    if size <= 0:
        return b""
    try:
        return _read(frame, size)
    except ValueError as error:
        raise DamagedError("its compressed content is not readable") from error


def largest_content(frame: bytes) -> int:
    """Returns an upper bound for the size of a frame's content in bytes, from its headers. Raises DamagedError if it is not a frame."""
    if frame[:4] != _MAGIC or len(frame) < 6:
        raise DamagedError("its compressed content is not that of zstd")
    flags = frame[4]
    single, has_checksum = flags >> 5 & 1, flags >> 2 & 1
    size_bytes = (1 if single else 0, 2, 4, 8)[flags >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if size_bytes:
        size = int.from_bytes(frame[at : at + size_bytes], "little")
        return size + 256 if size_bytes == 2 else size
    total = 0
    while at + 3 <= len(frame) - 4 * has_checksum:
        header = int.from_bytes(frame[at : at + 3], "little")
        kind, length = header >> 1 & 3, header >> 3
        # Kinds 0, 1 and 2 are raw, repeated and compressed blocks; kind 3 is reserved.
        if kind == 3:
            break
        total += _BLOCK if kind == 2 else length
        at += 3 + (1 if kind == 1 else length)
        if header & 1:
            return total
    raise DamagedError("its compressed content ends early")


def _read(frame: bytes, size: int) -> bytes:
    import tensorstore as ts

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
    context: Any = ts.Context({"memory_key_value_store": {}, "cache_pool": {"total_bytes_limit": 0}})
    base = {"driver": "memory"}
    store = ts.KvStore.open(base, context=context).result()
    store.write("zarr.json", json.dumps(metadata).encode()).result()
    store.write("c/0", frame).result()
    spec = {"driver": "zarr3", "kvstore": base, "fill_missing_data_reads": False}
    content: bytes = ts.open(spec, open=True, read=True, context=context).result().read().result().tobytes()
    return content
