"""Conditional and exchanging renames, which some systems and file systems lack."""

import ctypes
import errno
import functools
import os
from typing import Any

_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def rename_new(old: str, new: str) -> bool:
    """Renames `old` to `new`, unless `new` exists.

    Args:
      old: path of the file or directory.
      new: path that must not exist.

    Returns:
      True; or False if the system or the file system cannot do this. Nothing has changed then.

    Raises:
      FileExistsError: `new` exists.
      OSError: with errno.
    """
    return _renameat2(old, new, _NOREPLACE)


def exchange(one: str, other: str) -> bool:
    """Exchanges two files or directories in one atomic step.

    Args:
      one: path of the first, which exists.
      other: path of the second, which exists.

    Returns:
      True; or False if the system or the file system cannot do this. Nothing has changed then.

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
