"""The metrics that a program gives to a save: numbers by name."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxckpt._lib.arguments import type_name


def checked_metrics(metrics: Mapping[str, Any] | None) -> Callable[[], dict[str, int | float] | None]:
    """Checks metrics without waiting for those that a device still computes. A loop may give them at every step, and save seldom.

    Args:
      metrics: Python, numpy or JAX numbers by name; None for none.

    Returns:
      A function that returns the metrics as Python numbers, which JSON can hold. It waits for those that a device still computes.

    Raises:
      TypeError: it is not a mapping, a name is not text, or a value is not a real number. The message names the metric. The returned
        function raises it too, if a device cannot give a number.
    """
    if metrics is None:
        return lambda: None
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f'metrics must be a mapping from names to numbers, such as {{"loss": 0.3}}; got {type_name(metrics)}.'
        )
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"The name of a metric must be text, got {name!r}.")
        is_pending = isinstance(value, jax.Array) and value.shape == () and _is_real(value.dtype)
        found[name] = value if is_pending else _number(name, value)

    def numbers() -> dict[str, int | float]:
        for name, value in found.items():
            if isinstance(value, jax.Array):
                found[name] = _number(name, value)
        return found

    return numbers


def _is_real(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating))


def _number(name: str, value: Any) -> int | float:
    try:
        array = np.asarray(value)
    except Exception as error:
        raise TypeError(f"metrics[{name!r}] cannot be read as a number: {error}") from error
    # JAX knows the dtypes that numpy lacks, such as bfloat16.
    if array.shape == () and jnp.issubdtype(array.dtype, jnp.integer):
        return int(array)
    if array.shape == () and jnp.issubdtype(array.dtype, jnp.floating):
        return float(array)
    what = f"an array of {array.dtype} with shape {array.shape}" if array.shape else repr(value)
    raise TypeError(f"metrics[{name!r}] must be a real number, got {what}.")
