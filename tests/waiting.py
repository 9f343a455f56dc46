"""Waits for what happens on another thread or in another process, and Ctrl-C at a moment that a test knows."""

import signal
import threading
import time
from collections.abc import Callable

# Far longer than anything takes on a machine that is busy; reached only where something never happens.
LONG_SECS = 60.0


def wait_until(condition: Callable[[], object], what: str = "", secs: float = LONG_SECS) -> None:
    """Returns as soon as the condition holds.

    Args:
      condition: is asked again and again.
      what: is waited for, for the message.
      secs: the longest time to wait.

    Raises:
      AssertionError: it did not hold in time.
    """
    end = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end, f"{what or 'what is waited for'} has not happened for {secs:g} s"
        time.sleep(0.002)


def interrupt(number: int = signal.SIGINT) -> None:
    """Sends a signal to the main thread: a real one, which ends its waits.

    It is handled there a moment later, and on a busy machine not soon.
    """
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, number)
