"""The threads of one operation. The first error stops all of them, and every wait for them is bounded."""

import threading
from collections.abc import Callable

from jaxckpt._lib.deadline import SLICE_SECS, Deadline
from jaxckpt._lib.uninterrupted import start

_GRACE_SECS = 10.0


class Threads:
    """Daemon threads of one operation.

    A thread that hangs in the file system does not hold its caller beyond the deadline, and does not keep the process from ending.

    Attributes:
      changed: the condition that guards the state which the threads share. Notify it after a change.
      stopped: whether the threads shall end.
    """

    def __init__(self, deadline: Deadline, name: str) -> None:
        """Makes a group without threads.

        Args:
          deadline: bounds every wait.
          name: name of the threads.
        """
        self._deadline = deadline
        self._name = name
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self.changed = threading.Condition()
        self.stopped = False

    def at_least(self, count: int, work: Callable[[], None]) -> None:
        """Starts more threads, which call `work`, until there are `count` of them."""
        with self._lock:
            while len(self._threads) < count:
                thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
                start(thread)
                self._threads.append(thread)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.stop(error)

    def stop(self, error: BaseException) -> None:
        """Tells all threads to end. `join` raises the first `error` given here."""
        with self.changed:
            if self._error is None:
                self._error = error
            self.stopped = True
            self.changed.notify_all()

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Waits until `ready` returns True or the threads shall stop. Returns whether the threads shall go on.

        Args:
          ready: called with `changed` held. The caller must hold it too.

        Raises:
          TimeoutError: after the deadline.
        """
        while not self.stopped and not ready():
            self.changed.wait(min(self._deadline.left(), SLICE_SECS))
        return not self.stopped

    def join(self) -> None:
        """Waits for all threads.

        Raises:
          BaseException: the first error of any thread.
          TimeoutError: the deadline has passed. A thread that hangs in a system call is left behind, and ends when the call returns.
        """
        try:
            while alive := [thread for thread in tuple(self._threads) if thread.is_alive()]:
                alive[0].join(min(self._deadline.left(), SLICE_SECS))
        except BaseException as error:
            self.stop(error)
        found, self._error = self._error, None
        if found is None:
            return
        grace = Deadline(_GRACE_SECS, self._name)
        for thread in tuple(self._threads):
            try:
                thread.join(grace.left())
            except TimeoutError:
                break
        try:
            raise found
        finally:
            # The traceback of the error holds this frame: break the cycle.
            del found
