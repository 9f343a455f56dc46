"""Runs work so that Ctrl-C cannot stop it half-way.

Python raises KeyboardInterrupt on the main thread, between any two instructions. Half of a message may have been sent by then, and its
receiver would wait for the rest.
"""

import contextvars
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from jaxckpt._lib.causes import cause_of, is_of_signal_handler

_T = TypeVar("_T")
_SLICE_SECS = 1.0
_PAUSE_SECS = 0.005
# How often a thread is started, if each start is interrupted.
_STARTS = 3
# The messages of Python's Lock and RLock. Other RuntimeErrors are never interrupts in disguise, even if they appear while one is handled.
_TWICE = ("release unlocked lock", "cannot release un-acquired lock")
# One list for each work that a second interrupt left running. The list gets an item when that work has ended.
_left: list[list[bool]] = []


def uninterrupted(work: Callable[[], _T], interrupted: Callable[[BaseException], None] = lambda error: None) -> _T:
    """Runs `work` once, to its end, and raises an interrupt that came meanwhile only afterwards.

    A second interrupt is raised at once. The work then goes on on its own thread, and an error of it is lost.

    Args:
      work: the work, whose waits are bounded. Only the main thread is ever interrupted, so a call from the main thread runs `work` on
        another thread; a call from any other thread runs it directly.
      interrupted: called with the first interrupt as soon as it comes.

    Returns:
      The result of `work`.

    Raises:
      BaseException: the error of `work`, or else the interrupt.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        return work()
    # The threads that would do the work, in the order in which they came. The first one does it.
    claims: list[threading.Thread] = []
    begun: list[bool] = []
    # This is not an Event, because an interrupt in Event.wait() can leave its lock held for ever.
    running = threading.Lock()
    running.acquire()
    results: list[_T] = []
    errors: list[BaseException] = []
    ended: list[bool] = []

    def run() -> None:
        claims.append(threading.current_thread())
        if claims[0] is not threading.current_thread():
            return
        try:
            begun.append(True)
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.append(True)
            running.release()

    def begin() -> None:
        context = contextvars.copy_context()
        start(threading.Thread(target=context.run, args=(run,), name="jaxckpt uninterrupted", daemon=True))

    def is_elsewhere() -> bool:
        """Whether another thread does the work."""
        return bool(begun) and claims[0] is not main

    def begin_or_run() -> None:
        if claims and claims[0] is main:
            # An interrupt has thrown this thread out of `run`: before it began, or as it ended.
            if begun:
                ended.append(True)
            else:
                run()
            return
        try:
            # After an interrupt it is unknown whether the thread was started, so another is started. Of two threads, the second one finds
            # the claim of the first, and ends at once.
            begin()
        except RuntimeError:
            # The system cannot start another thread.
            run()

    interrupt: BaseException | None = None
    told = False
    try:
        while not ended:
            try:
                if interrupt is not None and not told:
                    told = True
                    interrupted(interrupt)
                begin_or_run()
                while not ended:
                    running.acquire(timeout=_SLICE_SECS)
            except BaseException as error:
                if interrupt is None:
                    interrupt = error
                elif is_elsewhere():
                    raise
                # Otherwise the work has not begun, and the loop must still start it.
    except BaseException:
        # The user does not want to wait, and the work goes on by itself. An interrupt can also come here from between two rounds of the
        # loop, before the work has begun; and a third one while its thread is started.
        _left.append(ended)
        for _ in range(_STARTS):
            try:
                if ended or is_elsewhere():
                    break
                begin_or_run()
            except BaseException:
                continue
        raise
    if errors:
        raise errors[0]
    if interrupt is not None:
        raise interrupt
    return results[0]


def finish_left(seconds: float) -> None:
    """Waits for the work that second interrupts left running, so that the next call does not meet half-done work.

    Args:
      seconds: the longest time to wait.
    """
    end = time.monotonic() + seconds
    while _left and time.monotonic() < end:
        if _left[0]:
            del _left[0]
        else:
            time.sleep(_PAUSE_SECS)


def start(thread: threading.Thread) -> None:
    """Starts a thread, and makes sure that an interrupt is raised as an interrupt. After one, the thread may or may not run.

    `Thread.start` waits for the thread. An interrupt in that wait can become a RuntimeError ("release unlocked lock"), and an exception
    that a signal handler raises can become a KeyError.

    Args:
      thread: the thread to start.

    Raises:
      RuntimeError: the system cannot start another thread.
    """
    try:
        thread.start()
    except (RuntimeError, KeyError) as error:
        if (interrupt := interrupt_of(error)) is not None:
            raise interrupt from None
        raise


def interrupt_of(error: BaseException) -> BaseException | None:
    """Returns the interrupt that became `error` in one of Python's own functions; None if `error` is something else.

    `Condition.wait` releases the lock before it waits: after an interrupt there, the `with` statement around it releases the lock a second
    time, which raises a RuntimeError. `Thread.start`, which removes a thread that could not be started from a dictionary, raises a KeyError
    if the thread has been started and has removed itself. An interrupt is also what a signal handler of the program raises.
    """
    if isinstance(error, KeyError):
        if not (error.args and isinstance(error.args[0], threading.Thread)):
            return None
        return cause_of(error)
    if not isinstance(error, RuntimeError) or str(error) not in _TWICE:
        return None
    cause: BaseException | None = error
    while isinstance(cause, Exception) and not is_of_signal_handler(cause):
        cause = cause_of(cause)
    return cause
