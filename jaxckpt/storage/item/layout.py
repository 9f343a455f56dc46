"""How an array lies in the key-value store: zarr v3 metadata, chunks, codecs. Pure.

Every chunk is followed by its crc32c (the codec of the zarr v3 standard), so that any reader of zarr detects a flipped bit.
"""

import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt.storage.item.content import ArrayContent
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree.names import Path, leaf_name

CHECKSUM_BYTES = checksum.BYTES
# Arrays up to this size are encoded here and put into the store directly: opening a TensorStore costs 20 times as much as the bytes.
SMALL_BYTES = 1 << 17
_BYTES: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_SINGLE_BYTES: dict[str, Any] = {"name": "bytes"}
_CRC32C: dict[str, Any] = {"name": "crc32c"}
_ZSTD: dict[str, Any] = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}


def codecs(dtype: np.dtype[Any], compression: str | None = None) -> list[dict[str, Any]]:
    """Returns the zarr v3 codecs of an array: bytes, perhaps zstd, then crc32c."""
    first = _SINGLE_BYTES if dtype.itemsize == 1 else _BYTES
    return [first, _ZSTD, _CRC32C] if compression == "zstd" else [first, _CRC32C]


def _fill_value(dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "c":
        return [0.0, 0.0]
    if dtype == np.bool_:
        return False
    return 0 if "int" in dtype.name else 0.0


@functools.lru_cache(maxsize=4096)
def metadata_json(
    shape: tuple[int, ...], dtype: np.dtype[Any], chunk_shape: tuple[int, ...], compression: str | None = None
) -> bytes:
    """Returns the content of an array's ``zarr.json``."""
    return json.dumps(metadata(shape, dtype, chunk_shape, compression), separators=(",", ":")).encode()


def metadata(
    shape: tuple[int, ...], dtype: np.dtype[Any], chunk_shape: tuple[int, ...], compression: str | None = None
) -> dict[str, Any]:
    """Returns the zarr v3 metadata of an array."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, extent) for extent in chunk_shape]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": _fill_value(dtype),
        "codecs": codecs(dtype, compression),
    }


def array_path(param_name: str) -> str:
    """Returns the prefix of an array's keys in the store: Orbax's name of the leaf, ended by one ``/`` as Orbax ends it."""
    return param_name if param_name.endswith("/") else param_name + "/"


def refuse_collisions(paths: Sequence[Path]) -> None:
    """Refuses leaves that Orbax cannot tell apart.

    Raises:
      ValueError: two of the leaves at `paths` would have the same files; names both.
    """
    stored = [array_path(".".join([text for text, _ in path])) for path in paths]
    if len(set(stored)) == len(stored):
        return
    twice = next(name for name, count in Counter(stored).items() if count > 1)
    both = [repr(leaf_name(path)) for path, name in zip(paths, stored, strict=True) if name == twice]
    raise ValueError(
        f"The leaves {' and '.join(both)} would both be stored as {twice[:-1]!r} (Orbax joins keys with '.'), so one "
        "would overwrite the other. Rename a key."
    )


def chunk_key(index: tuple[int, ...]) -> str:
    """Returns the key of a chunk below its array: ``c/0/1``."""
    return "/".join(("c", *map(str, index)))


def largest_chunk(settings: WriteSettings) -> int:
    """Returns the largest chunk in bytes that the settings allow, its checksum not counted."""
    limit = settings.chunk_byte_size
    if settings.max_file_size is not None:
        if uses_ocdbt(settings):
            limit = min(limit, settings.max_file_size // 4)  # A data file may outgrow its target by a chunk.
        else:
            # zstd may add as much as this to noise.
            slack = 0 if compression(settings) is None else (settings.max_file_size >> 6) + 128
            limit = min(limit, settings.max_file_size - CHECKSUM_BYTES - slack)
    return limit


def compression(settings: WriteSettings) -> str | None:
    """Returns the compression that is used: none in files so small that its overhead would not fit."""
    return None if settings.max_file_size is not None and settings.max_file_size < 1024 else settings.compression


def uses_ocdbt(settings: WriteSettings) -> bool:
    """Whether chunks are packed into OCDBT data files.

    OCDBT closes a file once it *exceeds* its target, by one chunk or one B-tree node (8 MB at most), so a limit well above that can be
    kept. Below it every chunk gets a file of its own, which no file can outgrow.
    """
    return settings.max_file_size is None or settings.max_file_size >= 64 << 20


def target_data_file_size(settings: WriteSettings) -> int:
    """Returns the size at which OCDBT closes a data file, so that no file outgrows `max_file_size`."""
    if settings.max_file_size is None:
        return settings.target_data_file_size
    # The file may grow by one more chunk, and by what arrives while it is closed.
    return min(settings.target_data_file_size, settings.max_file_size // 4)


def chunks_of(content: ArrayContent, settings: WriteSettings) -> tuple[int, ...]:
    """Returns the shape of the chunks of an array that is written; of a small one the pieces are the chunks.

    Raises:
      ValueError: one element is larger than the settings allow.
    """
    limit = largest_chunk(settings)
    if content.nbytes <= min(SMALL_BYTES, limit):
        return content.write_shape
    is_strict = settings.max_file_size is not None
    return chunk_shape(content.shape, content.write_shape, content.dtype.itemsize, limit, is_strict=is_strict)


def chunks_in(
    start: tuple[int, ...], extents: tuple[int, ...], chunk: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Yields the chunks of a box of an array: index, first element, and extents (smaller at the edge of the array).

    Args:
      start, extents: of the box, which is made of whole chunks.
      chunk: shape of the chunks.
      shape: of the array.

    Raises:
      ValueError: the box is not made of whole chunks.
    """
    ends = tuple(first + extent for first, extent in zip(start, extents, strict=True))
    for first, end, cut, whole in zip(start, ends, chunk, shape, strict=True):
        if first % cut or (end % cut and end != whole):
            raise ValueError(f"the box at {start} of shape {extents} is not made of chunks of shape {chunk}")
    axes = [range(first // cut, -(-end // cut)) for first, end, cut in zip(start, ends, chunk, strict=True)]
    for index in itertools.product(*axes):
        begin = tuple(number * cut for number, cut in zip(index, chunk, strict=True))
        yield (
            index,
            begin,
            tuple(min(cut, end - first) for cut, end, first in zip(chunk, ends, begin, strict=True)),
        )


def chunk_shape(
    shape: tuple[int, ...], write_shape: tuple[int, ...], itemsize: int, limit: int, *, is_strict: bool = True
) -> tuple[int, ...]:
    """Chooses the chunks of an array.

    A chunk never reaches across two pieces (each piece is written on its own) and is contiguous in its piece where possible, so
    that it can be written without a copy.

    Args:
      shape: of the array.
      write_shape: of the pieces that tile the array.
      itemsize: bytes of one element.
      limit: largest chunk in bytes.
      is_strict: make many small chunks rather than one that is too large, where pieces have extents (prime numbers, say) that
        cannot be divided as needed.

    Raises:
      ValueError: one element is larger than `limit`.
    """
    if itemsize > limit:
        raise ValueError(f"one element has {itemsize} bytes, more than the limit of {limit} bytes")
    chunk = [max(1, extent) for extent in write_shape]
    for axis, extent in enumerate(chunk):
        before = math.prod(chunk[:axis])  # 1, but where an axis was left whole
        rest = math.prod(chunk[axis + 1 :]) * itemsize
        if before * extent * rest <= limit:
            break
        fits = max(1, limit // (before * rest))
        if write_shape[axis] == shape[axis]:
            # Not divided between pieces: any extent will do; equal parts waste least.
            chunk[axis] = -(-extent // -(-extent // fits))
        else:
            divisor = _largest_divisor(extent, fits)
            if 4 * divisor < fits and before * extent * itemsize <= limit and rest > itemsize:
                continue  # The axes after this one can be divided instead.
            if 16 * divisor < fits and not is_strict:
                divisor = _smallest_divisor(extent, fits)
            chunk[axis] = divisor
        # The axes after this one are shortened only where a single index is still too large.
        if before * chunk[axis] * rest <= limit:
            break
    return tuple(chunk)


def _largest_divisor(number: int, limit: int) -> int:
    for divisor in range(min(limit, number), 0, -1):
        if number % divisor == 0:
            return divisor
    return 1


def _smallest_divisor(number: int, least: int) -> int:
    """Returns the smallest divisor that is not less than `least`."""
    return next((number // part for part in range(number // least, 0, -1) if number % part == 0), number)
