"""Which dtypes can be stored, and which kind of number each holds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

STORABLE = {
    np.dtype(kind)
    for kind in (
        *(np.bool_, np.float16, np.float32, np.float64, np.complex64, np.complex128),
        *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    )
} | {
    np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "int2",
        "int4",
        "float4_e2m1fn",
        "float8_e3m4",
        "float8_e4m3b11fnuz",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
    if hasattr(ml_dtypes, name)
}
"""The dtypes that can be stored, in the byte order of this machine."""


def is_key_dtype(dtype: Any) -> bool:
    """Whether `dtype` is a dtype of typed PRNG keys."""
    return not isinstance(dtype, np.dtype) and bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def is_storable(dtype: Any) -> bool:
    """Whether arrays of `dtype` can be stored, in either byte order. False for PRNG keys: their data, of another dtype, is stored."""
    return dtype in STORABLE or (isinstance(dtype, np.dtype) and dtype.newbyteorder("=") in STORABLE)


def refusal(dtype: Any) -> str | None:
    """Returns why arrays of `dtype` cannot be stored, as a text to follow the leaf's name; None if they can."""
    if is_storable(dtype):
        return None
    return (
        f"cannot store dtype {dtype}; neither Orbax nor zarr supports it. "
        "Convert it first, for example to a wider number, or to strings in a list."
    )


@functools.cache
def number_kind(dtype: Any) -> str:
    """Returns "b", "i", "f" or "c" for bools, integers, floating and complex numbers of any width; "" for any other dtype."""
    kinds: tuple[tuple[Any, str], ...] = (
        (np.bool_, "b"),
        (np.integer, "i"),
        (np.floating, "f"),
        (np.complexfloating, "c"),
    )
    return next((letter for kind, letter in kinds if jnp.issubdtype(dtype, kind)), "")
