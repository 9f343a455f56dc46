"""Saves in the background: their threads, and their errors (each is raised once, by the next call).

Once a save has been handed to the background, it is written, committed and registered, even if the call that began it is interrupted.
Its thread is a daemon, and so are the threads that Orbax starts from it: a stuck thread cannot keep the process from ending. The end of
the program waits for the saves (see `jaxckpt.saving.program_end`).
"""

import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from jaxckpt._lib.uninterrupted import finish_left, start
from jaxckpt.saving.program_end import PROGRAM_END, say

# Several threads may wait for one save, and pass its lock on. An interrupt can keep one of them from doing so, so the others look again
# after this time.
_SLICE_SECS = 0.5
# After two interrupts, a commit of an earlier call may still be running. It takes milliseconds; a call waits for it at most this long.
_LEFT_SECS = 10.0
# A new thread keeps Python's lock until it waits for something. So it waits this long first, and the caller that has started it goes on.
_PAUSE_SECS = 0.001


class Flight:
    """One save that runs in the background.

    Attributes:
      what: the path of the checkpoint, for messages.
      error: the error of the save, until a call has raised it to the program; otherwise None.
      is_saved: whether the checkpoint is committed and registered.
      ended: whether the save is over.
    """

    def __init__(
        self, work: Callable[[Callable[[], None]], None], what: str, timeout_secs: float, exit_timeout_secs: float
    ) -> None:
        """Creates the flight. `launch` starts it.

        Args:
          work: does the save. Its argument is a function that it calls once the checkpoint is committed and registered.
          what: the path of the checkpoint, for messages.
          timeout_secs: most seconds that a call waits for the save.
          exit_timeout_secs: most seconds that the end of the program waits for the save.
        """
        self.what = what
        self.timeout_secs = timeout_secs
        self.exit_timeout_secs = exit_timeout_secs
        self.error: BaseException | None = None
        self.is_saved = False
        self.ended = False
        self._work: Callable[[Callable[[], None]], None] | None = work
        self._begun = threading.Lock()
        self._thread: threading.Thread | None = None
        self._taking = threading.Lock()
        # Held until the save is over. Not an Event: an interrupt in its wait() can leave its lock held, and set() would wait for ever.
        self._running = threading.Lock()
        self._running.acquire()

    def launch(self) -> None:
        """Starts the thread of the save, if the save has not begun yet. The save runs once, even if this is called several times.

        Raises:
          RuntimeError: the system cannot start a thread.
        """
        if not self._begun.locked():
            PROGRAM_END.add(self)
            start(threading.Thread(target=self.run, args=(_PAUSE_SECS,), name=f"jaxckpt save {self.what}", daemon=True))

    def run(self, pause_secs: float = 0.0) -> None:
        """Runs the save on this thread, unless another thread has begun it.

        Args:
          pause_secs: wait so many seconds first.
        """
        if not self._begun.acquire(blocking=False):
            return
        self._thread = threading.current_thread()
        work, self._work = self._work, None
        assert work is not None
        try:
            if pause_secs:
                time.sleep(pause_secs)
            work(self._saved)
        except BaseException as error:
            # SystemExit and KeyboardInterrupt too: they are raised to the caller like any other error.
            self.error = error
            # An exception class may refuse new attributes. The error must not be lost because of that.
            with suppress(Exception):
                error.add_note(f"(raised in the background by jaxckpt's save of {self.what})")
        else:
            self.forget()
        finally:
            self.ended = True
            # `run` may have been called on a thread of the program, which goes on.
            self._thread = None
            self._running.release()

    def _saved(self) -> None:
        self.is_saved = True

    def give_up(self, why: str) -> None:
        """Reports on stderr, when the program ends, that the program does not wait for this save any longer.

        Args:
          why: after how long, or because of what signal; completes the sentence.
        """
        consequence = "it is saved, but its callbacks have not finished" if self.is_saved else "it is NOT saved"
        say(f"jaxckpt: gave up waiting for the save of {self.what} {why}; {consequence}.")

    def tell(self) -> None:
        """Reports the error of the save on stderr, when the program ends: no later call can raise it."""
        if (error := self.take_error()) is not None:
            consequence = "was saved, but a callback failed" if self.is_saved else "was NOT saved"
            say(
                f"jaxckpt: unreported error of a background save: {self.what} {consequence}:\n"
                + "".join(traceback.format_exception(error))
            )

    def forget(self) -> None:
        """Removes the save from the list of those that the end of the program waits for, or reports."""
        PROGRAM_END.discard(self)

    @property
    def is_on_this_thread(self) -> bool:
        """Whether the caller runs on the thread of this save, that is, in a write callback."""
        return self._thread is threading.current_thread()

    def wait(self, seconds: float) -> bool:
        """Waits until the save is over, for at most `seconds`. Returns whether it is over."""
        end = time.monotonic() + seconds
        while not self.ended:
            left = end - time.monotonic()
            if left <= 0:
                return self.ended
            if self._running.acquire(timeout=min(left, _SLICE_SECS)):
                self._running.release()
        return True

    def take_error(self) -> BaseException | None:
        """Returns the error of the save, once; afterwards None."""
        # Two threads may ask at once.
        with self._taking:
            error, self.error = self.error, None
        if error is not None:
            self.forget()
        return error


class Background:
    """The saves of one Checkpoint that run in the background, one at a time."""

    def __init__(self) -> None:
        # The newest save, and earlier ones whose errors have not been raised yet; oldest first.
        self._flights: tuple[Flight, ...] = ()

    def __deepcopy__(self, memo: Any) -> "Background":
        return Background()

    def take(self, flight: Flight) -> None:
        """Takes over a save. The save before it must be over: call `wait` first.

        If an interrupt comes, `owns` tells whether the save was taken over before; then it runs on.

        Args:
          flight: the save.

        Raises:
          RuntimeError: the system cannot start a thread. The save has not been taken over.
        """
        over = PROGRAM_END.is_over or not threading.main_thread().is_alive()
        if not over:
            PROGRAM_END.watch()
        before = self._flights
        self._flights = (*(each for each in before if each.error is not None), flight)
        if over:
            # The program is ending and would not wait for another thread: save on this one, and raise the error here.
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
        """Returns whether a save has been taken over.

        Args:
          flight: the save; None if it does not exist yet.
        """
        return flight in self._flights

    @property
    def is_saving(self) -> bool:
        """Whether a save is in flight."""
        return any(not flight.ended for flight in self._flights)

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
            # An interrupt may have kept its thread from being started.
            flight.launch()
            if not flight.wait(flight.timeout_secs):
                raise TimeoutError(
                    f"The save of {flight.what} is still running after {flight.timeout_secs:g} s (OrbaxSettings.timeout_secs). "
                    "It goes on; call sync() to wait longer."
                )

    def raise_error(self, *, after_commit: bool | None = None) -> None:
        """Raises the oldest error that has not been raised yet, of a save that is over.

        Args:
          after_commit: True: only errors after the commit (a callback failed). False: only errors before the commit (the checkpoint is
            not saved). None: both.
        """
        for flight in self.failed():
            if after_commit is None or flight.is_saved == after_commit:
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
            # The traceback of the error refers to this frame: do not keep a reference cycle.
            del error


def raise_errors(flights: Iterable[Flight]) -> None:
    """Raises the first error of these saves that has not been raised yet.

    Args:
      flights: saves that are over, oldest first.
    """
    for flight in flights:
        _raise(flight)
