"""Translates options into Orbax settings. The result can be printed, and used to call Orbax directly. Nothing is read or written."""

import copy
import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from jaxckpt.job import devices
from jaxckpt.job.agree import meeting
from jaxckpt.job.modes.mode import patient
from jaxckpt.options import (
    CheckpointOptions,
    MaxShardSizePolicy,
    OrbaxSettings,
    callbacks,
    checked_options,
    policy_of,
    sharding,
    sharding_callback_of,
)
from jaxckpt.saving import snapshot
from jaxckpt.storage import orbax as orbax_api
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree import flatten

_NOTHING = "no setting of Orbax"


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
        return orbax_api.async_options(patient(self.array_settings) if meeting.several() else self.array_settings)

    @functools.cached_property
    def multiprocessing_options(self) -> Any:
        """The ocp.options.MultiprocessingOptions. In a job of several processes only the one that commits is active."""
        return orbax_api.multiprocessing_options(self.array_settings)

    def checkpointer(self) -> Any:
        """Builds an Orbax checkpointer with these settings, for code that calls Orbax itself.

        It saves and restores pytrees: ``checkpointer.save(path, args=ocp.args.PyTreeSave(tree))``. It does not run
        write callbacks. In a job of several processes it works only on the process that commits (the IO process, or process 0), and
        saves only arrays that lie completely on this process. `jaxckpt.Checkpoint` saves arrays that several processes share.

        Returns:
          An ocp.AsyncCheckpointer if `asynchronous`, otherwise an ocp.Checkpointer. The caller closes it.

        Raises:
          ValueError: this is not the process that commits. (A synchronous checkpointer raises it when it saves.)
        """

        def snapshot_of(item: Any) -> Snapshot:
            flat = flatten.flatten_item(item)
            for leaf in flat.leaves:
                if isinstance(leaf.value, jax.Array) and not leaf.value.is_fully_addressable:
                    raise ValueError(
                        f"{leaf.name}: parts of this array are on other processes, and this checkpointer would not save them. Save the "
                        "array with jaxckpt.Checkpoint."
                    )
            taken = snapshot.take([flat], copy=self.asynchronous)
            return sharding.arranged(taken, self.sharding_callback, jax.process_index(), jax.process_count() > 1)

        return orbax_api.checkpointer(self.array_settings, snapshot_of)

    def __str__(self) -> str:
        rows = {**_tensorflow_rows(self), **_orbax_rows(self)}
        return "\n".join(f"{name} = {value}\n  -> {result}\n     {why}" for name, (value, result, why) in rows.items())


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
    if checked_options(options) is None:
        raise TypeError("options must be a jaxckpt.CheckpointOptions, got None.")
    # The options checked the list when they were created, but the program may have changed it in place.
    callbacks.check_callbacks(options.experimental_write_callbacks)
    orbax = options.orbax or OrbaxSettings()
    policy = policy_of(options.experimental_sharding_callback)
    limit = policy.max_shard_size if isinstance(policy, MaxShardSizePolicy) else None
    settings = WriteSettings(
        asynchronous=options.enable_async,
        io_process=devices.resolve_process(options.experimental_io_device),
        compression=orbax.compression,
        chunk_byte_size=_smallest(orbax.chunk_byte_size, orbax.memory_limit_bytes, limit),
        target_data_file_size=_smallest(orbax.target_data_file_size, limit),
        max_file_size=limit,
        memory_limit_bytes=orbax.memory_limit_bytes,
        timeout_secs=orbax.timeout_secs,
    )
    # The process that does all file access reads for all.
    once = orbax.read_once_per_job if settings.io_process is None else True
    return OrbaxTranslation(copy.copy(options), settings, orbax.exit_timeout_secs, once)


def _smallest(*sizes: int | None) -> int:
    return min(size for size in sizes if size is not None)


# By option: its value, what it turns into, and why.
_Rows: TypeAlias = dict[str, tuple[str, str, str]]


def _tensorflow_rows(translation: OrbaxTranslation) -> _Rows:
    options = translation.options
    names = [callbacks.describe(each) for each in options.experimental_write_callbacks or ()]
    return {
        "experimental_io_device": (repr(options.experimental_io_device), *_io_device(translation)),
        "enable_async": (str(options.enable_async), *_async(translation)),
        "experimental_write_callbacks": (
            f"[{', '.join(names)}]" if names else str(options.experimental_write_callbacks),
            _NOTHING,
            "jaxckpt runs them after the commit. Orbax's post_finalization_callback runs before the commit and gets no path.",
        ),
        "experimental_skip_slot_variables": (
            str(options.experimental_skip_slot_variables),
            _NOTHING,
            "Only for restoring: if True, the optimizers' slot variables (such as moments) keep their current values. A save stores them.",
        ),
        "experimental_sharding_callback": (
            repr(policy_of(options.experimental_sharding_callback))
            if translation.sharding_callback is None
            else sharding.describe(translation.sharding_callback),
            *_sharding(translation),
        ),
    }


def _io_device(translation: OrbaxTranslation) -> tuple[str, str]:
    process, options = translation.io_process, translation.multiprocessing_options
    arguments = f"primary_host={options.primary_host}, active_processes={options.active_processes}"
    result = f"ocp.options.MultiprocessingOptions({arguments})"
    if process is None:
        commits = " Process 0 commits." if jax.process_count() > 1 else ""
        return result, f"Every process writes its own shards into a directory that all processes see.{commits}"
    if jax.process_count() == 1:
        return (
            result,
            f"Process {process} does all file access. It is the only process of this job, so this changes nothing.",
        )
    return result, f"Process {process} does all file access; the other processes send it their shards."


def _async(translation: OrbaxTranslation) -> tuple[str, str]:
    where = ""
    if jax.process_count() > 1:
        where = f" on process {orbax_api.committing_process(translation.array_settings)}"
    bucket = "A save to a bucket does not use it."
    if translation.asynchronous:
        why = "save() returns once later changes of the values cannot reach the checkpoint; the files are written in the background."
        return f"ocp.AsyncCheckpointer{where}", f"{why} {bucket}"
    return f"ocp.Checkpointer{where}", f"save() returns when the checkpoint is committed. {bucket}"


def _sharding(translation: OrbaxTranslation) -> tuple[str, str]:
    settings = translation.array_settings
    if translation.sharding_callback is not None:
        return (
            "one set of data files per group",
            "The callback divides the tensors that a process writes into groups.",
        )
    if settings.max_file_size is None:
        return "one set of data files per process", "The default, as in Orbax."
    why = "Orbax has no such limit; jaxckpt chooses chunks and data files that stay below it. Restoring does not need the policy."
    return f"data files of at most {settings.max_file_size} bytes", why


def _about_reading(translation: OrbaxTranslation) -> str:
    if translation.io_process is not None:
        return "The process of experimental_io_device reads for all, whatever this setting says."
    if translation.read_once_per_job is None:
        return "In a job, what several processes want is read once from buckets and disks of other machines, and by each from others."
    if translation.read_once_per_job:
        return "In a job, one process reads what several want, and passes it on."
    return "In a job, every process reads what it wants itself."


def _orbax_rows(translation: OrbaxTranslation) -> _Rows:
    orbax, settings = translation.options.orbax or OrbaxSettings(), translation.array_settings
    timeout, about_timeout = (
        _NOTHING,
        "Limits every wait of a save or restore. Some of Orbax's own waits have no limit.",
    )
    if translation.asynchronous:
        timeout = f"ocp.AsyncOptions(timeout_secs={translation.async_options.timeout_secs})"
        if jax.process_count() > 1:
            about_timeout = "Limits every wait of a save or restore. Orbax's limit is longer, so that jaxckpt can name a late process."
    codecs = "bytes, crc32c" if settings.compression is None else f"bytes, {settings.compression}, crc32c"
    smaller = (
        " It is smaller than the option, to stay below a limit."
        if settings.chunk_byte_size < orbax.chunk_byte_size
        else ""
    )
    data_files, about_data_files = "one file per chunk, no OCDBT", "An OCDBT data file would exceed so small a limit."
    if layout.uses_ocdbt(settings):
        data_files = f"OCDBT target_data_file_size={layout.target_data_file_size(settings)}"
        about_data_files = "A data file is closed once it holds this many bytes."
    rows = {
        "timeout_secs": (
            timeout,
            about_timeout,
        ),
        "exit_timeout_secs": (
            _NOTHING,
            "When the program ends, Orbax does not wait, and the checkpoint is lost. jaxckpt waits this many seconds.",
        ),
        "compression": (f"zarr codecs {codecs}", "The crc32c of every chunk lets any reader detect a flipped bit."),
        "chunk_byte_size": (
            f"zarr chunks of at most {layout.largest_chunk(settings)} bytes",
            f"A chunk is written, checksummed and read as a unit, several in parallel.{smaller}",
        ),
        "target_data_file_size": (data_files, about_data_files),
        "memory_limit_bytes": (
            _NOTHING,
            "Limits the memory of a save in the background, besides its snapshot, and of arrays on their way to devices in a restore.",
        ),
    }
    rows["read_once_per_job"] = (_NOTHING, _about_reading(translation))
    return {f"orbax.{name}": (repr(getattr(orbax, name)), *row) for name, row in rows.items()}
