"""What a leaf is, decided once per type: JAX answers `isinstance` slowly, and states have thousands of leaves of few types."""

import enum
from typing import Any

import jax
import numpy as np


class Kind(enum.Enum):
    """What a value is to a checkpoint."""

    JAX = "jax.Array"
    TRACER = "traced value"
    ABSTRACT = "abstract array"
    NUMPY = "numpy array"
    NUMPY_SCALAR = "numpy scalar"
    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    COMPLEX = "complex"
    STR = "str"
    BYTES = "bytes"
    OTHER = "other"


_known: dict[type, Kind] = {
    bool: Kind.BOOL,
    int: Kind.INT,
    float: Kind.FLOAT,
    complex: Kind.COMPLEX,
    str: Kind.STR,
    bytes: Kind.BYTES,
}


def kind_of(value: Any) -> Kind:
    """Returns the kind of a value; subclasses of Python's own scalars, str and bytes are OTHER: they would not come back as such."""
    kind = _known.get(type(value))
    if kind is None:
        kind = _known[type(value)] = _classify(value)
    return kind


def _classify(value: Any) -> Kind:
    if isinstance(value, jax.core.Tracer):
        return Kind.TRACER
    if isinstance(value, jax.Array):
        return Kind.JAX
    if isinstance(value, jax.ShapeDtypeStruct):
        return Kind.ABSTRACT
    if isinstance(value, np.ndarray):
        return Kind.NUMPY
    if isinstance(value, np.generic):
        return Kind.NUMPY_SCALAR
    return Kind.OTHER


def is_key_dtype(dtype: Any) -> bool:
    """Whether a dtype is that of typed PRNG keys."""
    return not isinstance(dtype, np.dtype) and bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def is_weak(value: Any) -> bool:
    """Whether an array, abstract or not, is weakly typed; arrays of PRNG keys never are."""
    return getattr(value, "weak_type", False)
