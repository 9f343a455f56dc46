"""Whether a stored leaf can become a value of its target, and how."""

from typing import Any

import jax
import numpy as np

from jaxckpt.restoring.conversion import Conversion, Rule, number_kind, scalar_rule
from jaxckpt.restoring.targets import sharding_of
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf
from jaxckpt.tree.kinds import Kind, is_key_dtype, kind_of, refusal

SCALARS = {Kind.BOOL: "b", Kind.INT: "i", Kind.FLOAT: "f", Kind.COMPLEX: "c"}
_ARRAYS = {Kind.JAX, Kind.NUMPY, Kind.NUMPY_SCALAR, Kind.ABSTRACT}
_JAX, _ABSTRACT = Kind.JAX, Kind.ABSTRACT


class Validator:
    """Validates the pairs of one restore."""

    def __init__(self, path: str, *, cast: bool) -> None:
        """Args: path of the checkpoint, for errors; whether the caller wants other dtypes of the same kind to be converted."""
        self._path = path
        self._cast = cast
        self._is_alone = jax.process_count() == 1

    def check(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Conversion | None:
        """Validates one pair.

        Args:
          target: leaf of a current value.
          leaf: what is stored under its name.
          info: what the store says of it; None for a str.

        Returns:
          What has to be done to the stored numbers; None if nothing has.

        Raises:
          TypeError: the target cannot be one.
          ValueError: kind, shape or dtype do not fit; names the leaf and both sides.
        """
        value = target.value
        kind = kind_of(value)
        if (
            (kind is _JAX or (kind is _ABSTRACT and (self._is_alone or sharding_of(value) is not None)))
            and info is not None
            and leaf.key_impl is None
            and leaf.kind != "bytes"
            and value.dtype == info.dtype
            and value.shape == info.shape
            and info.dtype.itemsize < 8
        ):
            # Thousands of them.
            return None
        path = self._path
        if kind in (Kind.TRACER, Kind.OTHER) or isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{target.name}: {refusal(value, 'restore')}")
        if not _same_kind(kind, value, leaf, info):
            raise ValueError(
                f"{target.name}: the target is {_describe_target(value)}, but {path} holds {_describe(leaf, info)}. "
                "Restore into a target like what was saved."
            )
        if kind not in _ARRAYS:
            return None
        assert info is not None
        if kind is _ABSTRACT and sharding_of(value) is None and not self._is_alone:
            raise ValueError(
                f"{target.name}: the target is a jax.ShapeDtypeStruct without a sharding, in a job of {jax.process_count()} processes. "
                "Give it one, jax.ShapeDtypeStruct(shape, dtype, sharding=...): it says which process gets what."
            )
        shape = value.shape
        if leaf.key_impl is not None:
            if (impl := _key_impl(value)) != leaf.key_impl:
                raise ValueError(
                    f"{target.name}: the target is a PRNG key of implementation {impl}, but {path} holds one of {leaf.key_impl}."
                )
            shape = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, value.dtype)).shape
        if shape != info.shape:
            raise ValueError(
                f"{target.name}: the target has shape {tuple(shape)}, but {path} holds shape {info.shape}."
            )
        if leaf.key_impl is not None:
            return None
        dtype = np.dtype(value.dtype).newbyteorder("=")
        if kind in (Kind.JAX, Kind.ABSTRACT) and jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"{target.name}: the target has dtype {dtype}, which JAX would cast to {jax.dtypes.canonicalize_dtype(dtype)}. "
                "Enable 64 bits (jax.config.update('jax_enable_x64', True)), or restore into a numpy array."
            )
        return None if dtype == info.dtype else self._conversion(target, kind, leaf, info, dtype)

    def _conversion(
        self, target: Leaf, kind: Kind, leaf: StoredLeaf, info: ArrayInfo, dtype: np.dtype[Any]
    ) -> Conversion:
        numbers = number_kind(dtype)
        same = numbers != "" and numbers == number_kind(info.dtype)
        # A Python scalar is of no dtype. A numpy scalar and a JAX scalar stand for each other; two numpy scalars do not.
        is_scalar = info.shape == () and (
            (leaf.value_type == "scalar" and (leaf.kind is None or kind in (Kind.JAX, Kind.ABSTRACT)))
            or (leaf.value_type == "jax.Array" and kind is Kind.NUMPY_SCALAR)
        )
        if same and is_scalar:
            rule = scalar_rule(info.dtype, leaf.kind) if leaf.value_type == "scalar" else Rule.EXACT
            if rule is Rule.EXACT and self._cast and numbers != "i":
                rule = Rule.CAST
            return Conversion(target.name, self._path, dtype, rule)
        if same and self._cast:
            return Conversion(target.name, self._path, dtype, Rule.CAST)
        held = f"{target.name}: the target has dtype {dtype}, but {self._path} holds dtype {info.dtype}"
        if not same:
            raise ValueError(
                f"{held}, a number of another kind, which is never converted. Restore into a target of the stored dtype and convert "
                "afterwards."
            )
        x64 = ""
        if kind in (Kind.JAX, Kind.ABSTRACT) and jax.dtypes.canonicalize_dtype(info.dtype) != info.dtype:
            x64 = " JAX has such arrays with 64 bits enabled only: jax.config.update('jax_enable_x64', True)."
        raise ValueError(
            f"{held}; values are never cast unless you ask for it: call restore(path, cast=True), or restore into a target of the stored "
            f"dtype.{x64}"
        )


def _same_kind(kind: Kind, value: Any, leaf: StoredLeaf, info: ArrayInfo | None) -> bool:
    """Whether a stored leaf can become a value of the target's kind, its shape and dtype aside."""
    if info is None:
        return kind is Kind.STR
    if kind is Kind.BYTES or leaf.kind == "bytes":
        return kind is Kind.BYTES and leaf.kind == "bytes"
    if kind in SCALARS:
        return info.shape == () and number_kind(info.dtype) == SCALARS[kind] and leaf.key_impl is None
    if kind not in _ARRAYS or is_key_dtype(value.dtype) != (leaf.key_impl is not None):
        return False
    if leaf.value_type != "scalar" or leaf.kind is not None:
        return True
    # A Python scalar is of a kind, and of no dtype.
    return number_kind(value.dtype) == number_kind(info.dtype)


def _key_impl(value: Any) -> str:
    if kind_of(value) is Kind.JAX:
        return str(jax.random.key_impl(value))
    # A dtype does not tell: ask an abstract array of it.
    found: list[str] = []

    def look(key: Any) -> Any:
        found.append(str(jax.random.key_impl(key)))
        return key

    jax.eval_shape(look, jax.ShapeDtypeStruct((), value.dtype))
    return found[0]


def _describe(leaf: StoredLeaf, info: ArrayInfo | None) -> str:
    if leaf.is_string:
        return "a str"
    assert info is not None
    if leaf.kind == "bytes":
        return f"bytes ({info.shape[0]} of them)"
    if leaf.key_impl is not None:
        return f"a PRNG key ({leaf.key_impl})"
    if leaf.value_type == "scalar":
        return f"a scalar of dtype {info.dtype}"
    return f"an array of shape {info.shape} and dtype {info.dtype}"


def _describe_target(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"a {type(value).__name__}"
