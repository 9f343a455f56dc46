"""The threads of one operation. The first error stops all of them, and every wait for them is bounded."""

import contextlib
import threading
from collections.abc import Callable

from jaxckpt._lib.deadline import SLICE_SECS, Deadline
from jaxckpt._lib.giving_way import GivingWay
from jaxckpt._lib.uninterrupted import start

_GRACE_SECS = 10.0


class Threads:
    """Daemon threads of one operation.

    A thread that hangs in the file system does not hold its caller beyond the deadline, and does not keep the process from ending.

    Attributes:
      changed: the condition that guards the state which the threads share. Notify it after a change.
      stopped: whether the threads shall end.
    """

    def __init__(self, deadline: Deadline, name: str, giving_way: GivingWay | None = None) -> None:
        """Makes a group without threads.

        Args:
          deadline: bounds every wait.
          name: name of the threads.
          giving_way: lets the threads give way to the program; None if they have the priority of the thread that starts them. When it
            is over, `relieve` starts threads that do not give way.
        """
        self._deadline = deadline
        self._name = name
        self._giving_way = giving_way
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._works: list[Callable[[], None]] = []
        self._error: BaseException | None = None
        self.changed = threading.Condition()
        self.stopped = False

    def at_least(self, count: int, work: Callable[[], None]) -> None:
        """Starts more threads, which call `work`, until there are `count` of them."""
        with self._lock:
            while len(self._threads) < count:
                self._start(work, self._giving_way)
                self._works.append(work)

    def _start(self, work: Callable[[], None], giving_way: GivingWay | None) -> None:
        thread = threading.Thread(target=self._run, args=(work, giving_way), name=self._name, daemon=True)
        start(thread)
        self._threads.append(thread)

    def relieve(self) -> None:
        """Starts, once giving way is over, as many threads again, which do not give way. The others go on.

        A thread cannot raise its own priority, and neither can a thread that it starts. So a thread with the program's priority, which
        waits for these threads, calls this now and then; `join` does.
        """
        if self._giving_way is None or not self._giving_way.is_over:
            return
        with self._lock:
            self._giving_way = None
            # The system may be unable to start more threads. Those that there are do all the work then.
            with contextlib.suppress(RuntimeError):
                for work in () if self.stopped else self._works:
                    self._start(work, None)

    def _run(self, work: Callable[[], None], giving_way: GivingWay | None) -> None:
        try:
            if giving_way is not None:
                giving_way.apply()
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

    def join(self, *others: "Threads") -> None:
        """Waits for all threads.

        Args:
          others: other groups, which are relieved meanwhile, too.

        Raises:
          BaseException: the first error of any thread.
          TimeoutError: the deadline has passed. A thread that hangs in a system call is left behind, and ends when the call returns.
        """
        try:
            while alive := [thread for thread in tuple(self._threads) if thread.is_alive()]:
                alive[0].join(min(self._deadline.left(), SLICE_SECS))
                for threads in (self, *others):
                    threads.relieve()
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
