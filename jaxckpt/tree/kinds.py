"""What a leaf is, decided once per type: JAX answers `isinstance` slowly, and states have thousands of leaves of few types."""

import enum
import sys
import weakref
from typing import Any, Generic, TypeVar

import jax
import ml_dtypes
import numpy as np

_Value = TypeVar("_Value")
_PERMANENT = ("builtins", "jax", "jaxlib", "ml_dtypes", "numpy")


class ByType(Generic[_Value]):
    """What is known of types, which stay free to go: a class may hold its user's data.

    Attributes:
      permanent: of the types of Python, NumPy and JAX, which are never gone. Look here first: it is a plain dict.
    """

    def __init__(self, known: dict[type, _Value]) -> None:
        """Args: what is known from the start."""
        self.permanent = known
        self._others: weakref.WeakKeyDictionary[type, _Value] = weakref.WeakKeyDictionary()

    def get(self, kind: type) -> _Value | None:
        """Returns what is known of a type, or None."""
        found = self.permanent.get(kind)
        return self._others.get(kind) if found is None else found

    def put(self, kind: type, value: _Value) -> _Value:
        """Remembers, and returns, a value."""
        module, name = str(kind.__module__), kind.__qualname__
        if module.partition(".")[0] in _PERMANENT and getattr(sys.modules.get(module), name, None) is kind:
            self.permanent[kind] = value
        else:
            self._others[kind] = value
        return value


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


_known: ByType[Kind] = ByType(
    {
        bool: Kind.BOOL,
        int: Kind.INT,
        float: Kind.FLOAT,
        complex: Kind.COMPLEX,
        str: Kind.STR,
        bytes: Kind.BYTES,
    }
)
_permanent = _known.permanent


def kind_of(value: Any) -> Kind:
    """Returns the kind of a value; subclasses of Python's own scalars, str and bytes are OTHER: they would not come back as such."""
    kind = type(value)
    return _permanent.get(kind) or _known.get(kind) or _known.put(kind, _classify(value))


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
_HAVE_DTYPE = {Kind.JAX, Kind.ABSTRACT, Kind.NUMPY, Kind.NUMPY_SCALAR}


def refusal(value: Any, action: str) -> str | None:
    """Says why a value cannot be a leaf of a checkpoint, whatever the checkpoint holds.

    Args:
      value: what is to be saved, or the target of a restore.
      action: "save" or "restore".

    Returns:
      The reason, to be put after the leaf's name; None if it can be one.
    """
    kind = kind_of(value)
    if kind in _HAVE_DTYPE:
        if isinstance(value, np.ma.MaskedArray):
            return "cannot store a numpy.ma.MaskedArray, whose mask would be lost. Store its .data and its .mask."
        dtype = value.dtype
        if dtype in STORABLE or is_key_dtype(dtype) or dtype.newbyteorder("=") in STORABLE:
            return None
        return (
            f"cannot store dtype {dtype}; neither Orbax nor zarr has such arrays. "
            "Convert it first, for example to a wider number, or to strings in a list."
        )
    if kind is Kind.INT and not -(2**63) <= value < 2**64:
        return (
            f"Python int {value} does not fit into 64 bits and cannot be stored. Store it as a str, or as several ints."
        )
    if kind is Kind.TRACER:
        return (
            f"this value is traced ({action} was called inside jax.jit, jax.grad or jax.vmap), so it has no data. "
            f"Call {action} outside of the transformed function."
        )
    if kind is Kind.OTHER:
        cls = f"{type(value).__module__}.{type(value).__qualname__}"
        if action == "save":
            return (
                f"cannot store a {cls}. A leaf can be a jax.Array, a numpy array, a Python or numpy scalar, str, bytes or None (not a "
                "subclass of these), or an object with serialize() and deserialize(), or get_state() and set_state(). Convert it, or "
                "leave it out of the Checkpoint."
            )
        return (
            f"a {cls} cannot be a target of restore. Use an array, a jax.ShapeDtypeStruct, a scalar, str or bytes, or an object with "
            "deserialize() or set_state()."
        )
    return None
