"""Locks on open local files and directories (flock): one writer at a time, among all processes that lock the same thing."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

# A holder needs a lock for milliseconds. One that holds it for longer was stopped, or hangs on a dead disk.
WAIT_SECS = 30.0
_POLL_SECS = 0.01


@contextlib.contextmanager
def locked(descriptor: int, secs: float = WAIT_SECS) -> Iterator[bool]:
    """Locks an open file or directory during the block, and closes it at the end.

    Yields whether it is locked: False if another process has held the lock for all the time. If the file system does not have such locks,
    it counts as locked.

    Args:
      descriptor: of the open file or directory.
      secs: most seconds to wait for another process.
    """
    try:
        yield _wait(descriptor, secs)
    finally:
        with contextlib.suppress(OSError):
            # Closing alone is not enough: a child process that was forked meanwhile holds a copy of the descriptor, and with it the lock.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _wait(descriptor: int, secs: float) -> bool:
    end = time.monotonic() + secs
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_SECS)
            continue
        except OSError:
            # This file system does not have such locks.
            pass
        return True
