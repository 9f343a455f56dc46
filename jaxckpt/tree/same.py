"""Whether two values for one object are the same."""

from typing import Any

import jax
import numpy as np

from jaxckpt.tree.kinds import Kind, is_key_dtype, kind_of


def require_same(one: tuple[str, Any], other: tuple[str, Any]) -> None:
    """Requires that two values which were stored for one object are the same, bit for bit.

    Args:
      one, other: name of the leaf, and what is stored for it.

    Raises:
      ValueError: they differ; names both.
    """
    (name, value), (other_name, other_value) = one, other
    if not _same(value, other_value):
        raise ValueError(
            f"{name} and {other_name} are one object of this program, which can have one value only, but the checkpoint holds two "
            "different ones. An nnx.state(model) shares the Variables of the model. Give the Checkpoint a copy under one of the names: "
            "nnx.clone(model), or jax.tree.map(lambda x: x, nnx.state(model))."
        )


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    kind = kind_of(one)
    if kind is not kind_of(other):
        return False
    if kind is Kind.JAX:
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if is_key_dtype(one.dtype):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        # What other processes hold, they compare. The targets are one array, so both lie on the devices in the same way.
        pairs = zip(one.addressable_shards, other.addressable_shards, strict=True)
        return all(_same_bytes(left.data, right.data) for left, right in pairs)
    if kind in (Kind.STR, Kind.BYTES):
        return bool(one == other)
    return _same_bytes(one, other)


def _same_bytes(one: Any, other: Any) -> bool:
    # Bytes: nan is itself, and -0.0 is not 0.0.
    left, right = np.asarray(jax.device_get(one)), np.asarray(jax.device_get(other))
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return bool(np.array_equal(_bytes(left), _bytes(right)))


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
