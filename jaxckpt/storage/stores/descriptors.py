"""Doing without many file descriptors: some that are put aside, and waiting for one."""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
# Where descriptors have run out, other threads of a failed save give some back a moment later.
_PATIENCE_SECS = 2.0
_PAUSE_SECS = 0.02


class SpareDescriptors:
    """Descriptors that are put aside before a save makes any file, so that its clean-up has some whatever the save used up.

    Close it right before `remove_tree`.
    """

    def __init__(self, count: int = 2) -> None:
        """Opens them.

        Args:
          count: how many; `remove_tree` needs two.

        Raises:
          OSError: EMFILE or ENFILE; there are not that many left.
        """
        self._descriptors: list[int] = []
        try:
            for _ in range(count):
                self._descriptors.append(os.open(os.devnull, os.O_RDONLY))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives them back. Idempotent."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def patiently(work: Callable[[], _T]) -> _T:
    """Does what needs a descriptor; where there is none, tries again for a while.

    Args:
      work: raises OSError, EMFILE or ENFILE where there is none.

    Returns:
      What `work` returns.
    """
    end = time.monotonic() + _PATIENCE_SECS
    while True:
        try:
            return work()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or time.monotonic() > end:
                raise
        time.sleep(_PAUSE_SECS)
