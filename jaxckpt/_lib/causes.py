"""Finds the true cause of an exception, ignoring an exception that the caller was merely handling at the time."""

import functools
import signal
from collections.abc import Callable
from types import CodeType
from typing import Any


def cause_of(error: BaseException) -> BaseException | None:
    """Returns the exception that caused `error`; None if there is not one, or if it is not known.

    If a program saves in an `except` block, Python sets the handled exception as the `__context__` of every error of the save, although it
    is unrelated. A true cause was handled in one of the frames that `error` has passed through; an unrelated exception was not.
    What a signal handler raises has no cause in the code that the signal has interrupted.
    """
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    context = error.__context__
    if context is None or context.__traceback__ is None:
        return None
    handled_in = context.__traceback__.tb_frame
    passed = error.__traceback__
    while passed is not None:
        if passed.tb_frame is handled_in:
            return None if is_of_signal_handler(error) else context
        passed = passed.tb_next
    return None


def is_of_signal_handler(error: BaseException) -> bool:
    """Whether a signal handler of the program, written in Python, raised `error`. It may come between any two instructions."""
    codes = {code for number in signal.valid_signals() if (code := _code(signal.getsignal(number))) is not None}
    passed = error.__traceback__
    while passed is not None:
        if passed.tb_frame.f_code in codes:
            return True
        passed = passed.tb_next
    return False


def _code(handler: Callable[..., Any] | int | None) -> CodeType | None:
    """Returns the code of a signal handler; None if it has none in Python."""
    found: Any = handler
    while isinstance(found, functools.partial):
        found = found.func
    found = getattr(found, "__func__", found)
    code = getattr(found, "__code__", None) or getattr(type(found).__dict__.get("__call__"), "__code__", None)
    return code if isinstance(code, CodeType) else None
