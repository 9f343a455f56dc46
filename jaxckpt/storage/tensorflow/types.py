"""TensorFlow's numbers for the types of tensors. Pure."""

from typing import Any

import ml_dtypes
import numpy as np

STRING = 7
_NAMES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    STRING: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    14: "bfloat16",
    15: "qint16",
    16: "quint16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
    33: "float4_e2m1fn",
}


def _dtype(name: str) -> np.dtype[Any] | None:
    try:
        return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)
    except TypeError:
        # TensorFlow's own, such as "qint8"; or an older ml_dtypes does not have it.
        return None


_DTYPES = {number: dtype for number, name in _NAMES.items() if number != STRING and (dtype := _dtype(name)) is not None}


def dtype_of(number: int) -> np.dtype[Any] | None:
    """Returns the numpy dtype of a type, in the byte order of this machine; None for a type that numpy does not have.

    Args:
      number: TensorFlow's number of the type.
    """
    return _DTYPES.get(number)


def name_of(number: int) -> str:
    """Returns TensorFlow's name of a type, for messages.

    Args:
      number: TensorFlow's number of the type.
    """
    return _NAMES.get(number, f"number {number}")
