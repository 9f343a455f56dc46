"""One writer at a time for a directory: among threads, and among processes where the file system can lock."""

import contextlib
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

from jaxckpt._lib.uninterrupted import uninterrupted
from jaxckpt.storage import stores

if sys.platform != "win32":
    import fcntl

_T = TypeVar("_T")
# A holder needs milliseconds; one that needs longer was stopped, or hangs on a dead disk.
_WAIT_SECS = 30.0
_logger = logging.getLogger("jaxckpt")
_locks: "weakref.WeakValueDictionary[str, threading.Lock]" = weakref.WeakValueDictionary()
_locks_lock = threading.Lock()


def update(directory: str, change: Callable[[], _T]) -> _T:
    """Calls `change`, which reads, changes and writes the state file of `directory`, with other writers kept out.

    In a bucket no writer can be kept out. The bucket refuses a state file that was made from an older one, and `change` is called again.

    Raises:
      OSError: with errno; as of `locked`, or others have changed the file all the time.
    """

    def work() -> _T:
        end = time.monotonic() + _WAIT_SECS
        with locked(directory):
            while True:
                try:
                    return change()
                except stores.ChangedError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(random.uniform(0.05, 0.5))

    # An interrupt that kept the lock from being given back would let all others wait.
    return uninterrupted(work)


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Keeps other writers of a directory out. Not reentrant.

    The wait for another process is bounded: then, and where there is no `flock`, this goes on without it.

    Raises:
      OSError: with errno; `directory` does not exist or cannot be opened.
    """
    with _locks_lock:
        is_local = stores.is_local(directory)
        lock = _locks.setdefault(
            os.path.realpath(directory) if is_local else stores.absolute(directory), threading.Lock()
        )
    with lock:
        if not is_local or sys.platform == "win32":
            yield
            return
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _flock(descriptor, directory)
            yield
        finally:
            with contextlib.suppress(OSError):
                # Closing would do, but for a child process that was forked meanwhile and holds a copy of the
                # descriptor.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _flock(descriptor: int, directory: str) -> None:
    end = time.monotonic() + _WAIT_SECS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                _logger.warning(
                    "Another process has locked %s for %g s; going on without the lock.", directory, _WAIT_SECS
                )
                return None
            time.sleep(0.01)
        except OSError:
            # This file system has no such locks.
            return None
