"""Renames with a condition, which not every system and file system has."""

import ctypes
import errno
import functools
import os
from typing import Any

_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def rename_new(old: str, new: str) -> bool:
    """Renames `old` to `new`, where nothing may be.

    Args:
      old, new: paths.

    Returns:
      False where the system or the file system cannot do that; nothing has happened then.

    Raises:
      FileExistsError: something is at `new`.
      OSError: with errno.
    """
    return _renameat2(old, new, _NOREPLACE)


def exchange(one: str, other: str) -> bool:
    """Lets two files or directories change places, at once.

    Args:
      one, other: paths; something is at both.

    Returns:
      False where the system or the file system cannot do that; nothing has happened then.

    Raises:
      OSError: with errno.
    """
    return _renameat2(one, other, _EXCHANGE)


@functools.cache
def _function() -> Any:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function


def _renameat2(old: str, new: str, flags: int) -> bool:
    function = _function()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), new)
