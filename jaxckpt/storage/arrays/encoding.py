"""How the own code decodes the chunks of an array, from its parsed and checked metadata. Pure.

It decodes elements in C order and little-endian bytes, perhaps compressed by zstd, perhaps followed by their crc32c, perhaps in shards.
jaxckpt and plain Orbax write nothing else. TensorStore decodes the rest.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from jaxckpt._lib import checksum

_ZARR3_KEYS = frozenset(
    (
        "zarr_format",
        "node_type",
        "shape",
        "data_type",
        "chunk_grid",
        "chunk_key_encoding",
        "fill_value",
        "codecs",
        "attributes",
        "dimension_names",
    )
)
_ZARR2_KEYS = frozenset(
    ("zarr_format", "shape", "chunks", "dtype", "compressor", "fill_value", "order", "filters", "dimension_separator")
)
# Not -0.0, which has other bits.
_ZEROS = frozenset(("None", "False", "0", "0.0"))


class ChunkKeys(NamedTuple):
    """The keys of the chunks of an array.

    Attributes:
      first: the first part of every key, or "" if there is none.
      separator: what stands between the parts of a key.
    """

    first: str = "c"
    separator: str = "/"

    def of(self, number: tuple[int, ...]) -> str:
        """Returns the key of a chunk, relative to its array.

        Args:
          number: index of the chunk along each axis; ``(0, 1)`` gives ``c/0/1``.
        """
        if self.first:
            return self.separator.join((self.first, *map(str, number)))
        return self.separator.join(map(str, number)) or "0"


class Encoding(NamedTuple):
    """How the chunks of an array are stored. By default, as jaxckpt writes them.

    Attributes:
      is_compressed: whether zstd has compressed the bytes of a chunk.
      is_checked: whether a crc32c follows the bytes of a chunk.
      is_sharded: whether several chunks, and an index of them, are stored under one key, as a shard.
      keys: the keys of the chunks, or of the shards.
      is_zero_absent: whether absent chunks stand for zeros. Otherwise only TensorStore can read an array with absent chunks.
    """

    is_compressed: bool = False
    is_checked: bool = True
    is_sharded: bool = False
    keys: ChunkKeys = ChunkKeys()
    is_zero_absent: bool = True

    @property
    def checksum_bytes(self) -> int:
        """Number of bytes that follow the bytes of a chunk."""
        return checksum.BYTES if self.is_checked else 0


class Decodable(NamedTuple):
    """What the own code must know about an array.

    Attributes:
      encoding: how its chunks are stored.
      chunk: shape of the chunks: of those in the shards, if there are shards.
    """

    encoding: Encoding
    chunk: tuple[int, ...]


def of_zarr3(document: dict[str, Any], dtype: np.dtype[Any], chunk: tuple[int, ...]) -> Decodable | None:
    """Returns how to decode an array of zarr version 3; None if only TensorStore can.

    Args:
      document: its ``zarr.json``, which has been checked.
      dtype: its dtype.
      chunk: shape of its chunks, or shards.
    """
    keys = _keys(document["chunk_key_encoding"])
    if keys is None or not _ZARR3_KEYS.issuperset(document):
        return None
    codecs = document["codecs"]
    is_sharded = len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed"
    if is_sharded:
        settings = {"index_location": "end", **codecs[0]["configuration"]}
        if settings.keys() != {"index_location", "chunk_shape", "codecs", "index_codecs"} or (
            settings["index_location"] != "end" or not _is_plain_index(settings["index_codecs"])
        ):
            return None
        codecs, chunk = settings["codecs"], tuple(settings["chunk_shape"])
    encoding = _of_codecs(codecs, dtype)
    if encoding is None:
        return None
    is_zero = _is_zero(document.get("fill_value"))
    return Decodable(encoding._replace(is_sharded=is_sharded, keys=keys, is_zero_absent=is_zero), chunk)


def of_zarr2(document: dict[str, Any], dtype: np.dtype[Any], chunk: tuple[int, ...]) -> Decodable | None:
    """Returns how to decode an array of zarr version 2; None if only TensorStore can.

    Args:
      document: its ``.zarray``, which has been checked.
      dtype: its dtype, in this machine's byte order.
      chunk: shape of its chunks.
    """
    compressor = document.get("compressor")
    separator = document.get("dimension_separator", ".")
    if (
        not _ZARR2_KEYS.issuperset(document)
        or document.get("order") != "C"
        or (document["dtype"].startswith(">") and dtype.itemsize > 1)
        or separator not in (".", "/")
        or not (compressor is None or compressor["id"] == "zstd")
    ):
        return None
    encoding = Encoding(
        is_compressed=compressor is not None,
        is_checked=False,
        keys=ChunkKeys("", separator),
        is_zero_absent=_is_zero(document.get("fill_value")),
    )
    return Decodable(encoding, chunk)


def _keys(described: dict[str, Any]) -> ChunkKeys | None:
    name = described["name"]
    separator = described.get("configuration", {}).get("separator", "/" if name == "default" else ".")
    if separator not in (".", "/"):
        return None
    return ChunkKeys("c" if name == "default" else "", separator)


def _of_codecs(codecs: list[dict[str, Any]], dtype: np.dtype[Any]) -> Encoding | None:
    """Returns what the codecs of a chunk do; None if the own code cannot undo it."""
    first, *rest = codecs
    if not _is_little_endian(first, dtype.itemsize):
        return None
    names = [codec["name"] for codec in rest]
    is_compressed, is_checked = names[:1] == ["zstd"], names[-1:] == ["crc32c"]
    if len(names) != is_compressed + is_checked:
        return None
    return Encoding(is_compressed, is_checked)


def _is_little_endian(codec: dict[str, Any], itemsize: int) -> bool:
    if codec["name"] != "bytes":
        return False
    return itemsize == 1 or codec.get("configuration", {}).get("endian") == "little"


def _is_plain_index(codecs: list[dict[str, Any]]) -> bool:
    """Whether the index of a shard consists of little-endian numbers of 64 bits, and their crc32c."""
    return len(codecs) == 2 and _is_little_endian(codecs[0], 8) and codecs[1]["name"] == "crc32c"


def _is_zero(fill_value: Any) -> bool:
    parts: Iterable[Any] = fill_value if isinstance(fill_value, list) else (fill_value,)
    return all(not isinstance(part, str) and repr(part) in _ZEROS for part in parts)


# How jaxckpt writes arrays that it does not compress.
PLAIN = Encoding()
