"""The layout of an array in the key-value store: zarr v3 metadata, chunks, codecs. Pure functions.

A crc32c (the codec of the zarr v3 standard) follows every chunk, so every zarr reader detects a flipped bit.
"""

import dataclasses
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
from jaxckpt.storage.item.tiles import tile
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree.names import Path, dotted_name, leaf_name, leaf_names

CHECKSUM_BYTES = checksum.BYTES
# Arrays up to this many bytes are encoded here and put into the store directly: opening a TensorStore array would take 20 times as long.
SMALL_BYTES = 1 << 17
_BYTES: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_SINGLE_BYTES: dict[str, Any] = {"name": "bytes"}
_CRC32C: dict[str, Any] = {"name": "crc32c"}
_ZSTD: dict[str, Any] = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}


def codecs(dtype: np.dtype[Any], compression: str | None = None) -> list[dict[str, Any]]:
    """Returns the zarr v3 codecs of an array: bytes, then zstd if it is compressed, then crc32c.

    Args:
      dtype: dtype of the array.
      compression: "zstd" or None.
    """
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
    """Returns the content of an array's ``zarr.json``.

    Args:
      shape: shape of the array.
      dtype: dtype of the array.
      chunk_shape: shape of its chunks. An extent of 0 counts as 1.
      compression: "zstd" or None.
    """
    return json.dumps(metadata(shape, dtype, chunk_shape, compression), separators=(",", ":")).encode()


def metadata(
    shape: tuple[int, ...], dtype: np.dtype[Any], chunk_shape: tuple[int, ...], compression: str | None = None
) -> dict[str, Any]:
    """Returns the zarr v3 metadata of an array.

    Args:
      shape: shape of the array.
      dtype: dtype of the array.
      chunk_shape: shape of its chunks. An extent of 0 counts as 1.
      compression: "zstd" or None.
    """
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
    """Returns the prefix of an array's keys in the store: Orbax's name of the leaf, with one ``/`` at its end, as Orbax writes it.

    The name of an array that is the whole tree is empty. Its keys have no prefix.
    """
    return param_name if not param_name or param_name.endswith("/") else param_name + "/"


def array_paths(param_names: Sequence[str]) -> list[str]:
    """Returns what `array_path` returns for each of thousands of names."""
    return [name if not name or name[-1] == "/" else name + "/" for name in param_names]


def refuse_collisions(paths: Sequence[Path], known: Sequence[str] | None = None) -> None:
    """Refuses leaves that Orbax cannot tell apart.

    Args:
      paths: paths of all leaves.
      known: the names of these leaves; None if the caller does not have them.

    Raises:
      ValueError: two leaves would be stored under the same keys; the message names both.
    """
    names = leaf_names(paths) if known is None else known
    text = "".join(names)
    if "." not in text and "~" not in text and len(set(names)) == len(names):
        # Without dots in the keys, dots between them tell names apart as slashes do.
        return
    stored = [array_path(dotted_name(path)) for path in paths]
    if len(set(stored)) == len(stored):
        return
    twice = next(name for name, count in Counter(stored).items() if count > 1)
    both = [repr(leaf_name(path)) for path, name in zip(paths, stored, strict=True) if name == twice]
    raise ValueError(
        f"The leaves {' and '.join(both)} would both be stored as {twice[:-1]!r} (Orbax joins keys with '.'), so one "
        "would overwrite the other. Rename a key."
    )


@functools.lru_cache(maxsize=4096)
def chunk_key(index: tuple[int, ...]) -> str:
    """Returns the key of a chunk, relative to its array.

    Args:
      index: index of the chunk along each axis; ``(0, 1)`` gives ``c/0/1``.
    """
    return "/".join(("c", *map(str, index)))


def limited(settings: WriteSettings, largest_file: int | None) -> WriteSettings:
    """Returns settings with which no file exceeds the largest one that a store takes.

    Args:
      settings: how to write.
      largest_file: see `Store.largest_file`.
    """
    if largest_file is None or (settings.max_file_size is not None and settings.max_file_size <= largest_file):
        return settings
    return dataclasses.replace(settings, max_file_size=largest_file)


def largest_chunk(settings: WriteSettings) -> int:
    """Returns the size in bytes of the largest chunk that the settings allow, without its checksum."""
    limit = settings.chunk_byte_size
    if settings.max_file_size is not None:
        if uses_ocdbt(settings):
            # A data file may exceed its target size by one chunk.
            limit = min(limit, settings.max_file_size // 4)
        else:
            # zstd may add up to this many bytes to data that it cannot compress.
            slack = 0 if compression(settings) is None else (settings.max_file_size >> 6) + 128
            limit = min(limit, settings.max_file_size - CHECKSUM_BYTES - slack)
    return limit


def compression(settings: WriteSettings) -> str | None:
    """Returns the compression that a save uses. Files may be limited to a size so small that its overhead does not fit: then None."""
    return None if settings.max_file_size is not None and settings.max_file_size < 1024 else settings.compression


def uses_ocdbt(settings: WriteSettings) -> bool:
    """Whether chunks are packed into OCDBT data files.

    OCDBT closes a file only after it has exceeded its target, by one chunk or one B-tree node (8 MB at most). So it can keep only a limit
    well above that. With a lower limit, every chunk gets a file of its own, and the chunks are small enough for the limit.
    """
    return settings.max_file_size is None or settings.max_file_size >= 64 << 20


def target_data_file_size(settings: WriteSettings) -> int:
    """Returns the size in bytes at which OCDBT closes a data file, so that no file exceeds `max_file_size`."""
    if settings.max_file_size is None:
        return settings.target_data_file_size
    # The file may still grow by one chunk, and by data that arrives while it is being closed.
    return min(settings.target_data_file_size, settings.max_file_size // 4)


def chunks_of(content: ArrayContent, settings: WriteSettings) -> tuple[int, ...]:
    """Returns the shape of the chunks of an array that is written. If the array is small, its pieces are its chunks.

    Args:
      content: the array.
      settings: how it is written.

    Raises:
      ValueError: one element is larger than the settings allow.
    """
    limit = largest_chunk(settings)
    if content.chunk_byte_size is not None:
        limit = min(limit, content.chunk_byte_size)
    if content.nbytes <= min(SMALL_BYTES, limit):
        return content.write_shape
    itemsize = content.dtype.itemsize
    # Where each chunk is a file of its own, more chunks would cost more.
    pieces = tile(content.shape, content.write_shape, itemsize) if uses_ocdbt(settings) else content.write_shape
    shape = chunk_shape(content.shape, pieces, itemsize, limit, is_strict=False)
    if settings.max_file_size is None and content.chunk_byte_size is None:
        return shape
    # What the caller asked for is kept to, however small the chunks become.
    most = limit
    if content.chunk_byte_size is None and settings.max_file_size is not None and uses_ocdbt(settings):
        most = settings.max_file_size // 4
    return shape if math.prod(shape) * itemsize <= most else chunk_shape(content.shape, pieces, itemsize, limit)


def chunks_in(
    start: tuple[int, ...], extents: tuple[int, ...], chunk: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Yields the chunks of a box of an array. The box consists of whole chunks.

    Args:
      start: first index of the box along each axis of the array.
      extents: extent of the box along each axis.
      chunk: shape of the chunks.
      shape: shape of the array.

    Yields:
      For each chunk: its index, the index of its first element in the array, and its extents (smaller at the edge of the array).

    Raises:
      ValueError: the box does not consist of whole chunks.
    """
    ends = tuple(first + extent for first, extent in zip(start, extents, strict=True))
    for first, end, cut, whole in zip(start, ends, chunk, shape, strict=True):
        if first % cut or (end % cut and end != whole):
            raise ValueError(f"the box at {start} of shape {extents} does not consist of chunks of shape {chunk}")
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

    A chunk never reaches into a second piece, because each piece is written on its own. If possible, a chunk is contiguous in its piece,
    so that it can be written without a copy.

    Args:
      shape: shape of the array.
      write_shape: shape of the pieces that tile the array.
      itemsize: size of one element in bytes.
      limit: size of the largest chunk in bytes.
      is_strict: whether `limit` must be kept even if that makes very many small chunks, because an extent of the pieces has few divisors
        (a prime number, say).

    Raises:
      ValueError: one element is larger than `limit`.
    """
    if itemsize > limit:
        raise ValueError(f"one element has {itemsize} bytes, more than the limit of {limit} bytes")
    chunk = [max(1, extent) for extent in write_shape]
    for axis, extent in enumerate(chunk):
        # This is 1, unless an axis before this one was left whole.
        before = math.prod(chunk[:axis])
        rest = math.prod(chunk[axis + 1 :]) * itemsize
        if before * extent * rest <= limit:
            break
        fits = max(1, limit // (before * rest))
        if write_shape[axis] == shape[axis]:
            # The pieces do not divide this axis, so any extent is possible. Equal parts waste least.
            chunk[axis] = -(-extent // -(-extent // fits))
        else:
            divisor = _largest_divisor(extent, fits)
            if 4 * divisor < fits and before * extent * itemsize <= limit and rest > itemsize:
                # Divide the axes after this one instead.
                continue
            if 16 * divisor < fits and not is_strict:
                divisor = _smallest_divisor(extent, fits)
            chunk[axis] = divisor
        # If one chunk still is too large, the next axis is shortened too.
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
