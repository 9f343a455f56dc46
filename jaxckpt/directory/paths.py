"""Checks the paths and names of checkpoints that callers give."""

import os
from typing import Any

from jaxckpt._lib.arguments import refusal
from jaxckpt.storage import stores


def checked_path(value: Any, argument: str) -> str:
    """Returns a path argument as a str. A home directory at its beginning (``~``, ``~user``) is replaced by its path, as in a shell.

    Args:
      value: the argument's value.
      argument: the argument's name, for errors.

    Raises:
      TypeError: `value` is neither a str nor an os.PathLike of str.
      ValueError: `value` is empty, contains a null character, has a reserved name, begins with ``~`` and a name that is no user's, or is
        an address that jaxckpt does not support.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument} must be a str or os.PathLike, got {type(value).__name__}.")
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(f"{argument} must be a str or os.PathLike of str, got a PathLike of {type(path).__name__}.")
    if argument == "file_prefix" and path.startswith("~") and "/" not in path.rstrip("/"):
        raise ValueError(f"{argument}={path!r} is a home directory; add the name of a checkpoint, such as '~/ckpt'.")
    path = expanded(path, argument)
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
            "names that contain 'orbax-checkpoint-tmp' or '.jaxckpt-tmp-' are reserved for temporary directories of running or "
            "unfinished saves. To save, choose another name; to restore, take a committed checkpoint",
        )
    stores.store_of(path).check_address(path, argument)
    return path


def expanded(path: str, argument: str) -> str:
    """Returns a path with the home directory that it begins with (``~``, ``~user``) as its path.

    Args:
      path: the path.
      argument: the argument's name, for errors.

    Raises:
      ValueError: there is no such user. Otherwise a directory would be made that is called ``~name``.
    """
    if not path.startswith("~"):
        return path
    try:
        found = os.path.expanduser(path)
    except ValueError:
        # A null character, which `checked_path` names.
        return path
    if found.startswith("~"):
        raise ValueError(
            f"{argument}={path!r}: {path.partition('/')[0]!r} is no user's home directory. For a directory of that name, write "
            f"{'./' + path!r}."
        )
    return found


def checked_prefix(value: Any) -> str:
    """Returns the prefix of a numbered checkpoint as a str.

    Args:
      value: the argument's value.

    Raises:
      TypeError: `value` is neither a str nor an os.PathLike of str.
      ValueError: `checked_path` refuses `value`, or it ends in a slash.
    """
    prefix = checked_path(value, "file_prefix")
    if prefix.endswith("/"):
        raise ValueError(
            f"file_prefix={prefix!r} ends in a slash, so the names of the checkpoints would be '-1', '-2'; add a name, "
            f"such as {prefix + 'ckpt'!r}."
        )
    return prefix


def is_name(value: str) -> bool:
    """Whether `value` can be the name of a file in a directory."""
    return value not in ("", ".", "..") and "\0" not in value and os.path.basename(value) == value


def checked_name(value: Any) -> str:
    """Returns the argument `checkpoint_name`.

    Args:
      value: the argument's value.

    Raises:
      TypeError: `value` is not a str.
      ValueError: `value` cannot be the name of a file.
    """
    if not isinstance(value, str):
        raise TypeError(f"checkpoint_name must be a str, got {type(value).__name__}.")
    if not is_name(value):
        raise ValueError(f"checkpoint_name must be the name of a file, without a directory, got {value!r}.")
    return value


def absolute(path: str) -> str:
    """Returns `path` as an absolute path. Addresses of buckets are absolute already."""
    return stores.absolute(path)


def spelled(path: str) -> str:
    """Returns `path` as it is spelled, but without a part ``name/..`` whose `name` does not exist."""
    return stores.spelled(path)
