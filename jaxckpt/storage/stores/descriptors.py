"""Clean-up when the process has run out of file descriptors: reserve some in advance, and wait for one."""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
# When descriptors have run out, other threads of the failed save close some a moment later.
_PATIENCE_SECS = 2.0
_PAUSE_SECS = 0.02


class SpareDescriptors:
    """Descriptors that a save reserves before it makes any file, so that its clean-up has some even if the save uses up all others.

    Call `close` right before `remove_tree`.
    """

    def __init__(self, count: int = 2) -> None:
        """Opens the descriptors.

        Args:
          count: number of descriptors; `remove_tree` needs two.

        Raises:
          OSError: EMFILE or ENFILE; fewer than `count` descriptors are left.
        """
        self._descriptors: list[int] = []
        try:
            for _ in range(count):
                self._descriptors.append(os.open(os.devnull, os.O_RDONLY))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the descriptors. Idempotent."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def patiently(work: Callable[[], _T]) -> _T:
    """Calls a function that needs a descriptor, and calls it again for `_PATIENCE_SECS` while there is none.

    Args:
      work: the function. It raises OSError with EMFILE or ENFILE if the process or the system has no descriptor left.

    Returns:
      The value that `work` returns.

    Raises:
      OSError: the last error of `work`.
    """
    end = time.monotonic() + _PATIENCE_SECS
    while True:
        try:
            return work()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or time.monotonic() > end:
                raise
        time.sleep(_PAUSE_SECS)
