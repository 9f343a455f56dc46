"""A deadline that bounds every wait of one operation."""

import contextlib
import contextvars
import threading
import time
from collections.abc import Iterator
from typing import Any

# A wait ends at most this long after its operation was cancelled.
SLICE_SECS = 0.25
_cancelled: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancelled", default=None)


class CancelledError(Exception):
    """The code that began the operation has cancelled it."""


@contextlib.contextmanager
def cancelled_by(event: threading.Event) -> Iterator[None]:
    """Makes every wait inside the block raise CancelledError soon after `event` is set."""
    token = _cancelled.set(event)
    try:
        yield
    finally:
        _cancelled.reset(token)


class Deadline:
    """The moment at which all waits of an operation must have ended."""

    def __init__(self, seconds: float, what: str) -> None:
        """Starts the clock.

        Args:
          seconds: how long the operation may take.
          what: names the operation in errors.
        """
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._what = what
        self._cancelled = _cancelled.get()

    def left(self) -> float:
        """Returns the seconds left.

        Raises:
          TimeoutError: the deadline has passed; the message names the operation.
          CancelledError: the operation was cancelled.
        """
        if self._cancelled is not None and self._cancelled.is_set():
            raise CancelledError(self._what)
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{self._what} took longer than {self._seconds:g} s (OrbaxSettings.timeout_secs).")
        return left

    def wait(self, future: Any) -> Any:
        """Returns the result of a TensorStore future. Raises the errors of `left` if it does not come in time."""
        while True:
            left = self.left()
            try:
                return future.result(timeout=left if self._cancelled is None else min(left, SLICE_SECS))
            except TimeoutError:
                if self._cancelled is None or future.done():
                    self.left()
                    raise
