"""Threads that write in the background give way to the program: they run on cores that it leaves idle.

On Linux each thread has a priority ("nice") of its own. Elsewhere a process has one for all its threads, so nothing is changed there.
"""

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Iterator

# Each step of nice takes a fifth of a thread's share of a core that others want, too.
STEPS = 10
_LOWEST = 19
# A sandbox may forbid the call, or not know it.
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.ENOSYS)


class GivingWay:
    """Threads of one operation give way for a limited time, so that it also comes to its end where no core is ever idle."""

    def __init__(self, seconds: float) -> None:
        """Begins.

        Args:
          seconds: after this time, the operation does not give way any longer.
        """
        self._end = time.monotonic() + seconds
        # Of the thread that begins the operation. The threads may start others, which inherit what `apply` has set.
        self._nice = _lowered() if _is_possible() else None

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end

    def apply(self) -> None:
        """Lowers the priority of this thread, and so of threads that it starts, for good.

        Where the system forbids it, the thread keeps its priority.

        Raises:
          OSError: the system cannot do it for another reason.
        """
        if self._nice is None:
            return
        with _unless_forbidden():
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)


def _is_possible() -> bool:
    return sys.platform == "linux"


def _lowered() -> int | None:
    """Returns the nice value of this thread and `STEPS` more; None where the system forbids to ask."""
    with _unless_forbidden():
        return min(_LOWEST, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + STEPS)
    return None


@contextlib.contextmanager
def _unless_forbidden() -> Iterator[None]:
    """Ignores the error of a system that forbids the block. Giving way is a courtesy, and no reason for a save to fail."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
