"""The public functions that read a directory's state file and find its latest checkpoint."""

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

# How often a state file is read again if the checkpoint that it names has been deleted each time.
_LOOKS = 20
_logger = logging.getLogger("jaxckpt")


@dataclass(frozen=True)
class CheckpointState:
    """The content of a state file; mirrors TensorFlow's `CheckpointState`.

    Attributes:
      model_checkpoint_path: path of the latest checkpoint.
      all_model_checkpoint_paths: paths of the listed checkpoints, oldest first; the last one is the latest.
      all_model_checkpoint_timestamps: when each of them was registered, in seconds since the epoch.
      last_preserved_timestamp: when the last checkpoint that `keep_checkpoint_every_n_hours` preserved was registered, in seconds
        since the epoch; 0.0 if the file does not tell.
      preserved_checkpoint_paths: paths of the checkpoints that managers never delete (TensorFlow's state file does not list
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
    """Returns the content of a directory's state file (TensorFlow: `tf.train.get_checkpoint_state`).

    Args:
      directory: the directory with the checkpoints. TensorFlow's keyword `checkpoint_dir` is accepted too.
      options: options whose `experimental_io_device` tells which process reads. A str here is taken as `latest_filename`, which is
        TensorFlow's second argument.
      latest_filename: name of the state file; None for "checkpoint".

    Returns:
      The state, in which every path is joined with `directory`; None if the state file does not exist or is not readable (a
      warning is logged then).

    Raises:
      TypeError: an argument has the wrong type.
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
    """Returns the options of a call, and the name of the state file, which may have been given in place of the options."""
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
    """Returns the path that a call is about, on which the processes of a job must agree."""
    return directory if name == state_file.FILE else stores.join(directory, name)


def _read_here(directory: str, name: str = state_file.FILE) -> CheckpointState | None:
    directory = stores.spelled(directory)
    try:
        records = state_file.read(directory, name)
    except NotADirectoryError:
        # The directory does not exist, so it does not have a state file.
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

    The latest is the one that was saved last, not the one with the highest number. In a directory of TensorFlow's checkpoints it is
    TensorFlow's: `Checkpoint.restore` takes that, too.

    Args:
      directory: the directory with the checkpoints. TensorFlow's keyword `checkpoint_dir` is accepted too.
      options: options whose `experimental_io_device` tells which process looks. A str here is taken as `latest_filename`, which is
        TensorFlow's second argument.
      latest_filename: name of the state file; None for "checkpoint".

    Returns:
      The path, joined with `directory`; None if the directory or a readable state file does not exist, or if the checkpoint
      that the file names is gone.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the device in the options does not exist.
    """
    options, name = _which_file(options, latest_filename)
    file_process(options)
    directory = paths.checked_path(directory, "directory")
    return ask("latest_checkpoint", _subject(directory, name), options, lambda: latest_here(directory, name))


def latest_here(directory: str, name: str = state_file.FILE) -> str | None:
    """Returns the path of the latest checkpoint as this process sees the directory; None if there is none.

    Args:
      directory: the directory with the checkpoints.
      name: name of the state file.
    """
    state = _read_here(directory, name)
    for _ in range(_LOOKS):
        if state is None or _is_there(state.model_checkpoint_path):
            break
        # Retention may have deleted the checkpoint after the file was read. Then the file names a newer one now.
        before, state = state.model_checkpoint_path, _read_here(directory, name)
        if state is not None and state.model_checkpoint_path == before:
            break
    return None if state is None else latest_of(state)


def latest_of(state: CheckpointState) -> str | None:
    """Returns the path of the latest checkpoint that a state file names; None, after a warning, if the checkpoint is gone."""
    path = state.model_checkpoint_path
    if _is_there(path):
        return path
    _logger.warning("%s, which the state file names as the latest, does not exist.", path)
    return None


def _is_there(path: str) -> bool:
    return storage.is_checkpoint(path) or foreign_runs.is_tensorflow(path)
