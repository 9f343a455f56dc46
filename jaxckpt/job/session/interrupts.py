"""Ctrl-C and the messages of a call: what processes do together is done on a thread that no interrupt reaches; it is given up instead."""

import threading
from collections.abc import Callable
from typing import TypeVar

from jaxckpt._lib.deadline import CancelledError, cancelled_by
from jaxckpt._lib.uninterrupted import uninterrupted

_Result = TypeVar("_Result")


class Interrupts:
    """The interrupts of one call.

    Attributes:
      first: the first one; None as long as there was none.
    """

    def __init__(self) -> None:
        self.first: BaseException | None = None
        self._given_up = threading.Event()
        self._can_be_given_up = True

    def protect(self, work: Callable[[], _Result]) -> _Result:
        """Does `work` where an interrupt does not tear a message: the main thread, which alone is interrupted, only waits for it.

        An interrupt gives the work up: `check`, and every `Deadline` of the work, raises. A second one is raised at once; the work then
        ends by itself.

        Args:
          work: bounded; calls `check` while it waits.

        Raises:
          BaseException: the first interrupt, also in place of what the work raised because of it; otherwise what the work raised.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()
        found: list[_Result] = []

        def cancellable() -> None:
            with cancelled_by(self._given_up):
                found.append(work())

        def give_up(interrupt: BaseException) -> None:
            self.first = self.first or interrupt
            if self._can_be_given_up:
                self._given_up.set()

        try:
            uninterrupted(cancellable, give_up)
        except Exception as error:
            if self.first is not None and error is not self.first:
                raise self.first from None
            raise
        return found[0]

    def check(self) -> None:
        """Raises CancelledError if the work has been given up."""
        if self._given_up.is_set():
            raise CancelledError("interrupted")

    def insist(self) -> None:
        """Says that the call is not given up any more: the step that begins cannot be taken back. Raises as `check`."""
        self._can_be_given_up = False
        self.check()
