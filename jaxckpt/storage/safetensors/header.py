"""The header of a safetensors file: names, dtypes, shapes and places of its arrays, and texts (the metadata). Pure."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import DamagedError, as_dict, as_extents, as_int, as_list, as_text, parse_strictly
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.names import Key, Path

# The header's length, in bytes at the beginning of the file.
LENGTH_BYTES = 8
# The library's limit for a header.
MOST_BYTES = 100_000_000
METADATA = "__metadata__"
OWN = "jaxckpt"
FORMAT = 1
_DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(kind) for name, kind in (("BOOL", "bool"), ("C64", "complex64"))},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
if hasattr(ml_dtypes, "float8_e8m0fnu"):
    _DTYPES["F8_E8M0"] = np.dtype(ml_dtypes.float8_e8m0fnu)
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Tensor(NamedTuple):
    """An array in a file.

    Attributes:
      dtype: its dtype; None if numpy does not have it.
      dtype_name: safetensors' name of it.
      shape: its shape.
      offset: first byte in the file.
      nbytes: number of bytes.
    """

    dtype: np.dtype[Any] | None
    dtype_name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Header(NamedTuple):
    """A parsed header.

    Attributes:
      tensors: the arrays by name.
      metadata: the texts.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def name_of(dtype: np.dtype[Any]) -> str | None:
    """Returns safetensors' name of a dtype; None if the format does not have it."""
    return _NAMES.get(dtype)


def parse(content: bytes, size: int | None) -> Header:
    """Parses a header.

    Args:
      content: the header, without its length.
      size: size of the whole file in bytes; None if it is not known.

    Raises:
      DamagedError: it is not a header, or does not fit to the size.
    """
    document = as_dict(parse_strictly(content), "its header")
    metadata = {
        as_text(key, "a key"): as_text(text, "a text of its metadata")
        for key, text in as_dict(document.pop(METADATA, {}), METADATA).items()
    }
    start = LENGTH_BYTES + len(content)
    tensors = {}
    spans = []
    for name, value in document.items():
        described = as_dict(value, f"{name[:80]!r}")
        shape = as_extents(described.get("shape"), "a shape")
        dtype_name = as_text(described.get("dtype"), "a dtype")
        first, last = (as_int(each, "an offset") for each in _pair(described.get("data_offsets")))
        dtype = _DTYPES.get(dtype_name)
        if math.prod(max(1, extent) for extent in shape) > bounds.ARRAY_BYTES // 16:
            raise DamagedError(f"the shape of {name[:80]!r} is impossible")
        if last < first or (dtype is not None and last - first != math.prod(shape) * dtype.itemsize):
            raise DamagedError(f"{name[:80]!r} has shape {shape} and dtype {dtype_name}, but {last - first} bytes")
        spans.append((first, last))
        tensors[name] = Tensor(dtype, dtype_name, shape, start + first, last - first)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise DamagedError("its arrays overlap, or leave a gap")
        end = last
    if size is not None and start + end != size:
        raise DamagedError(f"it has {size} bytes, but its header describes {start + end}")
    return Header(tensors, metadata)


def _pair(value: Any) -> Sequence[Any]:
    pair = as_list(value, "data_offsets")
    if len(pair) != 2:
        raise DamagedError("data_offsets is not a pair")
    return pair


def encode(tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Returns the beginning of a file: the length of the header, and the header.

    Args:
      tensors: dtype and shape of each array, by name, in the order in which their bytes follow.
      metadata: texts.

    Raises:
      ValueError: the header is longer than a reader accepts.
    """
    document: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * dtype.itemsize
        document[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    # So the arrays are aligned in memory if the file is mapped.
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_BYTES:
        raise ValueError(f"the names of the leaves take {len(text)} bytes, more than a safetensors file may have")
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def indices(path: Path) -> list[int]:
    """Returns the positions of the keys in a path that are indices into sequences."""
    return [position for position, key in enumerate(path) if key.is_index]


def described(leaf: StoredLeaf, path: Path) -> dict[str, Any]:
    """Returns what the metadata says about a leaf for which the format has no place: its type, as checkpoints of jaxckpt note it.

    Args:
      leaf: the leaf.
      path: its path in the file.
    """
    found: dict[str, Any] = {"type": leaf.value_type, "indices": indices(path)}
    if leaf.note is not None:
        found["note"] = leaf.note
    if leaf.key_impl is not None:
        found["key_impl"] = leaf.key_impl
    return found


def leaf_of(name: str, shape: tuple[int, ...], value: Any) -> StoredLeaf:
    """Returns the leaf of an array.

    Args:
      name: its name in the file.
      shape: its shape.
      value: what `described` returned for it; None if another program wrote the file. Then the names' dots and slashes are not
        interpreted but for the slashes, which divide keys.

    Raises:
      DamagedError: `described` does not return such a value.
    """
    if value is None:
        path = tuple((part, False) for part in name.split("/"))
        if shape:
            return StoredLeaf(path, name, "np.ndarray", None, None)
        return StoredLeaf(path, name, "scalar", notes.NUMPY_SCALAR.word, None)
    found = as_dict(value, f"the description of {name[:80]!r}")
    indices = {as_int(each, "an index") for each in as_list(found.get("indices", []), "indices")}
    path = tuple((text, number in indices) for number, (text, _) in enumerate(split(name)))
    note, key_impl = found.get("note"), found.get("key_impl")
    if note is not None and (type(note) is not str or notes.find(note) is None):
        raise DamagedError("it contains an unknown note of a leaf")
    if key_impl is not None:
        as_text(key_impl, "key_impl")
    value_type = as_text(found.get("type"), "a type")
    if value_type not in ("jax.Array", "np.ndarray", "scalar", "string"):
        raise DamagedError(f"the type {value_type[:40]!r} of a leaf is unknown")
    return StoredLeaf(path, name, value_type, note, key_impl)


def split(name: str) -> tuple[Key, ...]:
    """Returns the path of a leaf's name, as `leaf_name` made it."""
    return tuple(Key(part.replace("~1", "/").replace("~0", "~")) for part in name.split("/"))


def info_of(tensor: Tensor) -> ArrayInfo:
    """Returns shape and dtype of an array, whose dtype numpy has."""
    assert tensor.dtype is not None
    return ArrayInfo(tensor.shape, tensor.dtype, None)
