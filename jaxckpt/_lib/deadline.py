"""One bound for every wait of an operation."""

import contextlib
import contextvars
import threading
import time
from collections.abc import Iterator
from typing import Any

# The longest that a wait goes on after the operation was cancelled.
SLICE_SECS = 0.25
_cancelled: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancelled", default=None)


class CancelledError(Exception):
    """The operation was given up by whoever began it."""


@contextlib.contextmanager
def cancelled_by(event: threading.Event) -> Iterator[None]:
    """Lets every wait of the block end with CancelledError soon after `event` is set."""
    token = _cancelled.set(event)
    try:
        yield
    finally:
        _cancelled.reset(token)


class Deadline:
    """A moment that no wait may pass."""

    def __init__(self, seconds: float, what: str) -> None:
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._what = what
        self._cancelled = _cancelled.get()

    def left(self) -> float:
        """Returns the seconds left.

        Raises:
          TimeoutError: there are none; says what took too long.
          CancelledError: the operation was given up.
        """
        if self._cancelled is not None and self._cancelled.is_set():
            raise CancelledError(self._what)
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{self._what} took longer than {self._seconds:g} s (OrbaxSettings.timeout_secs).")
        return left

    def wait(self, future: Any) -> Any:
        """Returns the result of a TensorStore future."""
        while True:
            left = self.left()
            try:
                return future.result(timeout=left if self._cancelled is None else min(left, SLICE_SECS))
            except TimeoutError:
                if self._cancelled is None or future.done():
                    self.left()
                    raise
