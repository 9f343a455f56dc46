"""Handlers for the checkpointers of Orbax's first interface (``ocp.Checkpointer``, ``ocp.AsyncCheckpointer``, ``ocp.CheckpointManager``).

Orbax finds the arguments of a handler by its exact type. So that a handler takes the arguments that programs already use, it is an instance
of Orbax's own class, with methods of ours.
"""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

from jaxckpt.storage import quiet
from jaxckpt.storage.handlers import arguments, engine
from jaxckpt.storage.handlers.arguments import SaveArguments
from jaxckpt.storage.handlers.engine import Engine
from jaxckpt.storage.item.tree_metadata import OWN


class Write:
    """A write of an asynchronous save, as a future for Orbax. The thread that asks for the result does the write.

    Attributes:
      thread: the thread of Orbax that does the rest of the save, once the write has begun; None before.
      error: what the write raised, if it failed.
    """

    def __init__(self, work: Callable[[float | None], None]) -> None:
        """Creates the future.

        Args:
          work: writes. Its argument is a time limit in seconds, or None.
        """
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self._work: Callable[[float | None], None] | None = work
        self._is_cancelled = False

    def result(self, timeout: float | None = None) -> None:
        """Writes, the first time. Raises its error each time.

        Args:
          timeout: time limit in seconds, besides the one of the settings.
        """
        if self._is_cancelled:
            raise concurrent.futures.CancelledError
        if self._work is not None:
            self.thread = threading.current_thread()
            work, self._work = self._work, None
            try:
                work(timeout)
            except BaseException as error:
                self.error = error
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """Gives the write up if it has not begun. A write that has begun ends by itself; Orbax does not commit it."""
        self._is_cancelled = self._work is not None


class _Methods:
    """The methods of Orbax's handler interface. `plain` is Orbax's own handler, which reads."""

    def __init__(self, made: Engine, plain: Any, began: Callable[[Write, str], None]) -> None:
        self._engine = made
        self._plain = plain
        self._began = began

    async def async_save(self, directory: Any, item: Any = None, save_args: Any = None, args: Any = None) -> list[Any]:
        given = self._given(item, save_args, args)
        write = self._engine.begin(str(directory), given, copy=True)
        if not self._engine.is_alone:
            return [_shared_write(write)]
        future = Write(write)
        self._began(future, str(directory))
        return [future]

    def save(self, directory: Any, item: Any = None, save_args: Any = None, args: Any = None) -> None:
        given = self._given(item, save_args, args)
        self._engine.begin(str(directory), given, copy=False)(None)

    def restore(self, directory: Any, *args: Any, **more: Any) -> Any:
        engine.check(str(directory))
        return self._reader(more.get("args")).restore(directory, *args, **more)

    def metadata(self, directory: Any) -> Any:

        found = self._plain.metadata(directory)
        custom = found.custom_metadata
        if not isinstance(custom, dict) or OWN not in custom:
            return found
        # The rest is what the program has stored.
        rest = {key: value for key, value in custom.items() if key != OWN} or None
        return type(found).build(found.tree, custom_metadata=rest, use_zarr3=found.use_zarr3)

    def finalize(self, directory: Any) -> None:
        self._engine.finalize(str(directory))

    def close(self) -> None:
        self._plain.close()

    def _given(self, item: Any, save_args: Any, args: Any) -> SaveArguments:
        raise NotImplementedError

    def _reader(self, args: Any) -> Any:
        return self._plain


class _PyTreeMethods(_Methods):
    def _given(self, item: Any, save_args: Any, args: Any) -> SaveArguments:
        import orbax.checkpoint as ocp

        _refuse_as_item(item, "PyTreeSave")
        if isinstance(args, ocp.args.StandardSave):
            return arguments.of_standard_save(args)
        return arguments.of_pytree_save(args or ocp.args.PyTreeSave(item, save_args))

    def _reader(self, args: Any) -> Any:
        import orbax.checkpoint as ocp

        return ocp.StandardCheckpointHandler() if isinstance(args, ocp.args.StandardRestore) else self._plain


class _StandardMethods(_Methods):
    def _given(self, item: Any, save_args: Any, args: Any) -> SaveArguments:
        import orbax.checkpoint as ocp

        _refuse_as_item(item, "StandardSave")
        if args is not None and not isinstance(args, ocp.args.StandardSave):
            raise ValueError(f"args: a StandardHandler takes ocp.args.StandardSave, got {type(args).__name__}.")
        return arguments.of_standard_save(args or ocp.args.StandardSave(item, save_args))


_NAMES = ("async_save", "save", "restore", "metadata", "finalize", "close")


def pytree_handler(made: Engine, began: Callable[[Write, str], None]) -> Any:
    """Returns an ``ocp.PyTreeCheckpointHandler`` that writes with an engine. It takes the arguments of StandardSave, too.

    Args:
      made: the engine.
      began: called with each write of an asynchronous save, and its directory.
    """
    import orbax.checkpoint as ocp

    quiet.install()
    plain = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    return _bound(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True), _PyTreeMethods(made, plain, began))


def standard_handler(made: Engine, began: Callable[[Write, str], None]) -> Any:
    """Returns an ``ocp.StandardCheckpointHandler`` that writes with an engine.

    Args:
      made: the engine.
      began: called with each write of an asynchronous save, and its directory.
    """
    import orbax.checkpoint as ocp

    quiet.install()
    return _bound(ocp.StandardCheckpointHandler(), _StandardMethods(made, ocp.StandardCheckpointHandler(), began))


def _bound(handler: Any, methods: _Methods) -> Any:
    for name in _NAMES:
        setattr(handler, name, getattr(methods, name))
    return handler


def _shared_write(write: Callable[[float | None], None]) -> Any:
    """Returns the future of a write of one process of a job. It begins once the process that commits has made the directory."""
    import asyncio

    from orbax.checkpoint import future

    async def work() -> None:
        await asyncio.to_thread(write, None)

    return future.CommitFutureAwaitingContractedSignals(work(), name="jaxckpt part")


def _refuse_as_item(item: Any, name: str) -> None:
    import orbax.checkpoint as ocp

    if isinstance(item, ocp.args.CheckpointArgs):
        raise ValueError(f"item: pass ocp.args.{name} by keyword: args=...")
