"""Public functions: the content of a directory's state file, and its latest checkpoint."""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any, overload

from jaxckpt import storage
from jaxckpt._lib.arguments import StrPath, also_named
from jaxckpt.directory import foreign_runs, paths, state_file
from jaxckpt.directory.ask import ask, file_process
from jaxckpt.directory.state_file import UnreadableStateError
from jaxckpt.options import CheckpointOptions
from jaxckpt.storage import stores

# How often a state file is read again if the checkpoint that it names is deleted each time.
_LOOKS = 20
_logger = logging.getLogger("jaxckpt")


@dataclass(frozen=True)
class CheckpointState:
    """The content of a state file; mirrors TensorFlow's `CheckpointState`.

    Attributes:
      model_checkpoint_path: path of the latest checkpoint.
      all_model_checkpoint_paths: paths of the checkpoints that are listed, oldest first; the last one is the latest.
      all_model_checkpoint_timestamps: when each of them was registered, in seconds since the epoch.
      last_preserved_timestamp: of the last checkpoint that `keep_checkpoint_every_n_hours` preserved; 0.0 where the
        file has none.
      preserved_checkpoint_paths: paths of the checkpoints that no manager ever deletes (TensorFlow keeps no record of
        them).
    """

    model_checkpoint_path: str
    all_model_checkpoint_paths: list[str] = field(default_factory=list)
    all_model_checkpoint_timestamps: list[float] = field(default_factory=list)
    last_preserved_timestamp: float = 0.0
    preserved_checkpoint_paths: list[str] = field(default_factory=list)


@overload
def get_checkpoint_state(
    directory: StrPath, options: CheckpointOptions | str | None = None, *, latest_filename: str | None = None
) -> CheckpointState | None: ...
@overload
def get_checkpoint_state(
    *, checkpoint_dir: StrPath, options: CheckpointOptions | None = None, latest_filename: str | None = None
) -> CheckpointState | None: ...
@also_named("directory", "checkpoint_dir")
def get_checkpoint_state(
    directory: StrPath, options: CheckpointOptions | str | None = None, *, latest_filename: str | None = None
) -> CheckpointState | None:
    """Returns what the state file of a directory says (TensorFlow: `tf.train.get_checkpoint_state`).

    Args:
      directory: where the checkpoints are; TensorFlow's keyword `checkpoint_dir` is taken too.
      options: `experimental_io_device` says which process reads. A str here is `latest_filename`, TensorFlow's second argument.
      latest_filename: name of the state file; None for "checkpoint".

    Returns:
      The state, with every path joined with `directory`; None if there is no state file, or none that can be read (a
      warning is logged).

    Raises:
      TypeError: an argument of the wrong type.
      ValueError: the device in the options does not exist.
    """
    options, name = _which_file(options, latest_filename)
    file_process(options)
    directory = paths.checked_path(directory, "directory")
    found = ask(
        "get_checkpoint_state", _subject(directory, name), options, lambda: _asdict(_read_here(directory, name))
    )
    return None if found is None else CheckpointState(**found)


def _asdict(state: CheckpointState | None) -> dict[str, Any] | None:
    return None if state is None else asdict(state)


def _which_file(
    options: CheckpointOptions | str | None, latest_filename: str | None
) -> tuple[CheckpointOptions | None, str]:
    """Returns the options of a call and the name of the state file, either of which may be its second argument."""
    if isinstance(options, str):
        if latest_filename is not None:
            raise TypeError(f"latest_filename was given twice: {options!r} and {latest_filename!r}.")
        options, latest_filename = None, options
    name = state_file.FILE if latest_filename is None else latest_filename
    if not isinstance(name, str):
        raise TypeError(f"latest_filename must be a str or None, got {type(name).__name__}.")
    if not name or "\0" in name:
        raise ValueError(f"latest_filename must be the name of a file, got {name!r}.")
    return options, name


def _subject(directory: str, name: str) -> str:
    """Returns what a call is about: the processes of a job have to agree on it."""
    return directory if name == state_file.FILE else stores.join(directory, name)


def _read_here(directory: str, name: str = state_file.FILE) -> CheckpointState | None:
    directory = stores.spelled(directory)
    try:
        records = state_file.read(directory, name)
    except NotADirectoryError:
        # There is no such directory, and so no state file in it.
        return None
    except (OSError, UnreadableStateError) as error:
        _logger.warning("Ignoring the state file in %s: %s", directory, error)
        return None
    if records is None:
        return None
    listed = [stores.join(directory, name) for name in records.entries]
    preserved = [stores.join(directory, name) for name in sorted(records.kept)]
    return CheckpointState(listed[-1], listed, list(records.entries.values()), records.last_preserved, preserved)


@overload
def latest_checkpoint(
    directory: StrPath, options: CheckpointOptions | str | None = None, *, latest_filename: str | None = None
) -> str | None: ...
@overload
def latest_checkpoint(
    *, checkpoint_dir: StrPath, options: CheckpointOptions | None = None, latest_filename: str | None = None
) -> str | None: ...
@also_named("directory", "checkpoint_dir")
def latest_checkpoint(
    directory: StrPath, options: CheckpointOptions | str | None = None, *, latest_filename: str | None = None
) -> str | None:
    """Returns the path of the latest checkpoint of a directory (TensorFlow: `tf.train.latest_checkpoint`).

    The latest is the one that was saved last, not the one with the highest number.

    Args:
      directory: where the checkpoints are; TensorFlow's keyword `checkpoint_dir` is taken too.
      options: `experimental_io_device` says which process looks. A str here is `latest_filename`, TensorFlow's second argument.
      latest_filename: name of the state file; None for "checkpoint".

    Returns:
      The path, joined with `directory`; None if there is no directory, no state file that can be read, or if the
      checkpoint that it names is gone.

    Raises:
      TypeError: an argument of the wrong type.
      ValueError: the device in the options does not exist.
    """
    options, name = _which_file(options, latest_filename)
    file_process(options)
    directory = paths.checked_path(directory, "directory")
    return ask("latest_checkpoint", _subject(directory, name), options, lambda: latest_here(directory, name))


def latest_here(directory: str, name: str = state_file.FILE) -> str | None:
    state = _read_here(directory, name)
    for _ in range(_LOOKS):
        if state is None or storage.is_checkpoint(state.model_checkpoint_path):
            break
        # Retention may have deleted it since the file was read; the file names a newer one then.
        before, state = state.model_checkpoint_path, _read_here(directory, name)
        if state is not None and state.model_checkpoint_path == before:
            break
    return None if state is None else latest_of(state)


def latest_of(state: CheckpointState) -> str | None:
    """Returns the path of the latest checkpoint that a state file names; None if it is gone, with a warning."""
    path = state.model_checkpoint_path
    if storage.is_checkpoint(path):
        return path
    if stores.is_file(foreign_runs.index_of(path)):
        _logger.warning("%s is a TensorFlow checkpoint, which this version of jaxckpt does not read.", path)
    else:
        _logger.warning("%s, which the state file names as the latest, is not there.", path)
    return None
