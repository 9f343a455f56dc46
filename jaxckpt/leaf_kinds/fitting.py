"""Checks whether stored numbers fit a target array or scalar: kind of number, shape, dtype."""

from typing import Any

import jax
import numpy as np

from jaxckpt.leaf_kinds.conversion import Conversion, Rule, scalar_rule
from jaxckpt.leaf_kinds.dtypes import number_kind
from jaxckpt.leaf_kinds.kind import OtherKindError, OtherShapeError, Terms
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf

_NUMBERS = (None, notes.NUMPY_SCALAR.word, notes.JAX_ARRAY.word)


def require_numbers(leaf: StoredLeaf, info: ArrayInfo | None) -> ArrayInfo:
    """Returns `info`, not None. Raises OtherKindError if the stored leaf is something else than numbers, of any shape."""
    if info is None or leaf.key_impl is not None or leaf.note not in _NUMBERS:
        raise OtherKindError
    return info


def require_array(value: Any, leaf: StoredLeaf, info: ArrayInfo | None) -> ArrayInfo:
    """Requires that a stored leaf can become an array or a numpy scalar. Shape and dtype are not checked.

    Args:
      value: the target; not PRNG keys.
      leaf: the stored leaf.
      info: the metadata of the stored array; None for a str.

    Returns:
      `info`, not None.

    Raises:
      OtherKindError: the stored leaf is something else, such as a str, bytes or PRNG keys.
    """
    found = require_numbers(leaf, info)
    # A Python scalar has a kind of number, but not a dtype.
    if is_python_scalar(leaf) and number_kind(value.dtype) != number_kind(found.dtype):
        raise OtherKindError
    return found


def is_like(value: Any, leaf: StoredLeaf, info: ArrayInfo | None) -> bool:
    """Whether a stored array has exactly the shape and dtype of a target, so that nothing else needs to be asked. For thousands of leaves.

    Args:
      value: the target, an array or an abstract one; not PRNG keys.
      leaf: the stored leaf.
      info: the metadata of the stored array; None for a str.
    """
    return (
        info is not None
        and value.dtype == info.dtype
        and value.shape == info.shape
        and leaf.key_impl is None
        and leaf.note in _NUMBERS
    )


def is_python_scalar(leaf: StoredLeaf) -> bool:
    """Whether a stored leaf is one of Python's scalars."""
    return leaf.value_type == "scalar" and leaf.note is None


def require_shape(target: Leaf, shape: tuple[int, ...], info: ArrayInfo, terms: Terms) -> None:
    """Requires that a stored array has a shape.

    Args:
      target: the target, for the error.
      shape: the required shape.
      info: the metadata of the stored array.
      terms: the terms of the restore.

    Raises:
      OtherShapeError: the shapes differ; the message names the leaf and both shapes.
    """
    if shape != info.shape:
        raise OtherShapeError(
            f"{target.name}: the target has shape {tuple(shape)}, but {terms.path} holds shape {info.shape}."
        )


def conversion(
    target: Leaf,
    leaf: StoredLeaf,
    info: ArrayInfo,
    terms: Terms,
    *,
    is_on_devices: bool = False,
    is_numpy_scalar: bool = False,
) -> Conversion | None:
    """Returns the conversion that gives stored numbers the dtype of the target; None if they have it already.

    Args:
      target: an array or a numpy scalar, of the stored shape.
      leaf: the stored leaf.
      info: the metadata of the stored array.
      terms: the terms of the restore.
      is_on_devices: whether JAX makes the new value. JAX has 64-bit dtypes only if they are enabled.
      is_numpy_scalar: whether the target is a numpy scalar.

    Raises:
      ValueError: the dtype does not fit; the message names the leaf and both dtypes.
    """
    dtype = np.dtype(target.value.dtype).newbyteorder("=")
    if is_on_devices and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{target.name}: the target has dtype {dtype}, which JAX would cast to {jax.dtypes.canonicalize_dtype(dtype)}. "
            "Enable 64 bits (jax.config.update('jax_enable_x64', True)), or restore into a numpy array."
        )
    if dtype == info.dtype:
        return None
    numbers = number_kind(dtype)
    is_same_kind = numbers != "" and numbers == number_kind(info.dtype)
    # A Python scalar has no dtype of its own, so it converts. A numpy scalar converts to a JAX scalar and back, but not to another numpy
    # scalar.
    is_scalar = info.shape == () and (
        (leaf.value_type == "scalar" and (leaf.note is None or is_on_devices))
        or (leaf.value_type == "jax.Array" and is_numpy_scalar)
    )
    if is_same_kind and is_scalar:
        rule = scalar_rule(info.dtype, leaf.note) if leaf.value_type == "scalar" else Rule.EXACT
        if rule is Rule.EXACT and terms.cast and numbers != "i":
            rule = Rule.CAST
        return Conversion(target.name, terms.path, info.dtype, dtype, rule)
    if is_same_kind and terms.cast:
        return Conversion(target.name, terms.path, info.dtype, dtype, Rule.CAST)
    held = f"{target.name}: the target has dtype {dtype}, but {terms.path} holds dtype {info.dtype}"
    if not is_same_kind:
        raise ValueError(
            f"{held}, a number of another kind, which is never converted. Restore into a target of the stored dtype and convert "
            "afterwards."
        )
    x64 = ""
    if is_on_devices and jax.dtypes.canonicalize_dtype(info.dtype) != info.dtype:
        x64 = " JAX has such arrays with 64 bits enabled only: jax.config.update('jax_enable_x64', True)."
    raise ValueError(
        f"{held}; values are never cast unless you ask for it: pass cast=True to restore() or read(), or restore into a target of "
        f"the stored dtype.{x64}"
    )
