"""Translates options into Orbax settings. The result can be printed, and used to call Orbax directly. Nothing is read or written."""

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxckpt import explanation
from jaxckpt.job import devices
from jaxckpt.job.modes.mode import patient
from jaxckpt.options import (
    CheckpointOptions,
    MaxShardSizePolicy,
    OrbaxSettings,
    callbacks,
    checked_options,
    policy_of,
    sharding_callback_of,
)
from jaxckpt.saving import orbax_saves
from jaxckpt.storage import orbax as orbax_api
from jaxckpt.storage.handlers import v0 as handlers
from jaxckpt.storage.handlers import v1 as handlers_v1
from jaxckpt.storage.handlers.engine import Engine
from jaxckpt.storage.handlers.v0 import Write
from jaxckpt.storage.settings import WriteSettings


@dataclass(frozen=True)
class OrbaxTranslation:
    """The Orbax settings that options turn into. ``print(translation)`` explains each of them.

    Attributes:
      options: a copy of the options that were translated.
      array_settings: how arrays are written.
      exit_timeout_secs: most seconds that the program waits, when it ends, for an asynchronous save.
      read_once_per_job: whether one process reads what several want; None if the place of the checkpoint decides.
    """

    options: CheckpointOptions
    array_settings: WriteSettings
    exit_timeout_secs: float
    read_once_per_job: bool | None
    _processes: int | None = field(default=None, repr=False)

    @property
    def processes(self) -> int:
        """Number of processes of the job."""
        return jax.process_count() if self._processes is None else self._processes

    @property
    def asynchronous(self) -> bool:
        """Whether the checkpoint is written in the background."""
        return self.array_settings.asynchronous

    @property
    def io_process(self) -> int | None:
        """Index of the process that does all file access; None if each process accesses its own shards."""
        return self.array_settings.io_process

    @property
    def sharding_callback(self) -> Any:
        """The sharding callback that is called with the tensors of a save; None if the option is unset or is a built-in policy.

        The policies are translated into settings and are not called.
        """
        return sharding_callback_of(self.options)

    # Orbax's objects are created only when a caller asks for them: importing Orbax can take longer than a whole restore.

    @functools.cached_property
    def async_options(self) -> Any:
        """The ocp.AsyncOptions of the checkpointer; used only if it is asynchronous."""
        return orbax_api.async_options(patient(self.array_settings) if self.processes > 1 else self.array_settings)

    @functools.cached_property
    def multiprocessing_options(self) -> Any:
        """The ocp.options.MultiprocessingOptions. In a job of several processes only the one that commits is active."""
        return orbax_api.multiprocessing_options(self.array_settings, self.processes)

    def checkpointer(self) -> Any:
        """Builds an Orbax checkpointer with these settings, for code that calls Orbax itself.

        It saves and restores pytrees, with the handler that `handler` returns: ``checkpointer.save(path, args=ocp.args.PyTreeSave(tree))``.
        In a job of several processes all of them call it, as Orbax wants. With ``experimental_io_device`` it works only on the IO
        process, and saves only arrays that lie completely there; `jaxckpt.Checkpoint` saves arrays of the whole job from one process.

        Returns:
          An ocp.AsyncCheckpointer if `asynchronous`, otherwise an ocp.Checkpointer. The caller closes it.

        Raises:
          ValueError: an option is not possible here, see `handler`; or this is not the IO process. (A synchronous checkpointer raises
            the latter when it saves.)
        """
        is_shared = jax.process_count() > 1 and self.io_process is None
        return orbax_api.checkpointer(self.array_settings, self.handler(), is_shared=is_shared)

    def handler(self) -> Any:
        """Builds a handler that writes with jaxckpt's engine, for the checkpointers and checkpoint managers of Orbax.

        Names and types on disk are Orbax's for the same tree, and plain Orbax restores it. See `jaxckpt.orbax.PyTreeHandler`.

        Returns:
          An ocp.PyTreeCheckpointHandler. It takes ocp.args.PyTreeSave and PyTreeRestore, StandardSave and StandardRestore.

        Raises:
          ValueError: an option is not possible with a handler: write callbacks, `experimental_skip_slot_variables`. The message names it.
        """
        return handlers.pytree_handler(self._engine(), self._watch)

    def standard_handler(self) -> Any:
        """Builds the same handler as `handler`, but for ``item_handlers=`` and ocp.args.StandardSave and StandardRestore.

        Returns:
          An ocp.StandardCheckpointHandler.

        Raises:
          ValueError: an option is not possible with a handler; see `handler`.
        """
        return handlers.standard_handler(self._engine(), self._watch)

    def handler_class(self) -> type[Any]:
        """Builds the class of the same handler for Orbax's new interface (``orbax.checkpoint.v1``), which takes classes.

        Returns:
          A subclass of ``v1.handlers.CheckpointableHandler``. See `jaxckpt.orbax.v1_handler`.

        Raises:
          ValueError: an option is not possible with a handler; see `handler`.
        """
        orbax_saves.refuse(self.options)
        return handlers_v1.handler_class(self._engine)

    def _engine(self) -> Engine:
        return orbax_saves.engine_for(self.options, self.array_settings)

    def _watch(self, write: Write, directory: str) -> None:
        orbax_saves.watch(write, directory, self.exit_timeout_secs)

    def __str__(self) -> str:
        return explanation.text(self)


def to_orbax(options: CheckpointOptions) -> OrbaxTranslation:
    """Translates options into Orbax settings. Does not touch files, and does not change the options.

    Args:
      options: the options to translate.

    Returns:
      The settings. Print them to see the settings that each option turns into, and the reasons.

    Raises:
      TypeError: `options` is not a CheckpointOptions, or an element of its callbacks is not callable.
      ValueError: the device does not exist, or a callback cannot be called with one argument or none.
    """
    return translated(options, None)


def translated(options: CheckpointOptions, imagined: devices.Imagined | None) -> OrbaxTranslation:
    """Does the same as `to_orbax`, also for a job that does not run here.

    Args:
      options: the options to translate.
      imagined: the job; None for this one.

    Raises:
      TypeError: see `to_orbax`.
      ValueError: see `to_orbax`.
    """
    if checked_options(options) is None:
        raise TypeError("options must be a jaxckpt.CheckpointOptions, got None.")
    # The options checked the list when they were created, but the program may have changed it in place.
    callbacks.check_callbacks(options.experimental_write_callbacks)
    orbax = options.orbax or OrbaxSettings()
    policy = policy_of(options.experimental_sharding_callback)
    limit = policy.max_shard_size if isinstance(policy, MaxShardSizePolicy) else None
    settings = WriteSettings(
        asynchronous=options.enable_async,
        io_process=devices.resolve_process(options.experimental_io_device, imagined),
        compression=orbax.compression,
        chunk_byte_size=_smallest(orbax.chunk_byte_size, orbax.memory_limit_bytes, limit),
        target_data_file_size=_smallest(orbax.target_data_file_size, limit),
        max_file_size=limit,
        memory_limit_bytes=orbax.memory_limit_bytes,
        timeout_secs=orbax.timeout_secs,
    )
    # The process that does all file access reads for all.
    once = orbax.read_once_per_job if settings.io_process is None else True
    return OrbaxTranslation(
        copy.copy(options), settings, orbax.exit_timeout_secs, once, None if imagined is None else imagined.processes
    )


def _smallest(*sizes: int | None) -> int:
    return min(size for size in sizes if size is not None)
