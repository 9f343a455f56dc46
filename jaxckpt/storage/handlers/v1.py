"""The handler for Orbax's new interface (``from orbax.checkpoint import v1``). It takes classes, which it creates without arguments."""

import asyncio
import dataclasses
import functools
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from jaxckpt.storage import compat, quiet
from jaxckpt.storage.handlers import engine
from jaxckpt.storage.handlers.arguments import SaveArguments, target_size
from jaxckpt.storage.handlers.engine import Engine

# What the engine takes from a context, or what does not concern it, because Orbax does it, or because it holds anyway.
_HONOURED = {
    "array.saving": {
        "storage_options",
        "scoped_storage_options_creator",
        "ocdbt_target_data_file_size",
        "enable_post_merge_validation",
    },
    "pytree.saving": set(),
    "memory": {"read_concurrent_bytes", "expected_surge_bytes"},
}
_numbers = itertools.count()


def handler_class(make: Callable[[], Engine]) -> type[Any]:
    """Returns a class of handlers for trees, to be registered with Orbax.

    Its name is that of Orbax's own handler, because Orbax writes it into checkpoints and looks it up when it loads them. So programs
    without jaxckpt load them too.

    Args:
      make: makes the engine of one handler.
    """
    from orbax.checkpoint import v1 as ocp

    class PyTreeHandler(ocp.handlers.CheckpointableHandler):  # type: ignore[misc]
        """Writes trees with jaxckpt's engine; loads and describes as Orbax's PyTreeHandler does."""

        def __init__(self) -> None:
            quiet.install()
            self._context = compat.active_context()
            self._engine = make()
            self._plain = ocp.handlers.PyTreeHandler()

        async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
            given = _arguments(self._context, checkpointable)
            write = self._engine.begin(str(directory.path), given, copy=True)
            # Processes save in the same order, so they count alike.
            return self._complete(directory, write, next(_numbers))

        async def _complete(self, directory: Any, write: Callable[[float | None], None], number: int) -> None:
            """Writes in the background, after Orbax has made the directory."""
            path = str(await directory.await_creation())
            timeout = self._context.asynchronous.timeout_secs
            await asyncio.to_thread(write, timeout)
            await self._meet(f"{number}.{directory.path.name}.written")
            primary = self._context.multiprocessing.primary_host
            if self._engine.is_alone or ocp.multihost.is_primary_host(primary):
                await asyncio.to_thread(self._engine.finalize, path)
            await self._meet(f"{number}.{directory.path.name}.completed")

        async def _meet(self, name: str) -> None:
            """Waits for the other processes of the job."""
            if self._engine.is_alone:
                return
            processes = self._context.multiprocessing.active_processes
            timeout = self._context.asynchronous.timeout_secs
            await asyncio.to_thread(_barrier, f"jaxckpt.{name}", processes, timeout)

        async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
            await asyncio.to_thread(engine.check, str(directory))
            found: Awaitable[Any] = await self._plain.load(directory, abstract_checkpointable)
            return found

        async def metadata(self, directory: Any) -> Any:
            return await self._plain.metadata(directory)

        def is_handleable(self, checkpointable: Any) -> bool:
            return bool(self._plain.is_handleable(checkpointable))

        def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
            found: bool | None = self._plain.is_abstract_handleable(abstract_checkpointable)
            return found

    PyTreeHandler.__module__ = ocp.handlers.PyTreeHandler.__module__
    PyTreeHandler.__qualname__ = ocp.handlers.PyTreeHandler.__qualname__
    return PyTreeHandler


def registry(handler: type[Any]) -> Any:
    """Returns a registry like Orbax's global one, in which a handler takes the place of Orbax's handler for trees.

    Args:
      handler: as `handler_class` returns it.
    """
    from orbax.checkpoint import v1 as ocp

    known = ocp.handlers.global_registry()
    found = ocp.handlers.local_registry(include_global_registry=False)
    for kind, name in known.get_all_entries():
        mine = handler if kind is ocp.handlers.PyTreeHandler else kind
        found.add(mine, checkpointable_name=name, secondary_typestrs=known.get_secondary_typestrs(kind))
    return found


def _arguments(context: Any, item: Any) -> SaveArguments:
    """Returns the arguments of a save. Raises ValueError if the context asks for something that the engine cannot do."""
    from orbax.checkpoint import v1 as ocp

    defaults = ocp.Context()
    for section, honoured in _HONOURED.items():
        given, default = _section(context, section), _section(defaults, section)
        for field in dataclasses.fields(default):
            value = getattr(given, field.name)
            if field.name not in honoured and not _is_default(value, getattr(default, field.name)):
                raise ValueError(
                    f"Context.{section}.{field.name}: jaxckpt's handler cannot do this ({value!r}). Leave it out, or save with Orbax's "
                    "own handler."
                )
    saving = context.array.saving
    size = target_size(saving.ocdbt_target_data_file_size)
    return SaveArguments(item, _save_args(saving, item), None, size)


def _section(context: Any, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), context)


def _is_default(value: Any, default: Any) -> bool:
    # An object that each context creates for itself says nothing by its identity.
    return value is default or (type(value) is type(default) and (value == default or not _has_value(value)))


def _has_value(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, tuple)) or dataclasses.is_dataclass(value)


def _save_args(saving: Any, item: Any) -> Any:
    """Returns the storage options of each leaf, as arguments of Orbax's first interface."""
    import jax
    import orbax.checkpoint as ocp

    common, scoped = saving.storage_options, saving.scoped_storage_options_creator

    def args_of(path: Any, leaf: Any) -> Any:
        own = None if scoped is None else scoped(path, leaf)
        found = {}
        for name in ("dtype", "chunk_byte_size", "shard_axes"):
            value = None if own is None else getattr(own, name)
            if value is None and common is not None:
                value = getattr(common, name)
            if value is not None:
                found[name] = value
        return ocp.SaveArgs(**found)

    if scoped is None and (common is None or common == type(common)()):
        return None
    return jax.tree_util.tree_map_with_path(args_of, item)


def _barrier(name: str, processes: set[int] | None, timeout: float) -> None:
    import jax
    import orbax.checkpoint as ocp

    # With processes given, Orbax waits through the coordination service instead of a collective, which would meet those of the training.
    everyone = processes or set(range(jax.process_count()))
    wait = ocp.multihost.get_barrier_sync_fn(processes=everyone)
    wait(key=name, timeout_ms=int(timeout * 1000))
