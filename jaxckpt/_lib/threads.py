"""The threads of one operation: the first error stops all of them, and no wait for them is unbounded."""

import threading
from collections.abc import Callable

from jaxckpt._lib.deadline import SLICE_SECS, Deadline
from jaxckpt._lib.uninterrupted import start

_GRACE_SECS = 10.0


class Threads:
    """Daemon threads: one that hangs in the file system keeps neither its caller beyond the deadline nor the process from ending."""

    def __init__(self, deadline: Deadline, name: str) -> None:
        self._deadline = deadline
        self._name = name
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self.changed = threading.Condition()
        self.stopped = False

    def at_least(self, count: int, work: Callable[[], None]) -> None:
        """Starts threads that do `work` until there are `count` of them."""
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
        """Lets all threads end. The first error is the one that `join` raises."""
        with self.changed:
            if self._error is None:
                self._error = error
            self.stopped = True
            self.changed.notify_all()

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Waits, holding `changed`, until `ready` or until the threads shall stop; returns whether they shall go on.

        Raises:
          TimeoutError: after the deadline.
        """
        while not self.stopped and not ready():
            self.changed.wait(min(self._deadline.left(), SLICE_SECS))
        return not self.stopped

    def join(self) -> None:
        """Waits for all threads.

        Raises:
          BaseException: the very first error of any of them.
          TimeoutError: after the deadline; a thread that hangs in a system call is left behind, and ends when the call does.
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
            del found  # It holds this frame.
