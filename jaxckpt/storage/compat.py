"""The only module that uses private names of Orbax and JAX. Each use is probed first; if a name is missing, the error says which."""

import contextlib
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

# Makes an array from its shards.
Assemble: TypeAlias = Callable[[Sequence[np.ndarray]], Any]
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
    """Imports a module, after importing each package above it.

    If another thread is still importing a package, an import of the package waits for it. An import of only its submodule does not wait,
    and the submodule sees the unfinished package.
    """
    found: Any = None
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        found = importlib.import_module(".".join(parts[:length]))
    return found


def sharding_text(sharding: Any) -> str | None:
    """Returns the text of a jax.sharding.Sharding in Orbax's file ``_sharding``; None if the file cannot hold it."""
    if type(sharding).__name__ not in ("NamedSharding", "SingleDeviceSharding"):
        # Orbax does not store other shardings either. It restores such arrays only with a target.
        return None
    if getattr(getattr(sharding, "spec", None), "reduced", None):
        # It says what becomes of the gradient of an array. The file cannot hold it, and an array lies on its devices as without it.
        import jax

        # Older versions of JAX do not have the attribute, and newer ones refuse to go through the axes of such a spec.
        axes = getattr(sharding.spec, "partitions", None)
        plain = jax.sharding.PartitionSpec(*(sharding.spec if axes is None else axes))
        sharding = jax.sharding.NamedSharding(sharding.mesh, plain, memory_kind=sharding.memory_kind)
    convert = _import("orbax.checkpoint._src.metadata.sharding", "from_jax_sharding")
    found = convert(sharding)
    return None if found is None else str(found.to_serialized_string())


def base_handler() -> type[Any]:
    """Returns Orbax's implementation of a PyTree handler, which ours extends. Orbax exports it, but marks it as internal."""
    found: type[Any] = _import("orbax.checkpoint", "BasePyTreeCheckpointHandler")
    for method in ("async_save", "save", "restore", "finalize", "metadata"):
        if not callable(getattr(found, method, None)):
            _import("orbax.checkpoint.BasePyTreeCheckpointHandler", method)
    return found


def active_context() -> Any:
    """Returns the active Context of Orbax's v1, or one with the defaults. A handler is created, and called, while it is active."""
    return _import("orbax.checkpoint.experimental.v1._src.context.context", "get_context")()


def wrap_background(checkpointer: Any, around: contextlib.AbstractContextManager[None]) -> None:
    """Lets the thread in which an ocp.AsyncCheckpointer saves run inside of a context manager. Only lines of the log depend on it.

    Does nothing if this version of Orbax starts its thread in another way.

    Args:
      checkpointer: the checkpointer, which saves once.
      around: the context manager.
    """
    manager = getattr(checkpointer, "_async_manager", None)
    work = getattr(manager, "_thread_func", None)
    if not callable(work):
        return

    def wrapped(*arguments: Any, **more: Any) -> Any:
        with around:
            return work(*arguments, **more)

    manager._thread_func = wrapped  # type: ignore[union-attr]


@functools.cache
def uncounted(checkpointer: type[Any]) -> type[Any]:
    """Returns a subclass of an Orbax checkpointer whose saves Orbax does not count. For saves that one process of a job makes alone.

    Every process counts its Orbax operations, and Orbax makes names of signals from the count. At a save of the whole job, the processes
    wait for these signals. If one process had counted a save that the others did not make, it would wait for other signals than they do,
    forever. Counting on the other processes too is not a solution: background saves, and saves that fail, would be counted at different
    moments on each process. Our saves do not use the signals, because their directories are made before they begin (see
    `jaxckpt.storage.orbax.async_options`).

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
    """Replaces Orbax's method that counts an operation."""


def is_no_trace_active() -> bool:
    """Whether JAX certainly is not tracing or transforming the caller. False if this version of JAX does not say; so only a shortcut."""
    probe = getattr(importlib.import_module("jax._src.core"), "trace_state_clean", None)
    return callable(probe) and bool(probe())


class Coordination(NamedTuple):
    """JAX's coordination service.

    Attributes:
      client: its key-value store, with ``key_value_set_bytes``, ``blocking_key_value_get_bytes`` and ``key_value_delete``.
      address: ``host:port`` of the coordinator, or None.
    """

    client: Any
    address: str | None


def coordination() -> Coordination | None:
    """Returns JAX's coordination service, or None if ``jax.distributed.initialize`` has not been called.

    Raises:
      ImportError: this version of JAX does not have the private names that are used.
    """
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


def assembler(shape: tuple[int, ...], dtype: Any, sharding: Any, devices: Sequence[Any]) -> Assemble | None:
    """Returns a function that makes a jax.Array from the shards of this process, which are numpy arrays, in one step.

    The public way is `jax.device_put` for the shards, and `jax.make_array_from_single_device_arrays`. For a small array it takes five
    times as long. JAX's own `make_array_from_callback` calls the same private function. Only speed depends on it.

    Args:
      shape: shape of the array.
      dtype: dtype of the array and of the shards.
      sharding: sharding of the array.
      devices: for each shard the device on which it will lie. They are all devices of this process that the sharding has.

    Returns:
      The function, which is called in `explicit_transfers`; None if this version of JAX does not have the private one, cannot tell the type
      of such an array, or changes the dtype (64 bits are not enabled).
    """
    import jax

    put = _batched_put()
    if put is None or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        return None
    try:
        # On a mesh with explicit axes, the type of an array includes its sharding.
        aval = jax.typeof(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding))
    except TypeError:
        return None
    places = list(devices)
    return lambda shards: put(aval, sharding, shards, places, True)


def put(arrays: Sequence[np.ndarray], places: Sequence[Any]) -> list[Any]:
    """Transfers arrays to devices, as `jax.device_put` does.

    For a small array, `jax.device_put` takes six times as long as the private function that it calls in the end. So it transfers the first
    array of each shape, dtype and place, with all of its checks. The others go the short way, and become like the first. Only speed
    depends on it.

    Args:
      arrays: the arrays.
      places: for each array a device, a sharding, or None to let JAX choose.

    Returns:
      The arrays on devices.
    """
    import jax

    short = _batched_put()
    if short is None:
        found: list[Any] = jax.device_put(list(arrays), list(places))
        return found
    first: dict[tuple[Any, ...], Any] = {}
    placed = []
    # What the last array was like: most often, the next one is like it.
    shape: Any = None
    dtype: Any = None
    there: Any = None
    like: Any = None
    with explicit_transfers():
        for array, place in zip(arrays, places, strict=True):
            if place is not there or array.shape != shape or array.dtype != dtype:
                shape, dtype, there = array.shape, array.dtype, place
                like = first.get((shape, dtype, place))
            if like is None:
                made = jax.device_put(array, place)
                device = made.sharding.device_set if made.dtype == array.dtype else ()
                like = (made.aval, made.sharding, list(device), made.committed) if len(device) == 1 else False
                first[shape, dtype, place] = like
            elif like:
                aval, sharding, devices, is_committed = like
                made = short(aval, sharding, [array], devices, is_committed)
            else:
                # JAX changes its dtype, or divides it.
                made = jax.device_put(array, place)
            placed.append(made)
    return placed


def _batched_put() -> Any:
    # JAX's function of the same name in jax._src.interpreters.pxla calls this one. It looks first for shards that are jax.Arrays: ours are
    # not, and looking takes a third of the time.
    try:
        found = getattr(importlib.import_module("jaxlib.xla_client"), "batched_device_put", None)
    except ImportError:
        return None
    return found if callable(found) and _explicit_scope() is not None else None


def explicit_transfers() -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which JAX takes the transfers of `assembler` for explicit ones, as those of `jax.device_put` are.

    So `jax.transfer_guard("disallow")` allows them, and "disallow_explicit" does not.
    """
    scope = _explicit_scope()
    return contextlib.nullcontext() if scope is None else scope()


def _explicit_scope() -> Any:
    scope = getattr(importlib.import_module("jax._src.config"), "explicit_device_put_scope", None)
    return scope if callable(scope) else None


def as_weak(array: Any) -> Any:
    """Returns a weakly typed jax.Array with the buffers of `array`.

    The public ways of JAX are computations: they would change memory kinds, and every process of a job would have to run them. JAX's own
    unpickling replaces the attribute `aval`. But then JAX's cache of compiled operations may still take the array for one that is not
    weakly typed, so the result of an operation would depend on what the program has done before.

    Args:
      array: a jax.Array, which must not be used any more.

    Raises:
      ImportError: this version of JAX does not allow it.
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
        f"jaxckpt makes a jax.Array from an aval, a sharding and _arrays, which JAX {version} does not permit like this. Install a version "
        "of JAX that jaxckpt supports, or a newer jaxckpt."
    )
