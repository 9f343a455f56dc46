"""The file `checkpoint`: which checkpoints of a directory there are, and which is the latest.

It is replaced atomically, always after the checkpoint that it names was committed, so a reader needs no lock; changing
it means to read, change and write under `locked`. It only adds an order to what is on disk: losing it loses no
checkpoint.
"""

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, overload

from jaxckpt._lib.arguments import also_named
from jaxckpt.directory import foreign_runs, paths, retention
from jaxckpt.directory.ask import ask
from jaxckpt.directory.lock import update
from jaxckpt.directory.state_store import FILE as FILE
from jaxckpt.directory.state_store import is_own_state
from jaxckpt.directory.state_store import read_state as read_state
from jaxckpt.directory.state_store import write_state as write_state
from jaxckpt.directory.state_text import Records, UnreadableStateError
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.job import devices
from jaxckpt.options import CheckpointOptions, checked_options
from jaxckpt.storage import CheckpointPath, stores
from jaxckpt.storage.item import description

_POLL_SECS = 1.0
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
    directory: str | os.PathLike[str],
    options: CheckpointOptions | str | None = None,
    *,
    latest_filename: str | None = None,
) -> CheckpointState | None: ...
@overload
def get_checkpoint_state(
    *,
    checkpoint_dir: str | os.PathLike[str],
    options: CheckpointOptions | None = None,
    latest_filename: str | None = None,
) -> CheckpointState | None: ...
@also_named("directory", "checkpoint_dir")
def get_checkpoint_state(
    directory: str | os.PathLike[str],
    options: CheckpointOptions | str | None = None,
    *,
    latest_filename: str | None = None,
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
    resolve(options)
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
    name = FILE if latest_filename is None else latest_filename
    if not isinstance(name, str):
        raise TypeError(f"latest_filename must be a str or None, got {type(name).__name__}.")
    if not name or "\0" in name:
        raise ValueError(f"latest_filename must be the name of a file, got {name!r}.")
    return options, name


def _subject(directory: str, name: str) -> str:
    """Returns what a call is about: the processes of a job have to agree on it."""
    return directory if name == FILE else stores.join(directory, name)


def _read_here(directory: str, name: str = FILE) -> CheckpointState | None:
    directory = stores.spelled(directory)
    try:
        records = read_state(directory, name)
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
    directory: str | os.PathLike[str],
    options: CheckpointOptions | str | None = None,
    *,
    latest_filename: str | None = None,
) -> str | None: ...
@overload
def latest_checkpoint(
    *,
    checkpoint_dir: str | os.PathLike[str],
    options: CheckpointOptions | None = None,
    latest_filename: str | None = None,
) -> str | None: ...
@also_named("directory", "checkpoint_dir")
def latest_checkpoint(
    directory: str | os.PathLike[str],
    options: CheckpointOptions | str | None = None,
    *,
    latest_filename: str | None = None,
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
    resolve(options)
    directory = paths.checked_path(directory, "directory")
    return ask("latest_checkpoint", _subject(directory, name), options, lambda: _latest_here(directory, name))


def _latest_here(directory: str, name: str = FILE) -> str | None:
    from jaxckpt import storage

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
    from jaxckpt import storage

    path = state.model_checkpoint_path
    if storage.is_checkpoint(path):
        return path
    if stores.is_file(foreign_runs.index_of(path)):
        _logger.warning("%s is a TensorFlow checkpoint, which this version of jaxckpt does not read.", path)
    else:
        _logger.warning("%s, which the state file names as the latest, is not there.", path)
    return None


@overload
def checkpoints_iterator(
    directory: str | os.PathLike[str],
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], object] | None = None,
    options: CheckpointOptions | None = None,
) -> Iterator[str]: ...
@overload
def checkpoints_iterator(
    *,
    checkpoint_dir: str | os.PathLike[str],
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], object] | None = None,
    options: CheckpointOptions | None = None,
) -> Iterator[str]: ...
@also_named("directory", "checkpoint_dir")
def checkpoints_iterator(
    directory: str | os.PathLike[str],
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], object] | None = None,
    options: CheckpointOptions | None = None,
) -> Iterator[str]:
    """Yields each new latest checkpoint, as it appears (TensorFlow: `tf.train.checkpoints_iterator`).

    It looks only when it is asked for the next one, so it skips checkpoints that were followed by another one
    meanwhile.

    Args:
      directory: where the checkpoints are, or will be; TensorFlow's keyword `checkpoint_dir` is taken too.
      min_interval_secs: at least this many seconds lie between two of them.
      timeout: how many seconds to wait for the next one; None waits for ever.
      timeout_fn: called when that time has passed; the iterator waits again if it returns something false. Without it
        the iterator ends.
      options: as for `latest_checkpoint`.

    Raises:
      TypeError: an argument of the wrong type.
      ValueError: the device in the options does not exist, or a negative time.
    """
    resolve(options)
    directory = paths.checked_path(directory, "directory")
    for name, seconds in (("min_interval_secs", min_interval_secs), ("timeout", timeout)):
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float))):
            raise TypeError(f"{name} must be a number of seconds, got {type(seconds).__name__}.")
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"{name} must not be negative, got {seconds}.")
    if timeout_fn is not None and not callable(timeout_fn):
        raise TypeError(f"timeout_fn must be callable, got {type(timeout_fn).__name__}.")
    return _iterate(directory, min_interval_secs, timeout, timeout_fn, options)


def _iterate(
    directory: str,
    min_interval_secs: float,
    timeout: float | None,
    timeout_fn: Callable[[], object] | None,
    options: CheckpointOptions | None,
) -> Iterator[str]:
    last: str | None = None
    while True:
        wait = functools.partial(_wait_for_new, directory, last, timeout)
        found = ask("checkpoints_iterator", directory, options, wait)
        if found is None:
            if timeout_fn is None or timeout_fn():
                return
            continue
        last, start = found, time.monotonic()
        yield found
        time.sleep(max(0.0, start + min_interval_secs - time.monotonic()))


def _wait_for_new(directory: str, last: str | None, timeout: float | None) -> str | None:
    end = None if timeout is None else time.monotonic() + timeout
    pause = _POLL_SECS / 16
    while True:
        found = _latest_here(directory)
        if found is not None and found != last:
            return found
        left = _POLL_SECS if end is None else end - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(2 * pause, _POLL_SECS)


def register(path: CheckpointPath) -> None:
    """Makes a committed checkpoint the latest of its directory; the others that are still there stay listed.

    Raises:
      OSError: with errno; the state file is as it was.
    """
    directory, name = path.directory, path.name

    def change() -> None:
        try:
            records = read_state(directory) or Records()
        except UnreadableStateError as error:
            records = rebuilt(directory, error)
        gone = missing(directory, records)
        bound(directory, records, gone, new=name)
        records.forget(gone)
        records.add(name, time.time())
        write_state(directory, records)

    update(directory, change)


def resolve(options: CheckpointOptions | None) -> int | None:
    """Returns the process that the options choose for file access, or None for every one on its own.

    Raises:
      TypeError: `options` is not a CheckpointOptions.
      ValueError: the device does not exist.
    """
    options = checked_options(options)
    return devices.resolve_process(None if options is None else options.experimental_io_device)


def missing(directory: str, records: Records) -> set[str]:
    """Returns the names of checkpoints that are gone; notes in the records which of them are TensorFlow's, and not gone.

    A damaged one is not gone: to go back to an older one is for the user to decide.
    """
    listed: set[str] = set()
    # One listing instead of a request for each.
    if not stores.is_local(directory):
        with contextlib.suppress(FileNotFoundError):
            listed.update(stores.names(directory))

    def there(name: str) -> bool:
        return name in listed or stores.exists(stores.join(directory, name))

    gone = {name for name in {*records.entries, *records.kept} if not there(name)}
    records.tensorflow = [name for name in records.entries if name in gone and there(foreign_runs.index_of(name))]
    return gone


def refuse_tensorflow(directory: str) -> None:
    """Refuses a directory of TensorFlow's checkpoints, where a checkpoint would have to be registered in TensorFlow's state file.

    Raises:
      CheckpointError: it is one.
    """
    try:
        if is_own_state(directory):
            return  # None of those that jaxckpt writes names one; so it need not be read.
        records = read_state(directory)
        names = stores.names(directory) if records is None else []
    except (OSError, UnreadableStateError):
        return  # The registration reads it as well, and says what is wrong.
    found = foreign_runs.tensorflow_prefixes(names)
    if records is not None and records.latest is not None:
        latest = stores.join(directory, records.latest)
        if not stores.exists(latest) and stores.is_file(foreign_runs.index_of(latest)):
            found = [records.latest]
    if found:
        raise foreign_runs.tensorflow_error(directory, found)


def bound(directory: str, records: Records, gone: Collection[str], new: str | None = None) -> None:
    """Notes in the records what is not to be adopted, whatever is saved next (see `retention.bound`).

    Args:
      directory: of the state file.
      records: as they were read, changed in place.
      gone: what `missing` returned.
      new: a checkpoint to overlook: it was committed just now, and is about to be registered.

    Raises:
      OSError: the directory cannot be read.
    """
    retention.bound(
        records,
        set(gone) - set(records.tensorflow),
        lambda: _written(directory),
        lambda: {prefix: [name for name in names if name != new] for prefix, names in _committed(directory).items()},
        lambda name: commit_time(os.path.join(directory, name)),
    )


def _written(directory: str) -> float:
    """Returns when the state file was written, in seconds; where that is not known, late enough for everything."""
    try:
        modified = stores.modified(os.path.join(directory, FILE))
        return math.inf if modified is None else modified
    except FileNotFoundError:
        return -math.inf


def rebuilt(directory: str, reason: Exception) -> Records:
    """Lists the numbered checkpoints of a directory whose state file is of no use, in the order of their commits.

    All of them are kept: which ones a manager had preserved is not known any more.
    """
    _logger.warning("%s. Rebuilding it from the checkpoints in %s.", reason, directory)
    names = [name for names in _committed(directory).values() for name in names]
    times = {name: commit_time(os.path.join(directory, name)) for name in names}
    names.sort(key=lambda name: (times[name], int(name.rpartition("-")[2])))
    version = reason.version if isinstance(reason, UnreadableStateError) else None
    return Records({name: times[name] for name in names}, set(names), version=version)


def _committed(directory: str) -> dict[str, list[str]]:
    """Returns the part of the name before the number → names of the committed checkpoints in a directory."""
    from jaxckpt import storage

    prefixes = {prefix for name in stores.names(directory) if (prefix := retention.numbered(name)) is not None}
    return {
        prefix: [f"{prefix}-{number}" for number in storage.list_numbered(os.path.join(directory, prefix))]
        for prefix in prefixes
    }


def commit_time(path: str) -> float:
    """Returns when a checkpoint was committed, in seconds: as Orbax recorded it, else when its directory changed."""
    with contextlib.suppress(OSError, CorruptCheckpointError):
        return description.commit_seconds(path)
    try:
        return stores.modified(path) or 0.0
    except OSError:
        return 0.0
