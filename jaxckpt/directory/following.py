"""Following a directory: each new latest checkpoint, as it appears."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import overload

from jaxckpt._lib.arguments import StrPath, also_named
from jaxckpt.directory import paths
from jaxckpt.directory.ask import ask, file_process
from jaxckpt.directory.latest import latest_here
from jaxckpt.options import CheckpointOptions

_POLL_SECS = 1.0


@overload
def checkpoints_iterator(
    directory: StrPath,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], object] | None = None,
    options: CheckpointOptions | None = None,
) -> Iterator[str]: ...
@overload
def checkpoints_iterator(
    *,
    checkpoint_dir: StrPath,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], object] | None = None,
    options: CheckpointOptions | None = None,
) -> Iterator[str]: ...
@also_named("directory", "checkpoint_dir")
def checkpoints_iterator(
    directory: StrPath,
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
    file_process(options)
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
        found = latest_here(directory)
        if found is not None and found != last:
            return found
        left = _POLL_SECS if end is None else end - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(2 * pause, _POLL_SECS)
