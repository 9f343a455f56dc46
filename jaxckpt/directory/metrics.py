"""The metrics that a program gives to a save: numbers by name."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxckpt._lib.arguments import type_name


def checked_metrics(metrics: Mapping[str, Any] | None) -> dict[str, int | float] | None:
    """Returns metrics as Python numbers, which JSON can hold. Waits for those that a device still computes.

    Args:
      metrics: Python, numpy or JAX numbers by name; None for none.

    Raises:
      TypeError: it is not a mapping, a name is not text, or a value is not a real number. The message names the metric.
    """
    if metrics is None:
        return None
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f'metrics must be a mapping from names to numbers, such as {{"loss": 0.3}}; got {type_name(metrics)}.'
        )
    found: dict[str, int | float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"The name of a metric must be text, got {name!r}.")
        found[name] = _number(name, value)
    return found


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
