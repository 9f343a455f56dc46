"""The only module that touches names which Orbax and JAX do not promise to keep. Every use is probed, and a break says so clearly."""

import functools
import importlib
from typing import Any, NamedTuple

_TESTED = "0.12.8"


def _import(module: str, name: str) -> Any:
    try:
        return getattr(_imported(module), name)
    except (ImportError, AttributeError) as error:
        import orbax.checkpoint as ocp

        raise ImportError(
            f"jaxckpt uses {module}.{name}, which orbax-checkpoint {ocp.__version__} does not have (jaxckpt was tested with {_TESTED}). "
            "Install a version of orbax-checkpoint that jaxckpt supports, or a newer jaxckpt."
        ) from error


def _imported(module: str) -> Any:
    """Imports a module after the packages that it is in.

    Python waits for a package that another thread is importing only if the package itself is asked for; a submodule alone is
    executed at once, and sees the unfinished package.
    """
    found: Any = None
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        found = importlib.import_module(".".join(parts[:length]))
    return found


def sharding_text(sharding: Any) -> str | None:
    """Returns the text that Orbax's ``_sharding`` file holds for a jax.sharding.Sharding, or None if it has no form for it."""
    if type(sharding).__name__ not in ("NamedSharding", "SingleDeviceSharding"):
        return None  # Orbax stores no others either; it restores such arrays with a target only.
    convert = _import("orbax.checkpoint._src.metadata.sharding", "from_jax_sharding")
    found = convert(sharding)
    return None if found is None else str(found.to_serialized_string())


def base_handler() -> type[Any]:
    """Returns Orbax's implementation of a PyTree handler, which ours extends (exported, but marked internal)."""
    found: type[Any] = _import("orbax.checkpoint", "BasePyTreeCheckpointHandler")
    for method in ("async_save", "save", "restore", "finalize", "metadata"):
        if not callable(getattr(found, method, None)):
            _import("orbax.checkpoint.BasePyTreeCheckpointHandler", method)
    return found


@functools.cache
def uncounted(checkpointer: type[Any]) -> type[Any]:
    """Returns the same kind of Orbax checkpointer, for saves that one process of a job makes alone: Orbax does not count them.

    Orbax numbers the operations of every process, and makes names from the number that the processes of a job then wait for. A process
    that counts a save which the others do not make waits for other names than they do, at the next save of the whole job, and for ever.
    To count on the others too would not do: a save in the background, and one that fails, is counted at another moment on each process.
    Our saves use no such name, because their directories are made before they begin (see `jaxckpt.storage.orbax.async_options`).

    Args:
      checkpointer: ocp.Checkpointer or ocp.AsyncCheckpointer.

    Raises:
      ImportError: this version of Orbax counts in another place.
    """
    count = "synchronize_next_awaitable_signal_operation_id"
    if not callable(getattr(checkpointer, count, None)):
        _import(f"orbax.checkpoint.{checkpointer.__name__}", count)
    return type(checkpointer.__name__, (checkpointer,), {count: _count_nothing, "__module__": __name__})


def _count_nothing(checkpointer: Any) -> None:
    """Stands for Orbax's method that counts an operation."""


def is_no_trace_active() -> bool:
    """Whether JAX certainly neither traces nor transforms the caller. A short cut: False where this version of JAX does not say."""
    probe = getattr(importlib.import_module("jax._src.core"), "trace_state_clean", None)
    return callable(probe) and bool(probe())


class Coordination(NamedTuple):
    """JAX's coordination service.

    Attributes:
      client: the key-value store: ``key_value_set_bytes``, ``blocking_key_value_get_bytes``, ``key_value_delete``.
      address: ``host:port`` of the coordinator, or None.
    """

    client: Any
    address: str | None


def coordination() -> Coordination | None:
    """Returns JAX's coordination service, or None if ``jax.distributed.initialize`` has not been called."""
    import jax

    try:
        state = _imported("jax._src.distributed").global_state
        client, address = state.client, state.coordinator_address
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"jaxckpt uses jax._src.distributed.global_state, which JAX {jax.__version__} does not have. Install a version of JAX that "
            "jaxckpt supports, or a newer jaxckpt."
        ) from error
    for method in ("key_value_set_bytes", "blocking_key_value_get_bytes", "key_value_delete"):
        if client is not None and not callable(getattr(client, method, None)):
            raise ImportError(
                f"jaxckpt uses {method} of JAX's distributed client, which JAX {jax.__version__} does not have. Install a version of "
                "JAX that jaxckpt supports, or a newer jaxckpt."
            )
    return None if client is None else Coordination(client, address)


def as_weak(array: Any) -> Any:
    """Returns a weakly typed jax.Array with the buffers of `array`, which must not be used any more.

    JAX has no public way to do so that is not a computation. A computation would change memory kinds, and every process of a job would
    have to run it. JAX's own unpickling replaces the attribute `aval`; JAX's cache of compiled operations then still takes the array for
    one that is not weakly typed, so that the result of an operation would depend on what the program has done before.
    """
    import jax

    try:
        weak = type(array)(
            array.aval.update(weak_type=True),
            array.sharding,
            array._arrays,
            committed=array.committed,
            _skip_checks=True,
        )
    except (AttributeError, TypeError) as error:
        raise _no_weak_types(jax.__version__) from error
    if not weak.weak_type:
        raise _no_weak_types(jax.__version__)
    return weak


def _no_weak_types(version: str) -> ImportError:
    return ImportError(
        f"jaxckpt makes a jax.Array of an aval, a sharding and _arrays, which JAX {version} does not permit like this. Install a version "
        "of JAX that jaxckpt supports, or a newer jaxckpt."
    )
