"""Options -> Orbax settings: a pure step whose result can be read, printed, and used with Orbax directly."""

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
      exit_timeout_secs: how many seconds the end of the program waits for an asynchronous save.
    """

    options: CheckpointOptions
    array_settings: WriteSettings
    exit_timeout_secs: float

    @property
    def asynchronous(self) -> bool:
        """Whether saving continues in the background."""
        return self.array_settings.asynchronous

    @property
    def io_process(self) -> int | None:
        """Index of the process that does all file access; None if each process accesses its own shards."""
        return self.array_settings.io_process

    @property
    def sharding_callback(self) -> Any:
        """The sharding callback that is called with the tensors of a save, or None: policies are settings."""
        return sharding_callback_of(self.options)

    # Orbax's objects are made when they are asked for: importing Orbax can take longer than a restore.

    @functools.cached_property
    def async_options(self) -> Any:
        """The ocp.AsyncOptions that the checkpointer is given if it is asynchronous."""
        return orbax_api.async_options(patient(self.array_settings) if meeting.several() else self.array_settings)

    @functools.cached_property
    def multiprocessing_options(self) -> Any:
        """The ocp.options.MultiprocessingOptions: Orbax's defaults, or, among several processes, the one that commits alone."""
        return orbax_api.multiprocessing_options(self.array_settings)

    def checkpointer(self) -> Any:
        """Builds an Orbax checkpointer with these settings, for code that calls Orbax itself.

        It saves and restores pytrees: ``checkpointer.save(path, args=ocp.args.PyTreeSave(tree))``. It does not run
        write callbacks. In a job of several processes it works on the process that commits only (the IO process, or process 0), and
        saves what this process has whole; `jaxckpt.Checkpoint` saves what several have together.

        Returns:
          An ocp.AsyncCheckpointer exactly if `asynchronous`, otherwise an ocp.Checkpointer. The caller closes it.

        Raises:
          ValueError: on another process than the one that commits. A synchronous checkpointer raises it when it saves.
        """

        def snapshot_of(item: Any) -> Snapshot:
            flat = flatten.flatten_item(item)
            for leaf in flat.leaves:
                if isinstance(leaf.value, jax.Array) and not leaf.value.is_fully_addressable:
                    raise ValueError(
                        f"{leaf.name}: other processes have parts of this array, which this checkpointer would leave out. Save it with "
                        "jaxckpt.Checkpoint."
                    )
            taken = snapshot.take([flat], copy=self.asynchronous)
            return sharding.arranged(taken, self.sharding_callback, jax.process_index(), jax.process_count() > 1)

        return orbax_api.checkpointer(self.array_settings, snapshot_of)

    def __str__(self) -> str:
        rows = {**_tensorflow_rows(self), **_orbax_rows(self)}
        return "\n".join(f"{name} = {value}\n  -> {result}\n     {why}" for name, (value, result, why) in rows.items())


def to_orbax(options: CheckpointOptions) -> OrbaxTranslation:
    """Translates options into Orbax settings. Touches no file, and does not change the options.

    Args:
      options: what to translate.

    Returns:
      The settings. Print them to see what each option turned into, and why.

    Raises:
      TypeError: `options` is not a CheckpointOptions, or something that is not callable was put into its callbacks.
      ValueError: the device does not exist, or an unsuitable callable was put into the callbacks.
    """
    if checked_options(options) is None:
        raise TypeError("options must be a jaxckpt.CheckpointOptions, got None.")
    callbacks.check_callbacks(options.experimental_write_callbacks)  # The list may have been changed in place.
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
    return OrbaxTranslation(copy.copy(options), settings, orbax.exit_timeout_secs)


def _smallest(*sizes: int | None) -> int:
    return min(size for size in sizes if size is not None)


_Rows: TypeAlias = dict[str, tuple[str, str, str]]  # option: its value, what it turns into, why


def _tensorflow_rows(translation: OrbaxTranslation) -> _Rows:
    options = translation.options
    names = [callbacks.describe(each) for each in options.experimental_write_callbacks or ()]
    return {
        "experimental_io_device": (repr(options.experimental_io_device), *_io_device(translation)),
        "enable_async": (str(options.enable_async), *_async(translation)),
        "experimental_write_callbacks": (
            f"[{', '.join(names)}]" if names else str(options.experimental_write_callbacks),
            _NOTHING,
            "jaxckpt runs them after the commit. Orbax's post_finalization_callback runs before it, without the path.",
        ),
        "experimental_skip_slot_variables": (
            str(options.experimental_skip_slot_variables),
            _NOTHING,
            "Only for restoring: if True, moments of optimizers keep their fresh values. They are saved in any case.",
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
        return result, f"Every process writes its own shards, to a directory that all of them see.{commits}"
    if jax.process_count() == 1:
        return result, f"Process {process} does all file access. It is the only process of this job: nothing changes."
    return result, f"Process {process} does all file access; the other processes send it their shards."


def _async(translation: OrbaxTranslation) -> tuple[str, str]:
    where = ""
    if jax.process_count() > 1:
        where = f" on process {orbax_api.committing_process(translation.array_settings)}"
    bucket = "A bucket is written without it."
    if translation.asynchronous:
        why = "save returns once the values are safe from later changes; the files are written in the background."
        return f"ocp.AsyncCheckpointer{where}", f"{why} {bucket}"
    return f"ocp.Checkpointer{where}", f"save returns when the checkpoint is committed. {bucket}"


def _sharding(translation: OrbaxTranslation) -> tuple[str, str]:
    settings = translation.array_settings
    if translation.sharding_callback is not None:
        return (
            "one set of data files per group",
            "The callback puts the tensors that a process writes into groups.",
        )
    if settings.max_file_size is None:
        return "one set of data files per process", "The default, as in Orbax."
    why = "Orbax has no such limit; chunks and data files are laid out to stay below it. Restoring needs no policy."
    return f"data files of at most {settings.max_file_size} bytes", why


def _orbax_rows(translation: OrbaxTranslation) -> _Rows:
    orbax, settings = translation.options.orbax or OrbaxSettings(), translation.array_settings
    timeout, about_timeout = (
        _NOTHING,
        "Bounds every wait of a save or restore. Orbax leaves some of its waits without a bound.",
    )
    if translation.asynchronous:
        timeout = f"ocp.AsyncOptions(timeout_secs={translation.async_options.timeout_secs})"
        if jax.process_count() > 1:
            about_timeout = "Bounds every wait of a save or restore. Orbax is given more, so that a process that is late can be named."
    codecs = "bytes, crc32c" if settings.compression is None else f"bytes, {settings.compression}, crc32c"
    smaller = (
        " Smaller than asked for, to stay below a limit." if settings.chunk_byte_size < orbax.chunk_byte_size else ""
    )
    data_files, about_data_files = "one file per chunk, no OCDBT", "Only so can no data file outgrow so small a limit."
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
            "Orbax does not wait at the end of the program, and loses the checkpoint. jaxckpt waits this long.",
        ),
        "compression": (f"zarr codecs {codecs}", "The crc32c of every chunk lets any reader detect a flipped bit."),
        "chunk_byte_size": (
            f"zarr chunks of at most {layout.largest_chunk(settings)} bytes",
            f"A chunk is written, checksummed and read as a unit, several in parallel.{smaller}",
        ),
        "target_data_file_size": (data_files, about_data_files),
        "memory_limit_bytes": (_NOTHING, "Bounds what the background of a save holds beyond the snapshot."),
    }
    return {f"orbax.{name}": (repr(getattr(orbax, name)), *row) for name, row in rows.items()}
