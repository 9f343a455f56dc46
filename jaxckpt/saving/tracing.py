"""Whether the program runs, or JAX traces it."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxckpt.leaf_kinds.refused import TRACED
from jaxckpt.leaf_kinds.registry import kind_of, refusal
from jaxckpt.storage import compat


def is_traced() -> bool:
    """Whether the caller runs only while JAX traces a function (jax.jit, lax.scan, eval_shape), and not when that function runs.

    False inside jax.grad and jax.vmap alone, which call the function each time; under jax.disable_jit and
    jax.ensure_compile_time_eval; and in host callbacks.
    """
    if compat.is_no_trace_active():
        return False
    # An operation on numbers, which is recorded, instead of done, only while JAX traces.
    with jax.transfer_guard("allow"):
        return isinstance(jax.lax.add(np.int32(1), np.int32(1)), jax.core.Tracer)


def refuse(action: str, values: Callable[[], Iterable[tuple[str, Any]]]) -> None:
    """Refuses a call that would happen once, at tracing, in silence.

    Args:
      action: the call, such as "save".
      values: returns names and values of the leaves.

    Raises:
      TypeError: JAX traces the caller; names the first leaf that is traced, if there is one.
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
