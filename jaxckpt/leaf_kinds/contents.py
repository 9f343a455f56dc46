"""Arrays in the memory of this host: as the content to write, and as digests to compare."""

import math
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.checksum import extended
from jaxckpt.leaf_kinds import dtypes
from jaxckpt.storage.item.content import ArrayContent, Piece, ValueType
from jaxckpt.tree.flatten import Leaf

AXES = 32
"""The largest number of axes of an array. It is the limit of TensorStore, with which Orbax reads."""
# A longer text is replaced by its checksum.
_TEXT_CHARS = 64
# For fewer bytes than this, copying them first is faster.
_COPY_BYTES = 4096
# A NamedTuple's own constructor takes three times as long, and thousands of leaves need two.
_new = tuple.__new__


def whole(value_type: ValueType, array: np.ndarray, note: str | None = None) -> ArrayContent:
    """Returns the content of a leaf that is one array on this process.

    Args:
      value_type: Orbax's word for the type of the leaf.
      array: the leaf's data, which must not change from now on.
      note: the word of the leaf's note, if it has one.
    """
    shape = array.shape
    piece = _new(Piece, ((0,) * len(shape), shape, array))
    return _new(ArrayContent, (value_type, shape, array.dtype, shape, (piece,), note, None, None, None, None))


def require_storable(leaf: Leaf, dtype: Any) -> None:
    """Raises TypeError, with the leaf's name, if arrays of `dtype` cannot be stored."""
    if (reason := dtypes.refusal(dtype)) is not None:
        raise TypeError(f"{leaf.name}: {reason}")


def require_text(name: str, value: str) -> None:
    """Raises ValueError if a str holds a lone surrogate, which is not text.

    Orbax's JSON parser refuses the file with all strings of a checkpoint if one of them holds such a character.

    Args:
      name: name of the leaf.
      value: the str.
    """
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: this str holds a lone surrogate ({value[error.start]!a} at index {error.start}), which is not text, so that plain "
            "Orbax could not read any str of the checkpoint. Store bytes instead, such as value.encode('utf-8', 'surrogatepass')."
        ) from None


def too_many_axes(leaf: Leaf) -> ValueError:
    """Returns the error for an array of more than `AXES` axes."""
    return ValueError(
        f"{leaf.name}: this array has {leaf.value.ndim} axes; Orbax and TensorStore allow {AXES} at most. Reshape it first."
    )


def checksum(array: np.ndarray) -> str:
    """Returns the digest of an array: its shape, and the checksum of its bytes in C order."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8) if math.prod(array.shape) else b""
    return f"{array.shape} {extended(0, bytes(flat) if array.nbytes < _COPY_BYTES else flat):08x}"


def text_digest(value: Any) -> str:
    """Returns the digest of a value that its `repr` determines completely."""
    text = repr(value)
    return text if len(text) < _TEXT_CHARS else checksum(np.frombuffer(text.encode(), np.uint8))


def is_same_array(one: Any, other: Any) -> bool:
    """Whether two arrays or scalars have the same dtype, shape and bytes. So nan equals nan, and -0.0 differs from 0.0."""
    left, right = np.asarray(jax.device_get(one)), np.asarray(jax.device_get(other))
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return bool(np.array_equal(_bytes(left), _bytes(right)))


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
