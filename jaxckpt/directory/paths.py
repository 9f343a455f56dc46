"""Checkpoint paths: what a caller may give."""

import os
from typing import Any

from jaxckpt._lib.arguments import refusal
from jaxckpt.storage import stores


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
        raise refusal(
            ValueError,
            f"{argument}={path!r}",
            "such names are reserved for the temporary directories of saves that run or were not finished. "
            "To save, choose another name; to restore, take a committed checkpoint",
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


def is_name(value: str) -> bool:
    """Whether `value` can be the name of a file in a directory."""
    return value not in ("", ".", "..") and "\0" not in value and os.path.basename(value) == value


def checked_name(value: Any) -> str:
    """Returns a `checkpoint_name`.

    Raises:
      TypeError: it is not a str.
      ValueError: it is not the name of a file.
    """
    if not isinstance(value, str):
        raise TypeError(f"checkpoint_name must be a str, got {type(value).__name__}.")
    if not is_name(value):
        raise ValueError(f"checkpoint_name must be the name of a file, without a directory, got {value!r}.")
    return value


def absolute(path: str) -> str:
    """Returns the path that stands for `path` whatever the working directory is; addresses of buckets do already."""
    return stores.absolute(path)


def spelled(path: str) -> str:
    """Returns `path` as it is spelled, but without a ``name/..`` that leads nowhere, as there is no `name`."""
    return stores.spelled(path)
