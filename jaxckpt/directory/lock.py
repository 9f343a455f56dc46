"""Lets one writer at a time change a directory's state file: among threads, and among processes if the file system has locks."""

import contextlib
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

from jaxckpt._lib.uninterrupted import uninterrupted
from jaxckpt.storage import stores
from jaxckpt.storage.stores import flock

_T = TypeVar("_T")
_WAIT_SECS = flock.WAIT_SECS
_logger = logging.getLogger("jaxckpt")
_locks: "weakref.WeakValueDictionary[str, threading.Lock]" = weakref.WeakValueDictionary()
_locks_lock = threading.Lock()


def update(directory: str, change: Callable[[], _T]) -> _T:
    """Calls `change` while other writers are locked out, and returns its result.

    A bucket has no locks. It refuses a state file that was made from an outdated one, and `change` is called again.

    Args:
      directory: the directory whose state file is changed.
      change: reads, changes and writes the state file.

    Raises:
      OSError: the directory cannot be opened, or (in a bucket) others kept changing the file for 30 s; has errno.
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

    # If an interrupt prevented the release of the lock, all other writers would wait.
    return uninterrupted(work)


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Keeps other writers of a directory out during the block. Not reentrant.

    After 30 s of waiting for another process, or if the file system does not have `flock`, the block runs without the lock between
    processes. The lock between threads of this process always holds.

    Args:
      directory: the directory to lock.

    Raises:
      OSError: the directory does not exist or cannot be opened; has errno.
    """
    with _locks_lock:
        is_local = stores.is_local(directory)
        lock = _locks.setdefault(
            os.path.realpath(directory) if is_local else stores.absolute(directory), threading.Lock()
        )
    with lock:
        if not is_local:
            yield
            return
        with flock.locked(os.open(directory, os.O_RDONLY | os.O_DIRECTORY), _WAIT_SECS) as is_locked:
            if not is_locked:
                text = "Another process has held the lock of %s for %g s; going on without the lock."
                _logger.warning(text, directory, _WAIT_SECS)
            yield
