"""The saves of one Checkpoint, one after the other: on the caller's thread, or in the background."""

from collections.abc import Callable
from typing import Any, Self

from jaxckpt.saving import rebinding
from jaxckpt.saving.background import Background, Flight, raise_errors
from jaxckpt.saving.save import Save
from jaxckpt.tree import flatten


class Turn:
    """The turn of one save: a context manager around it, whose `wait` waits for the save before.

    If a callback of an earlier asynchronous save failed, its error is raised when this save is done.
    Not a generator with contextlib.contextmanager: that sets attributes of exceptions, which some exception classes refuse.
    """

    def __init__(self, background: Background) -> None:
        """Creates the turn of a save that has not begun.

        Args:
          background: the asynchronous saves of the Checkpoint.
        """
        self._background = background
        self._earlier: tuple[Flight, ...] = ()

    def __enter__(self) -> Self:
        return self

    def wait(self) -> None:
        """Waits until the save before is over. Raises its error if its checkpoint was not saved."""
        self._background.wait()
        self._background.raise_error(after_commit=False)
        self._earlier = self._background.failed()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        # If this save failed, the next call raises the earlier errors.
        if error is None:
            raise_errors(self._earlier)


class Saves:
    """The saves of one Checkpoint. The caller holds the Checkpoint's lock while it starts one."""

    def __init__(self) -> None:
        self._background = Background()
        self._watch = rebinding.RebindingWatch()

    @property
    def is_saving(self) -> bool:
        """Whether a save runs in the background."""
        return self._background.is_saving

    def refuse_in_callback(self, action: str) -> None:
        """Refuses a call from a write callback of an asynchronous save: it would wait for the save that it is part of.

        Args:
          action: the call, such as "sync", for the message.

        Raises:
          RuntimeError: the caller is a write callback of an asynchronous save of this Checkpoint.
        """
        if self._background.is_current_thread:
            raise RuntimeError(
                f"{action} was called from a write callback of an asynchronous save of the same Checkpoint; the save would wait for "
                f"itself. Use another Checkpoint object in the callback, or call {action} after sync()."
            )

    def turn(self, action: str) -> Turn:
        """Returns the turn of a save, which the caller enters. Raises as `refuse_in_callback`.

        Args:
          action: the call, for the message.
        """
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
        """Takes the snapshot and writes it, on this thread or in the background.

        Args:
          save: the save, not prepared yet.
          turn: the turn of this save; the caller has entered it.
          values: returns the flattened values.
          reserve: chooses and reserves number and path.
          count: counts the save. Called when the save is registered; if it is asynchronous, already when the background has taken it.
          asynchronous: whether to write in the background.
          exit_timeout_secs: most seconds that the end of the program waits for an asynchronous save.
          step: the manager's step; None if there is none.

        Raises:
          BaseException: the error of this save or, if its checkpoint was not saved, of the save before.
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
        except BaseException as error:
            # An interrupt may come between any two steps. Abandon the save, so that the other processes don't wait for this one. But if
            # the background has taken the save, it goes on, and the next call waits for it.
            if not self._background.owns(flight):
                save.abandon()
                save.times.failed(save.path, error)
            raise
        assert seen is not None
        self._watch.saved(seen)

    def sync(self) -> None:
        """Waits for the save in flight and raises its error, once.

        Raises:
          RuntimeError: called from a write callback of an asynchronous save of this Checkpoint.
          TimeoutError: the save is still running after its timeout. It goes on.
          BaseException: the error of the save.
        """
        self.refuse_in_callback("sync")
        self._background.wait()
        self._background.raise_error()

    def restored(self) -> None:
        """Notes that a restore has replaced the values of the Checkpoint."""
        self._watch.forget()
