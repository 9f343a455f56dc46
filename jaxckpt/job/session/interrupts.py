"""Ctrl-C during a call of several processes. It stops the call between two messages, never inside of one.

Messages are exchanged on a thread of their own, because Python raises interrupts on the main thread only.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

from jaxckpt._lib.deadline import CancelledError, cancelled_by
from jaxckpt._lib.uninterrupted import uninterrupted

_Result = TypeVar("_Result")


class Interrupts:
    """The interrupts of one call.

    Attributes:
      first: the first interrupt; None if there was none.
    """

    def __init__(self) -> None:
        self.first: BaseException | None = None
        self._given_up = threading.Event()
        self._can_be_given_up = True

    def protect(self, work: Callable[[], _Result]) -> _Result:
        """Runs `work` on another thread while the main thread waits. Interrupts come only on the main thread, so messages stay whole.

        After an interrupt the work is given up: `check`, and every `Deadline` of the work, raises. A second interrupt is raised at once;
        the work then ends by itself.

        Args:
          work: must end in bounded time, and call `check` while it waits.

        Raises:
          BaseException: the first interrupt if there was one, otherwise the error of the work.
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
        """Makes later interrupts wait: from now on the work is not given up, because its next step cannot be undone. Raises as `check`."""
        self._can_be_given_up = False
        self.check()
