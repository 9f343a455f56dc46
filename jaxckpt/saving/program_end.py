"""The end of the program: it waits for the saves in the background, for a bounded time, and reports what no call can raise any more."""

import atexit
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Protocol

# The end of the program prints that it waits for a save only if the wait takes longer than this.
_QUIET_SECS = 1.0


class Awaited(Protocol):
    """A save in the background, as the end of the program sees it. See `jaxckpt.saving.background.Flight`."""

    what: str
    exit_timeout_secs: float
    ended: bool

    @property
    def is_on_this_thread(self) -> bool:
        """Whether the caller runs on the thread of this save."""

    def wait(self, seconds: float) -> bool:
        """Waits until the save is over, for at most `seconds`. Returns whether it is over."""

    def give_up(self, why: str) -> None:
        """Reports that the program does not wait for this save any longer."""

    def tell(self) -> None:
        """Reports the error of the save, if no call has raised it."""


class ProgramEnd:
    """The end of this process.

    Attributes:
      is_over: whether the main thread has ended, and the saves have been waited for.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._running: set[Awaited] = set()
        self._lock = threading.Lock()
        self._is_watching = False
        # The interrupt that ended the wait for the saves.
        self._interrupt: BaseException | None = None

    def add(self, save: Awaited) -> None:
        """Lets the end of the program wait for a save.

        Args:
          save: a save that is about to run.
        """
        with self._lock:
            self._running.add(save)

    def discard(self, save: Awaited) -> None:
        """Removes a save from those that the end of the program waits for, or reports.

        Args:
          save: a save that is over, and whose error has been raised, if it had one. It need not have been added.
        """
        with self._lock:
            self._running.discard(save)

    def watch(self) -> None:
        """Arranges for `_finish_all` to run when the program ends, before Python shuts down what a save needs.

        ``atexit`` is too late: by then ``concurrent.futures``, which Orbax uses, refuses new work. `threading` has an earlier hook, which
        ``concurrent.futures`` uses too. Of that hook's functions, the last registered one runs first.
        """
        if self._is_watching:
            return
        self._is_watching = True
        atexit.register(self._end_as_interrupted)
        os.register_at_fork(after_in_child=self._after_fork)

        # Importing this registers its hook. Ours is registered later, so it runs earlier.
        import concurrent.futures.thread  # noqa: F401

        register = getattr(threading, "_register_atexit", None)
        if register is None:
            atexit.register(self._finish_all)
            return
        try:
            register(self._finish_all)
        except RuntimeError:
            # The program is ending already: one of its exit handlers saves.
            atexit.register(self._finish_all)

    def _after_fork(self) -> None:
        """Forgets the saves in a forked child: it does not have their threads, and must not wait for them."""
        self._lock = threading.Lock()
        for flight in self._running:
            flight.ended = True
        self._running.clear()

    def _finish_all(self) -> None:
        """Waits for the saves in flight when the program ends. Prints that it waits if that takes long; Ctrl-C ends the wait."""
        waiting: list[Awaited] = []
        try:
            try:
                with self._lock:
                    waiting += [flight for flight in self._running if not flight.is_on_this_thread]
                _wait_for(waiting)
            except (KeyboardInterrupt, SystemExit) as interrupt:
                # A second Ctrl-C kills the program at once.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                self._interrupt = interrupt
                for flight in waiting:
                    if not flight.ended:
                        flight.give_up(f"at {'Ctrl-C' if isinstance(interrupt, KeyboardInterrupt) else 'a signal'}")
            for flight in waiting:
                if flight.ended:
                    flight.tell()
        finally:
            self.is_over = True

    def _end_as_interrupted(self) -> None:
        """Ends the program as an interrupt would, if an interrupt ended the wait of `_finish_all`.

        `_finish_all` cannot raise the interrupt: from there, Python would print tracebacks of `threading` and end with status 0.
        """
        if self._interrupt is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        if isinstance(self._interrupt, SystemExit):
            code = self._interrupt.code
            os._exit(code if isinstance(code, int) else 0 if code is None else 1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


PROGRAM_END = ProgramEnd()


def say(text: str) -> None:
    """Prints a line on stderr.

    Args:
      text: without the line break at its end.
    """
    print(text, file=sys.stderr, flush=True)


def _wait_for(flights: list[Awaited]) -> None:
    began = time.monotonic()
    said = False
    for flight in flights:
        # The saves run side by side: the time of all of them began when the program came to its end.
        left = began + flight.exit_timeout_secs - time.monotonic()
        quiet = left if said else min(left, began + _QUIET_SECS - time.monotonic())
        if flight.wait(quiet):
            continue
        left = began + flight.exit_timeout_secs - time.monotonic()
        if not said and left > 0:
            said = True
            running = [each for each in flights if not each.ended]
            longest = max(each.exit_timeout_secs for each in running)
            say(
                f"jaxckpt: the program has ended, but the save of {', '.join(each.what for each in running)} is still running; waiting for "
                f"it, at most {longest:g} s (OrbaxSettings.exit_timeout_secs). Press Ctrl-C to give it up."
            )
        if not flight.wait(left):
            flight.give_up(f"after {flight.exit_timeout_secs:g} s (OrbaxSettings.exit_timeout_secs)")
