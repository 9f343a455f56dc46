"""Says in words what options are translated into, and why."""

from dataclasses import fields
from typing import TYPE_CHECKING, TypeAlias

from jaxckpt.options import CheckpointOptions, OrbaxSettings, callbacks, policy_of, sharding
from jaxckpt.storage import orbax as orbax_api
from jaxckpt.storage.item import layout

if TYPE_CHECKING:
    from jaxckpt.translate import OrbaxTranslation

_NOTHING = "no setting of Orbax"
_OPTIONS = (
    "experimental_io_device",
    "enable_async",
    "experimental_write_callbacks",
    "experimental_skip_slot_variables",
    "experimental_sharding_callback",
)


def text(translation: "OrbaxTranslation") -> str:
    """Returns a paragraph for each option: its value, what it turns into, and why.

    Args:
      translation: the translation of the options.
    """
    rows = {**_tensorflow_rows(translation), **_orbax_rows(translation)}
    untouched = _defaults(translation.options)
    return "\n".join(
        f"{name} = {value}{' (default)' if name in untouched else ''}\n  -> {result}\n     {why}"
        for name, (value, result, why) in rows.items()
    )


def _defaults(options: CheckpointOptions) -> set[str]:
    """Returns the options that have their default values, under the names of the rows of the explanation."""
    usual = CheckpointOptions()
    found = {name for name in _OPTIONS if getattr(options, name) == getattr(usual, name)}
    orbax = options.orbax or OrbaxSettings()
    for each in fields(OrbaxSettings):
        if getattr(orbax, each.name) == getattr(OrbaxSettings(), each.name):
            found.add(f"orbax.{each.name}")
    return found


# By option: its value, what it turns into, and why.
_Rows: TypeAlias = dict[str, tuple[str, str, str]]


def _tensorflow_rows(translation: "OrbaxTranslation") -> _Rows:
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


def _io_device(translation: "OrbaxTranslation") -> tuple[str, str]:
    process, options = translation.io_process, translation.multiprocessing_options
    arguments = f"primary_host={options.primary_host}, active_processes={options.active_processes}"
    result = f"ocp.options.MultiprocessingOptions({arguments})"
    if process is None:
        commits = " Process 0 commits." if translation.processes > 1 else ""
        return result, f"Every process writes its own shards into a directory that all processes see.{commits}"
    if translation.processes == 1:
        return (
            result,
            f"Process {process} does all file access. It is the only process of this job, so this changes nothing.",
        )
    return result, f"Process {process} does all file access; the other processes send it their shards."


def _async(translation: "OrbaxTranslation") -> tuple[str, str]:
    where = ""
    if translation.processes > 1:
        where = f" on process {orbax_api.committing_process(translation.array_settings)}"
    bucket = "A save to a bucket does not use it."
    if translation.asynchronous:
        why = "save() returns once later changes of the values cannot reach the checkpoint; the files are written in the background."
        return f"ocp.AsyncCheckpointer{where}", f"{why} {bucket}"
    return f"ocp.Checkpointer{where}", f"save() returns when the checkpoint is committed. {bucket}"


def _sharding(translation: "OrbaxTranslation") -> tuple[str, str]:
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


def _about_reading(translation: "OrbaxTranslation") -> str:
    if translation.io_process is not None:
        return "The process of experimental_io_device reads for all, whatever this setting says."
    if translation.read_once_per_job is None:
        return "In a job, what several processes want is read once from buckets and disks of other machines, and by each from others."
    if translation.read_once_per_job:
        return "In a job, one process reads what several want, and passes it on."
    return "In a job, every process reads what it wants itself."


def _orbax_rows(translation: "OrbaxTranslation") -> _Rows:
    orbax, settings = translation.options.orbax or OrbaxSettings(), translation.array_settings
    timeout, about_timeout = (
        _NOTHING,
        "Limits every wait of a save or restore. Some of Orbax's own waits have no limit.",
    )
    if translation.asynchronous:
        timeout = f"ocp.AsyncOptions(timeout_secs={translation.async_options.timeout_secs})"
        if translation.processes > 1:
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
