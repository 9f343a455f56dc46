"""States of objects, as ``get_state()`` returns them ↔ one str or bytes.

Bytes are stored as they are, and JSON values as their JSON text. A state with values that JSON does not have, such as tuples and arrays,
is stored as the JSON text of an object with the single key `MARK`. In it, each such value is an object whose one key names its type::

    {"jaxckpt.state": {"dict": [["epoch", 3], ["window", {"tuple": [1, 2]}], ["buffer", {"numpy": ["<f4", [2], "AACAPwAAAEA="]}]]}}

In this form all dicts are written as objects with the key ``dict``, so that a key of the state is never mistaken for a type.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np

MARK = "jaxckpt.state"
_SCALARS = (type(None), bool, int, float, str)


class UnsupportedStateError(Exception):
    """The state cannot be stored so that it comes back unchanged."""


def encode(state: Any) -> str | bytes:
    """Returns the str or bytes that is stored for a state.

    Args:
      state: bytes, or None, bool, int, float, complex, str, bytes, numpy arrays and scalars, and jax.Arrays, in lists, tuples and
        dicts.

    Raises:
      UnsupportedStateError: the state holds a value of another type; the message names it.
    """
    if type(state) is bytes:
        return state
    try:
        if _is_json(state) and not (type(state) is dict and MARK in state):
            return json.dumps(state)
        return json.dumps({MARK: _encode(state, "")})
    except RecursionError as error:
        raise UnsupportedStateError("returned a state that is nested too deeply; does it contain itself?") from error


def decode(stored: str | bytes) -> Any:
    """Returns the state that `encode` was given.

    Raises:
      ValueError: `stored` is not the encoding of a state.
    """
    if isinstance(stored, bytes):
        return stored
    try:
        state = json.loads(stored)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if type(state) is not dict or state.keys() != {MARK}:
        return state
    try:
        return _decode(state[MARK])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"this version does not know its encoding ({type(error).__name__}: {error})") from error


def _is_json(state: Any) -> bool:
    """Whether a state comes back unchanged from JSON as Python writes it, which includes nan."""
    kind = type(state)
    if kind in _SCALARS:
        return True
    if kind is list:
        return all(map(_is_json, state))
    return kind is dict and all(type(key) is str for key in state) and all(map(_is_json, state.values()))


def _encode(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list:
        return [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if kind is tuple:
        return {"tuple": [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]}
    if kind is dict:
        return {
            "dict": [[_encode(key, f"{where} key"), _encode(item, f"{where}[{key!r}]")] for key, item in value.items()]
        }
    if kind is bytes:
        return {"bytes": _text(value)}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is np.ndarray:
        return {"numpy": _array(value, where)}
    if isinstance(value, np.generic):
        return {"numpy scalar": _array(np.asarray(value), where)}
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        return _jax_array(value, where)
    raise UnsupportedStateError(
        f"must return bytes or JSON values, which may also hold tuples, complex numbers, bytes, and numpy and JAX arrays (exactly these "
        f"types, not subclasses of them): state{where} is a {kind.__module__}.{kind.__qualname__}."
    )


def _jax_array(value: jax.Array, where: str) -> Any:
    if not value.is_fully_addressable:
        raise UnsupportedStateError(
            f"must return data of this process only: state{where} is a jax.Array that lies on devices of other processes too. "
            "Give the array to the Checkpoint under its own name."
        )
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = jax.device_get(jax.random.key_data(value))
        return {"jax key": [str(jax.random.key_impl(value)), _array(data, where)]}
    return {"jax": [*_array(jax.device_get(value), where), bool(value.weak_type)]}


def _array(array: np.ndarray, where: str) -> list[Any]:
    dtype = array.dtype
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
        raise UnsupportedStateError(f"returned an array of dtype {dtype}, which cannot be stored: state{where}.")
    return [_dtype_name(dtype), list(array.shape), _text(array.tobytes())]


def _dtype_name(dtype: np.dtype[Any]) -> str:
    # NumPy's own `dtype.str` describes the types of ml_dtypes as raw bytes.
    return dtype.name if hasattr(ml_dtypes, dtype.name) else dtype.str


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    return _DECODERS[tag](content)


def _decode_array(content: list[Any]) -> np.ndarray:
    name, shape, text = content
    dtype = np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
    # Copied, because an array over bytes is read-only.
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).reshape(shape).copy()


def _decode_jax(content: list[Any]) -> jax.Array:
    *content, is_weak = content
    data = _decode_array(content)
    array: jax.Array = jax.device_put(data)
    if array.dtype != data.dtype:
        raise ValueError(f'it holds a jax.Array of dtype {data.dtype}; set jax.config.update("jax_enable_x64", True)')
    if is_weak and data.ndim == 0:
        weak = jax.device_put(data.item())
        array = weak if weak.dtype == array.dtype else array
    return array


def _decode_key(content: list[Any]) -> jax.Array:
    impl, data = content
    key: jax.Array = jax.random.wrap_key_data(jax.device_put(_decode_array(data)), impl=impl)
    return key


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda items: tuple(map(_decode, items)),
    "dict": lambda pairs: {_decode(key): _decode(item) for key, item in pairs},
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "complex": lambda parts: complex(*parts),
    "numpy": _decode_array,
    "numpy scalar": lambda content: _decode_array(content)[()],
    "jax": _decode_jax,
    "jax key": _decode_key,
}
