"""The saves of one Checkpoint, one after the other: on the caller's thread, or in the background."""

from collections.abc import Callable
from typing import Any, Self

from jaxckpt.saving import rebinding
from jaxckpt.saving.background import Background, Flight, raise_errors
from jaxckpt.saving.save import Save
from jaxckpt.tree import flatten


class Turn:
    """The turn of one save, a context manager around it: `wait` waits for the save before.

    An error that the callback of an earlier save left is raised when this save is done. Not a generator with
    contextlib.contextmanager: that sets attributes of exceptions, which some refuse.
    """

    def __init__(self, background: Background) -> None:
        """Makes the turn of a save that has not begun.

        Args:
          background: the saves that may be in flight.
        """
        self._background = background
        self._earlier: tuple[Flight, ...] = ()

    def __enter__(self) -> Self:
        return self

    def wait(self) -> None:
        """Waits until the save before is over. Raises its error, if it was not saved."""
        self._background.wait()
        self._background.raise_error(after_commit=False)
        self._earlier = self._background.failed()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        # After an error of this save, they are raised at the next touch.
        if error is None:
            raise_errors(self._earlier)


class Saves:
    """The saves of one Checkpoint. The caller holds the Checkpoint's lock while it starts one."""

    def __init__(self) -> None:
        self._background = Background()
        self._watch = rebinding.RebindingWatch()

    def refuse_in_callback(self, action: str) -> None:
        """Refuses a call that would wait for the save that it is made in.

        Args:
          action: the call, for the message.

        Raises:
          RuntimeError: the caller is a write callback of an asynchronous save of this Checkpoint.
        """
        if self._background.is_current_thread:
            raise RuntimeError(
                f"{action} was called from a write callback of an asynchronous save of the same Checkpoint, which would wait for itself. "
                "Use another Checkpoint object in the callback, or call it after sync()."
            )

    def turn(self, action: str) -> Turn:
        """Returns the turn of a save, to be entered. Raises as `refuse_in_callback`."""
        self.refuse_in_callback(action)
        return Turn(self._background)

    def start(
        self,
        save: Save,
        turn: Turn,
        values: Callable[[], list[flatten.Flat]],
        reserve: Callable[[Save], tuple[int, str]],
        count: Callable[[], None],
        *,
        asynchronous: bool,
        exit_timeout_secs: float,
        step: int | None,
    ) -> None:
        """Takes the snapshot and writes it, here or in the background.

        Args:
          save: not prepared yet.
          turn: of this save, entered.
          values: takes the values apart.
          reserve: chooses and reserves number and path.
          count: counts the save, once it is registered; in the background as soon as it has been handed over.
          asynchronous: whether to write in the background.
          exit_timeout_secs: how many seconds the end of the program waits for the background.
          step: the manager's step; None if there is none.

        Raises:
          BaseException: what went wrong with this save or, if that was not saved, with the one before.
        """
        seen: rebinding.Seen | None = None

        def looked_at() -> list[flatten.Flat]:
            nonlocal seen
            flats = values()
            seen = rebinding.look(flats, step)
            return flats

        flight: Flight | None = None
        try:
            save.prepare(turn.wait, looked_at, reserve)
            if asynchronous:
                flight = Flight(save.run, save.path, save.wait_secs, exit_timeout_secs)
                self._background.take(flight)
                count()
            else:
                save.run(count)
        except BaseException:
            # An interrupt may come between any two steps. The other processes must not wait for this one; but a save that has been
            # handed over goes on, and the next call waits for it.
            if not self._background.owns(flight):
                save.abandon()
            raise
        assert seen is not None
        self._watch.saved(seen)

    def sync(self) -> None:
        """Waits for the save in flight, and raises its error, once.

        Raises:
          RuntimeError: called from a write callback of an asynchronous save of this Checkpoint.
          TimeoutError: the save is still running after its timeout; it goes on.
          BaseException: what the save raised.
        """
        self.refuse_in_callback("sync")
        self._background.wait()
        self._background.raise_error()

    def restored(self) -> None:
        """Notes that a restore gave the Checkpoint other values."""
        self._watch.forget()
