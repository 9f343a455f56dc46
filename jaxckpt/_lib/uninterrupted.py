"""Work that Ctrl-C does not tear apart.

Python raises KeyboardInterrupt on the main thread, between any two instructions: half of a message may have been sent by then, and the
process that it was for would wait for the rest.
"""

import contextvars
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from jaxckpt._lib.causes import cause_of

_T = TypeVar("_T")
_SLICE_SECS = 1.0
_PAUSE_SECS = 0.005
# What Python says of a Lock, and of an RLock. Not any RuntimeError: one that a handler of an interrupt meets is what it says it is.
_TWICE = ("release unlocked lock", "cannot release un-acquired lock")
# One for each work that a second interrupt left running; not empty any more when that work has ended.
_left: list[list[bool]] = []


def uninterrupted(work: Callable[[], _T], interrupted: Callable[[BaseException], None] = lambda error: None) -> _T:
    """Does `work` to its end, once, and only then raises an interrupt that came meanwhile.

    A second interrupt is raised at once; the work then goes on, on its own thread, and what it raises is lost.

    Args:
      work: bounded. On the main thread, which alone is interrupted, it is done by another one for it.
      interrupted: called at once with the interrupt.

    Returns:
      What `work` returned.

    Raises:
      BaseException: what `work` raised; or the interrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    begun = threading.Lock()
    # Not an Event: an interrupt in its wait() can leave its lock held for ever.
    running = threading.Lock()
    running.acquire()
    results: list[_T] = []
    errors: list[BaseException] = []
    ended: list[bool] = []

    def run() -> None:
        if not begun.acquire(blocking=False):
            return
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.append(True)
            running.release()

    interrupt: BaseException | None = None
    told = False
    while not ended:
        try:
            if interrupt is not None and not told:
                told = True
                interrupted(interrupt)
            try:
                # Whether an interrupt came before or after the thread was started cannot be known: the second one ends at once.
                context = contextvars.copy_context()
                start(threading.Thread(target=context.run, args=(run,), name="jaxckpt uninterrupted", daemon=True))
            except RuntimeError:  # No thread to be had.
                run()
            while not ended:
                running.acquire(timeout=_SLICE_SECS)
        except BaseException as error:
            if interrupt is None:
                interrupt = error
            elif begun.locked():
                # The user does not want to wait. The work goes on; had it not begun, it would never be done.
                _left.append(ended)
                raise
    if errors:
        raise errors[0]
    if interrupt is not None:
        raise interrupt
    return results[0]


def finish_left(seconds: float) -> None:
    """Waits for what second interrupts have left running, so that the next call meets nothing half done; at most so long."""
    end = time.monotonic() + seconds
    while _left and time.monotonic() < end:
        if _left[0]:
            del _left[0]
        else:
            time.sleep(_PAUSE_SECS)


def start(thread: threading.Thread) -> None:
    """Starts a thread. An interrupt is raised as such: it says nothing of whether the thread runs.

    In `Thread.start`, which waits for the thread, one can become a RuntimeError ("release unlocked lock") of that wait.

    Raises:
      RuntimeError: there is no thread to be had.
    """
    try:
        thread.start()
    except RuntimeError as error:
        if (interrupt := interrupt_of(error)) is not None:
            raise interrupt from None
        raise


def interrupt_of(error: BaseException) -> BaseException | None:
    """Returns the interrupt that has become a RuntimeError in one of Python's own waits; None if that is not what `error` is.

    Where a `Condition` lets go of its lock to wait, its `with` statement releases the lock once more.
    """
    if not isinstance(error, RuntimeError) or str(error) not in _TWICE:
        return None
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        cause = cause_of(cause)
    return cause
