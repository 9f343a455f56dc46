"""jaxckpt's engine for programs that keep their Orbax code: checksums, durability and speed by one line.

>>> manager = ocp.CheckpointManager(path, item_names=("state",), item_handlers={"state": jaxckpt.orbax.PyTreeHandler()})
"""

from typing import Any

from jaxckpt.options import CheckpointOptions
from jaxckpt.storage.handlers import v1
from jaxckpt.translate import to_orbax

__all__ = ["PyTreeHandler", "StandardHandler", "v1_handler", "v1_registry"]


class PyTreeHandler:
    """A handler for ``ocp.CheckpointManager``, ``ocp.Checkpointer`` and ``ocp.AsyncCheckpointer`` that writes with jaxckpt's engine.

    It behaves as ``ocp.PyTreeCheckpointHandler``, and is an instance of it, because Orbax finds a handler's arguments by its exact class:

    * It takes ``ocp.args.PyTreeSave`` and ``PyTreeRestore``; where Orbax lets a handler choose (a checkpointer, a handler registry), also
      ``StandardSave`` and ``StandardRestore``. For ``item_handlers=`` and these, use `StandardHandler`.
    * Names and types on disk are Orbax's for the same tree, so plain Orbax restores it with the same target, and this handler restores
      what plain Orbax wrote.
    * Every chunk has a checksum, the metadata have digests (``_JAXCKPT``), and everything is synced before Orbax commits. A restore
      checks both, and raises an error for what it finds damaged.
    * An asynchronous save copies host memory (numpy) before ``save`` returns, whatever the options say. The end of the program waits
      for it.
    * In a job of several processes all of them call, as Orbax wants, on a directory that all of them see.

    Args:
      options: the options. `enable_async` has no effect here: the checkpointer decides. None for the defaults.

    Raises:
      TypeError: `options` is not a CheckpointOptions.
      ValueError: an option is not possible with a handler: write callbacks, `experimental_skip_slot_variables`. The message names it.
    """

    def __new__(cls, options: CheckpointOptions | None = None) -> Any:
        return to_orbax(CheckpointOptions() if options is None else options).handler()


class StandardHandler:
    """`PyTreeHandler` for ``ocp.args.StandardSave`` and ``StandardRestore`` where Orbax knows one pair per handler: ``item_handlers=``.

    It is an instance of ``ocp.StandardCheckpointHandler``.

    Args:
      options: see `PyTreeHandler`.

    Raises:
      TypeError: `options` is not a CheckpointOptions.
      ValueError: an option is not possible with a handler; see `PyTreeHandler`.
    """

    def __new__(cls, options: CheckpointOptions | None = None) -> Any:
        return to_orbax(CheckpointOptions() if options is None else options).standard_handler()


def v1_handler(options: CheckpointOptions | None = None) -> type[Any]:
    """Returns a class of handlers for Orbax's new interface (``from orbax.checkpoint import v1``), to be registered there.

    What is said of `PyTreeHandler` holds for it, too. The settings for saving arrays and trees in a ``v1.Context`` are honoured, or refused
    with their names.

    Orbax looks up trees by name first. ``v1.handlers.register_handler(v1_handler())`` is asked for every tree that
    ``save_checkpointables`` saves under a name without a handler of its own. ``v1.save``, ``save_async`` and ``training.Checkpointer`` save
    under the name ``state``, for which Orbax has registered its own handler: for these, use `v1_registry`.

    Args:
      options: see `PyTreeHandler`.

    Raises:
      TypeError: `options` is not a CheckpointOptions.
      ValueError: an option is not possible with a handler; see `PyTreeHandler`.
    """
    return to_orbax(CheckpointOptions() if options is None else options).handler_class()


def v1_registry(options: CheckpointOptions | None = None) -> Any:
    """Returns Orbax's registry of v1 handlers, with jaxckpt's handler in the place of Orbax's handler for trees.

    >>> context = v1.Context()
    >>> context.checkpointables.registry = jaxckpt.orbax.v1_registry()
    >>> with context:
    ...     v1.save(path, state)

    Args:
      options: see `PyTreeHandler`.

    Raises:
      TypeError: `options` is not a CheckpointOptions.
      ValueError: an option is not possible with a handler; see `PyTreeHandler`.
    """
    return v1.registry(v1_handler(options))
