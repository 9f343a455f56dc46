"""Follows a directory: yields each new latest checkpoint as it appears."""

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
    """Yields each new latest checkpoint as it appears (TensorFlow: `tf.train.checkpoints_iterator`).

    The iterator looks only when it is asked for the next checkpoint. It skips checkpoints that were no longer the latest by
    then.

    Args:
      directory: the directory with the checkpoints, which need not exist yet. TensorFlow's keyword `checkpoint_dir` is accepted too.
      min_interval_secs: shortest time in seconds between two yielded checkpoints.
      timeout: how many seconds to wait for the next checkpoint; None waits for ever.
      timeout_fn: called after a timeout. The iterator ends if it returns a true value, and waits again otherwise. Without this
        function, the iterator ends after a timeout.
      options: options whose `experimental_io_device` tells which process looks.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the device in the options does not exist, or a time is negative.
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
