"""Parses and checks ``zarr.json`` and ``.zarray`` before TensorStore reads them: some contents make it end the process. Pure."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import DamagedError, as_dict, as_extents, as_int, as_list, as_text, parse_strictly
from jaxckpt.storage.arrays import encoding
from jaxckpt.storage.arrays.encoding import PLAIN, Encoding
from jaxckpt.storage.item.content import nbytes

# Types whose size numpy (with ml_dtypes) knows. TensorStore has others, such as "string".
_TYPE = re.compile(r"bool|u?int\d{1,2}|b?float\d{1,2}(_\w{1,16})?|complex\d{2,3}", re.ASCII)
_COMPRESSIONS = frozenset(("zstd", "gzip", "blosc"))
_CODECS = frozenset(("bytes", "transpose", "crc32c", "sharding_indexed")) | _COMPRESSIONS
_COMPRESSORS = frozenset(("zstd", "zlib", "gzip", "blosc", "bz2"))
_ZARR2_TYPE = re.compile(r"[<>|](?:b1|[iu][1248]|f[248]|c8|c16)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """The metadata of a stored array.

    Attributes:
      shape: shape of the array.
      dtype: dtype of the array.
      chunk_shape: shape of its chunks; None if only TensorStore can decode them. If the chunks are in shards, these are the chunks inside.
      grid: shape of what has a key of its own, in any format: a chunk or a shard. None if another process has opened the checkpoint.
      is_compressed: whether chunks may be smaller on disk than in memory.
      inner_chunks: number of chunks in each shard (of the codec `sharding_indexed`); 1 without it.
      encoding: how the chunks are stored, if `chunk_shape` is not None.
      only_key: key of the only chunk, relative to the array; None if there are several chunks, or if they are in shards.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_shape: tuple[int, ...] | None
    grid: tuple[int, ...] | None = None
    is_compressed: bool = False
    inner_chunks: int = 1
    encoding: Encoding = PLAIN
    only_key: str | None = None

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return nbytes(self.shape, self.dtype)


def parse_zarr3(content: bytes) -> ArrayInfo:
    """Parses a ``zarr.json``. Raises DamagedError if it is malformed or not supported."""
    document = _document(content)
    if document.get("zarr_format") != 3 or document.get("node_type") != "array":
        raise DamagedError("it is not of an array of zarr version 3")
    shape = as_extents(document.get("shape"), "shape")
    name = as_text(document.get("data_type"), "data_type")
    dtype = _numpy_dtype(name)
    grid = _configuration(document.get("chunk_grid"), "chunk_grid", ("regular",))[1]
    chunk = as_extents(grid.get("chunk_shape"), "chunk_shape", 1, len(shape))
    _configuration(document.get("chunk_key_encoding"), "chunk_key_encoding", ("default", "v2"))
    _check_sizes(shape, chunk, dtype)
    is_compressed, inner = _check_codecs(document.get("codecs"), chunk, 0)
    return _info(shape, dtype, chunk, is_compressed, inner, encoding.of_zarr3(document, dtype, chunk))


def _info(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    grid: tuple[int, ...],
    is_compressed: bool,
    inner: int,
    decodable: encoding.Decodable | None,
) -> ArrayInfo:
    if decodable is None:
        return ArrayInfo(shape, dtype, None, grid, is_compressed, inner)
    stored, chunk = decodable
    only = stored.keys.of((0,) * len(shape)) if chunk == shape and not stored.is_sharded else None
    return ArrayInfo(shape, dtype, chunk, grid, is_compressed, inner, stored, only)


def parse_zarr2(content: bytes) -> ArrayInfo:
    """Parses a ``.zarray``. Raises DamagedError if it is malformed or not supported."""
    document = _document(content)
    if document.get("zarr_format") != 2:
        raise DamagedError("it is not of an array of zarr version 2")
    shape = as_extents(document.get("shape"), "shape")
    chunk = as_extents(document.get("chunks"), "chunks", 1, len(shape))
    name = as_text(document.get("dtype"), "dtype")
    dtype = np.dtype(name).newbyteorder("=") if _ZARR2_TYPE.fullmatch(name) else _numpy_dtype(name)
    _check_sizes(shape, chunk, dtype)
    if document.get("filters") not in (None, []):
        raise DamagedError("it has filters, which are unknown")
    compressor = document.get("compressor")
    if compressor is not None and as_dict(compressor, "compressor").get("id") not in _COMPRESSORS:
        raise DamagedError("its compressor is unknown")
    return _info(shape, dtype, chunk, compressor is not None, 1, encoding.of_zarr2(document, dtype, chunk))


def _document(content: bytes) -> dict[str, Any]:
    if len(content) > bounds.ARRAY_METADATA_BYTES:
        raise DamagedError(f"it has {len(content)} bytes")
    return as_dict(parse_strictly(content), "it")


@functools.lru_cache(maxsize=64)
def _numpy_dtype(name: str) -> np.dtype[Any]:
    import tensorstore as ts

    try:
        if _TYPE.fullmatch(name) is None:
            raise ValueError(name)
        return np.dtype(ts.dtype(name).numpy_dtype)
    except ValueError as error:
        raise DamagedError(f"the type {name[:40]!r} is unknown") from error


def _check_sizes(shape: Sequence[int], chunk: Sequence[int], dtype: np.dtype[Any]) -> None:
    for extents in (shape, chunk):
        # An extent of zero counts as one, so that it does not hide impossible other extents.
        if math.prod(max(1, extent) for extent in extents) * dtype.itemsize > bounds.ARRAY_BYTES:
            raise DamagedError("its size is impossible")


def _configuration(value: Any, what: str, names: Sequence[str] | frozenset[str]) -> tuple[str, dict[str, Any]]:
    described = as_dict(value, what)
    name = as_text(described.get("name"), f"the name of {what}")
    if name not in names:
        raise DamagedError(f"the {what} {name[:40]!r} is unknown")
    return name, as_dict(described.get("configuration", {}), f"the configuration of {what}")


def _check_codecs(value: Any, chunk: tuple[int, ...], level: int) -> tuple[bool, int]:
    """Returns whether the codecs compress, and into how many inner chunks they divide a chunk. Raises DamagedError."""
    codecs = as_list(value, "codecs")
    if not 0 < len(codecs) <= bounds.CODECS or level > bounds.CODEC_LEVELS:
        raise DamagedError("it has no codecs, or too many")
    is_compressed, inner = False, 1
    for codec in codecs:
        name, settings = _configuration(codec, "codec", _CODECS)
        is_compressed = is_compressed or name in _COMPRESSIONS
        check: Callable[[dict[str, Any], tuple[int, ...]], None] | None = _SETTINGS.get(name)
        if check is not None:
            check(settings, chunk)
        if name == "sharding_indexed":
            parts = as_extents(settings.get("chunk_shape"), "chunk_shape", 1, len(chunk))
            if any(whole % part for whole, part in zip(chunk, parts, strict=True)):
                raise DamagedError("its chunks do not divide its shards")
            counts = tuple(whole // part for whole, part in zip(chunk, parts, strict=True))
            compressed, within = _check_codecs(settings.get("codecs"), parts, level + 1)
            is_compressed = is_compressed or compressed
            inner *= math.prod(counts) * within
            if "index_codecs" in settings and _check_codecs(settings["index_codecs"], (*counts, 2), level + 1)[0]:
                raise DamagedError("its index is compressed")
    return is_compressed, inner


def _check_bytes(settings: dict[str, Any], chunk: tuple[int, ...]) -> None:
    if settings.get("endian", "little") not in ("little", "big"):
        raise DamagedError("its byte order is unknown")


def _check_transpose(settings: dict[str, Any], chunk: tuple[int, ...]) -> None:
    order = settings.get("order")
    if order not in ("C", "F") and sorted(as_extents(order, "order")) != list(range(len(chunk))):
        raise DamagedError("its order of axes is impossible")


def _check_level(settings: dict[str, Any], chunk: tuple[int, ...]) -> None:
    if "level" in settings:
        as_int(settings["level"], "level", -131072, 22)


_SETTINGS: dict[str, Callable[[dict[str, Any], tuple[int, ...]], None]] = {
    "bytes": _check_bytes,
    "transpose": _check_transpose,
    "zstd": _check_level,
    "gzip": _check_level,
}
