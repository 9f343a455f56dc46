"""Saves in flight: their threads, their errors (each raised once, at the next touch), and the end of the program.

A save that was handed over belongs to the background: it is written, committed and registered, whatever becomes of the call that began
it. The thread is a daemon, and so are the threads that Orbax starts from it: the end of the program waits for a save because
`_finish_all` does, for a bounded time, and not because a stuck thread holds the process.
"""

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from jaxckpt._lib.uninterrupted import finish_left, start

# An interrupt of one that waits can keep it from passing the turn on, so that others look once in a while.
_SLICE_SECS = 0.5
# How long a call waits for what two interrupts of an earlier one have left running: a commit, which takes milliseconds.
_LEFT_SECS = 10.0
_in_flight: set["Flight"] = set()
_registry_lock = threading.Lock()


class Flight:
    """One save that the background has taken over.

    Attributes:
      what: names the save in messages.
      error: what it raised, until that has been raised to the caller.
      wrote: whether the checkpoint is committed.
      ended: whether it is over.
    """

    def __init__(
        self, work: Callable[[Callable[[], None]], None], what: str, timeout_secs: float, exit_timeout_secs: float
    ) -> None:
        """Starts nothing yet.

        Args:
          work: is given a function to call once the checkpoint is committed.
          what: names the save in messages.
          timeout_secs: how long `wait` waits for it.
          exit_timeout_secs: how long the end of the program waits for it.
        """
        self.what = what
        self.timeout_secs = timeout_secs
        self.exit_timeout_secs = exit_timeout_secs
        self.error: BaseException | None = None
        self.wrote = False
        self.ended = False
        self._work: Callable[[Callable[[], None]], None] | None = work
        self._begun = threading.Lock()
        self._thread: threading.Thread | None = None
        # Not an Event: an interrupt in its wait() can leave its lock held, and set() would wait for ever.
        self._running = threading.Lock()
        self._running.acquire()

    def launch(self) -> None:
        """Starts its thread, if it has not begun yet. However often this is called, the save runs once.

        Raises:
          RuntimeError: there is no thread to be had.
        """
        if not self._begun.locked():
            with _registry_lock:
                _in_flight.add(self)
            start(threading.Thread(target=self.run, name=f"jaxckpt save {self.what}", daemon=True))

    def run(self) -> None:
        """Does the save on this thread, unless another one does or has."""
        if not self._begun.acquire(blocking=False):
            return
        self._thread = threading.current_thread()
        work, self._work = self._work, None
        assert work is not None
        try:
            work(self._committed)
        except BaseException as error:
            # SystemExit and KeyboardInterrupt too: they reach the caller like any other.
            self.error = error
            # An exception may refuse attributes; it must not be lost for that.
            with suppress(Exception):
                error.add_note(f"(raised in the background by jaxckpt's save of {self.what})")
        else:
            self.forget()
        finally:
            self.ended = True
            # This thread may be one of the program's, which goes on.
            self._thread = None
            self._running.release()

    def _committed(self) -> None:
        self.wrote = True

    def give_up(self, why: str) -> None:
        """At the end of the program: says that nobody waits for it any more."""
        consequence = "it is saved, but its callbacks have not finished" if self.wrote else "it is NOT saved"
        _say(f"jaxckpt: gave up waiting for the save of {self.what} {why}; {consequence}.")

    def tell(self) -> None:
        """At the end of the program: reports on stderr what nobody will ask for any more."""
        if (error := self.take_error()) is not None:
            consequence = "was saved, but a callback failed" if self.wrote else "was NOT saved"
            _say(
                f"jaxckpt: unreported error of a background save: {self.what} {consequence}:\n"
                + "".join(traceback.format_exception(error))
            )

    def forget(self) -> None:
        """Takes it off the list of what the end of the program waits for, or tells of."""
        with _registry_lock:
            _in_flight.discard(self)

    @property
    def is_on_this_thread(self) -> bool:
        """Whether the caller runs on the thread of this save, that is, in a write callback."""
        return self._thread is threading.current_thread()

    def wait(self, seconds: float) -> bool:
        """Waits until it is over; returns False if it is not after that time."""
        end = time.monotonic() + seconds
        while not self.ended:
            left = end - time.monotonic()
            if left <= 0:
                return self.ended
            if self._running.acquire(timeout=min(left, _SLICE_SECS)):
                self._running.release()
        return True

    def take_error(self) -> BaseException | None:
        """Returns its error, once."""
        # Two threads may ask at once.
        with _registry_lock:
            error, self.error = self.error, None
            if error is not None:
                _in_flight.discard(self)
        return error


class Background:
    """The saves of one Checkpoint that run in the background, one at a time."""

    def __init__(self) -> None:
        # The newest one, and those before it whose errors nobody has been told; oldest first.
        self._flights: tuple[Flight, ...] = ()

    def __deepcopy__(self, memo: Any) -> "Background":
        return Background()

    def take(self, flight: Flight) -> None:
        """Takes a save over. The one before has to be over: call `wait` first.

        An interrupt comes either before the save is taken over (see `owns`), or leaves it running.

        Raises:
          RuntimeError: there is no thread to be had; the save has not been taken over.
        """
        over = _ended or not threading.main_thread().is_alive()
        if not over:
            _watch_exit()
        before = self._flights
        self._flights = (*(each for each in before if each.error is not None), flight)
        if over:
            # Nobody waits for threads any more: save now, and raise what goes wrong.
            flight.run()
            _raise(flight)
            return
        try:
            flight.launch()
        except RuntimeError:
            self._flights = before
            flight.forget()
            raise

    def owns(self, flight: Flight | None) -> bool:
        """Whether a save has been taken over."""
        return flight in self._flights

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs on the thread of the save in flight, that is, in a write callback."""
        return any(flight.is_on_this_thread for flight in self._flights)

    def wait(self) -> None:
        """Waits for the save in flight, without raising its error.

        Raises:
          TimeoutError: it is still running after its timeout.
        """
        finish_left(_LEFT_SECS)
        for flight in self._flights[-1:]:
            if flight.is_on_this_thread:
                return
            # An interrupt may have come before its thread was started.
            flight.launch()
            if not flight.wait(flight.timeout_secs):
                raise TimeoutError(
                    f"The save of {flight.what} is still running after {flight.timeout_secs:g} s (OrbaxSettings.timeout_secs). "
                    "It goes on; call sync() to wait longer."
                )

    def raise_error(self, *, after_commit: bool | None = None) -> None:
        """Raises the oldest error of a save that is over, once.

        Args:
          after_commit: only if the checkpoint had been committed (a callback failed: True), or not (False).
        """
        for flight in self.failed():
            if after_commit is None or flight.wrote == after_commit:
                _raise(flight)

    def failed(self) -> tuple[Flight, ...]:
        """Returns the saves whose errors have not been raised, oldest first."""
        return tuple(flight for flight in self._flights if flight.ended and flight.error is not None)


def _raise(flight: Flight) -> None:
    error = flight.take_error()
    if error is not None:
        try:
            raise error
        finally:
            # No cycle through the traceback.
            del error


def raise_errors(flights: Iterable[Flight]) -> None:
    """Raises the first error among those of saves that are over, once."""
    for flight in flights:
        _raise(flight)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


_watching = False
# The main thread has ended, and the saves that were in flight have been waited for.
_ended = False
# The interrupt that ended that wait.
_end: BaseException | None = None
# How long the end of the program waits for a save without saying so.
_QUIET_SECS = 1.0


def _watch_exit() -> None:
    """Arranges for `_finish_all` to run when the program ends, before the machinery that a save needs is shut down.

    ``atexit`` is too late: by then ``concurrent.futures``, which Orbax uses, refuses new work. The hook that ``concurrent.futures``
    itself uses runs earlier, the last registered one first.
    """
    global _watching
    if _watching:
        return
    _watching = True
    atexit.register(_end_as_interrupted)
    os.register_at_fork(after_in_child=_after_fork)
    import concurrent.futures.thread  # noqa: F401  Registers its hook before ours, so ours runs before it.

    register = getattr(threading, "_register_atexit", None)
    if register is None:
        atexit.register(_finish_all)
        return
    try:
        register(_finish_all)
    except RuntimeError:  # The program is ending already: an exit handler of the user saves.
        atexit.register(_finish_all)


def _after_fork() -> None:
    """The threads of the saves are not in the child, which must not wait for them."""
    global _registry_lock
    _registry_lock = threading.Lock()
    for flight in _in_flight:
        flight.ended = True
    _in_flight.clear()


def _finish_all() -> None:
    """Waits for the saves in flight, says so if that takes long, and ends cleanly at Ctrl-C."""
    global _ended, _end
    waiting: list[Flight] = []
    try:
        try:
            with _registry_lock:
                waiting += [flight for flight in _in_flight if not flight.is_on_this_thread]
            _wait_for(waiting)
        except (KeyboardInterrupt, SystemExit) as interrupt:
            # Another Ctrl-C ends the program where it is.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _end = interrupt
            for flight in waiting:
                if not flight.ended:
                    flight.give_up(f"at {'Ctrl-C' if isinstance(interrupt, KeyboardInterrupt) else 'a signal'}")
        for flight in waiting:
            if flight.ended:
                flight.tell()
    finally:
        _ended = True


def _wait_for(flights: list[Flight]) -> None:
    began = time.monotonic()
    said = False
    for flight in flights:
        # Each has been running since before the program came to its end.
        left = began + flight.exit_timeout_secs - time.monotonic()
        quiet = left if said else min(left, began + _QUIET_SECS - time.monotonic())
        if flight.wait(quiet):
            continue
        left = began + flight.exit_timeout_secs - time.monotonic()
        if not said and left > 0:
            said = True
            running = [each for each in flights if not each.ended]
            longest = max(each.exit_timeout_secs for each in running)
            _say(
                f"jaxckpt: the program has ended but for the save of {', '.join(each.what for each in running)}; waiting for it, at most "
                f"{longest:g} s (OrbaxSettings.exit_timeout_secs). Ctrl-C gives it up."
            )
        if not flight.wait(left):
            flight.give_up(f"after {flight.exit_timeout_secs:g} s (OrbaxSettings.exit_timeout_secs)")


def _end_as_interrupted() -> None:
    """Ends the program as an interrupt ends it, where the wait for a save was interrupted.

    Python raises nothing from where saves are waited for: it would print tracebacks of `threading`, and end with status 0.
    """
    if _end is None:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    if isinstance(_end, SystemExit):
        code = _end.code
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
