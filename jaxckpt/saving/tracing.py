"""Detects calls from functions that JAX traces instead of running."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxckpt.leaf_kinds.refused import TRACED
from jaxckpt.leaf_kinds.registry import kind_of, refusal
from jaxckpt.storage import compat


def is_traced() -> bool:
    """Returns whether JAX is tracing the caller (jax.jit, lax.scan, eval_shape): then the call would not happen when the function runs.

    False inside jax.grad and jax.vmap alone, which call the function each time; under jax.disable_jit and
    jax.ensure_compile_time_eval; and in host callbacks.
    """
    if compat.is_no_trace_active():
        return False
    # While JAX traces, an operation on numbers is recorded and returns a tracer; otherwise it returns the sum.
    with jax.transfer_guard("allow"):
        return isinstance(jax.lax.add(np.int32(1), np.int32(1)), jax.core.Tracer)


def refuse(action: str, values: Callable[[], Iterable[tuple[str, Any]]]) -> None:
    """Refuses a call inside a function that JAX traces: it would run once, during tracing, without any sign that later runs skip it.

    Args:
      action: the call, such as "save".
      values: returns names and values of the leaves.

    Raises:
      TypeError: JAX traces the caller. The message names the first leaf that is traced, if there is one.
    """
    if not is_traced():
        return
    for name, value in values():
        if kind_of(value) is TRACED:
            raise TypeError(f"{name}: {refusal(value, action)}")
    raise TypeError(
        f"{action} was called inside a function that JAX traces (jax.jit, jax.lax.scan, jax.eval_shape or the like). It would happen "
        f"once, while JAX traces the function, and not when the compiled function runs. Call {action} outside of the function, or from "
        "a host callback: jax.experimental.io_callback."
    )
