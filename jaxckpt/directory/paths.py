"""Checkpoint paths: what a caller may give, and which number is free."""

import os
import re
import threading
from typing import Any

from jaxckpt.directory import foreign_runs
from jaxckpt.storage import stores
from jaxckpt.storage.commit import reservations

_lock = threading.Lock()


def checked_path(value: Any, argument: str) -> str:
    """Returns a path argument as a str.

    Raises:
      TypeError: it is neither str nor os.PathLike (of str).
      ValueError: it is empty, or names a file system other than that of the machine and ``gs://``, or holds a null character.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument} must be a str or os.PathLike, got {type(value).__name__}.")
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(f"{argument} must be a str or os.PathLike of str, got one of {type(path).__name__}.")
    if not path:
        raise ValueError(
            f"{argument} is empty; give the directory and name of the checkpoint, such as '/checkpoints/ckpt'."
        )
    if argument == "file_prefix" and os.path.basename(path.rstrip("/")) in ("", ".", ".."):
        raise ValueError(f"{argument}={path!r} does not end in the name of a checkpoint; give one, such as 'ckpt'.")
    if "\0" in path:
        raise ValueError(f"{argument} holds a null character: {path!r}.")
    if "orbax-checkpoint-tmp" in os.path.basename(path) or ".jaxckpt-tmp-" in os.path.basename(path):
        raise ValueError(
            f"{argument}={path!r}: such names are reserved for the temporary directories of saves that run or were not finished. "
            "To save, choose another name; to restore, take a committed checkpoint."
        )
    stores.store_of(path).check_address(path, argument)
    return path


def checked_prefix(value: Any) -> str:
    """Returns the prefix of a numbered checkpoint as a str. Raises as `checked_path`; ValueError for one without a name."""
    prefix = checked_path(value, "file_prefix")
    if prefix.endswith("/"):
        raise ValueError(
            f"file_prefix={prefix!r} ends in a slash, so that checkpoints would be called '-1', '-2'; add a name, "
            f"such as {prefix + 'ckpt'!r}."
        )
    return prefix


def absolute(path: str) -> str:
    """Returns the path that stands for `path` whatever the working directory is; addresses of buckets do already."""
    return stores.absolute(path)


def spelled(path: str) -> str:
    """Returns `path` as it is spelled, but without a ``name/..`` that leads nowhere, as there is no `name`."""
    return stores.spelled(path)


def release(path: str, owner: object) -> None:
    """Gives up the reservation of an absolute path, if it is the owner's: its save is over. Idempotent."""
    with _lock:
        reservations.release(path, owner)


def reserve_unused(owner: object, prefix: str, wanted: int, given: int = 0) -> tuple[int, str]:
    """Chooses and reserves a number that no checkpoint, file or save in flight of this process has.

    Args:
      owner: the save, which the reservation lasts no longer than.
      prefix: directory and name.
      wanted: the number to take if it is free; otherwise the one after the highest is taken.
      given: numbers up to this one are taken, although nothing may be there any more.

    Returns:
      The number, and the path ``<prefix>-<number>``.

    Raises:
      CheckpointError: the number is that of a TensorFlow checkpoint.
      OSError: with errno; the directory cannot be read.
    """
    with _lock:
        path = f"{prefix}-{wanted}"
        if wanted <= given or stores.exists(path) or reservations.holds(path):
            wanted = max((*_numbers(prefix), wanted, given)) + 1
            path = f"{prefix}-{wanted}"
        foreign_runs.refuse_prefix(path)
        reservations.reserve(path, owner)
        return wanted, path


def reserve(owner: object, path: str) -> None:
    """Reserves a path that may replace what is there, for as long as the save `owner` lasts.

    Raises:
      CheckpointError: it is the prefix of a TensorFlow checkpoint.
    """
    foreign_runs.refuse_prefix(path)
    with _lock:
        reservations.reserve(path, owner)


def _numbers(prefix: str) -> list[int]:
    directory, name = os.path.split(stores.absolute(prefix))
    pattern = re.compile(re.escape(name) + r"-([0-9]+)")
    try:
        names = stores.names(directory)
    except FileNotFoundError:
        names = []
    numbers = [int(match[1]) for entry in names + reservations.names(directory) if (match := pattern.fullmatch(entry))]
    return [number for number in numbers if number < 2**62]  # Nobody counted that far: a foreign file.
