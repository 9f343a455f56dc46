"""Measures how long each save blocked the training, and when its checkpoint was on disk."""

import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jaxckpt._lib import numbering
from jaxckpt._lib.output import human_millis


@dataclass
class SaveTimes:
    """Times of one save.

    Attributes:
      number: the checkpoint's number.
      path: the checkpoint's path; empty until `save` has returned it.
      began: when `save` was called, by `time.perf_counter`.
      blocked_secs: how many seconds `save` took on the training thread.
      written_secs: seconds from the call until the write callback ran, that is, until the checkpoint was safely on disk.
    """

    number: int
    began: float
    path: str = ""
    blocked_secs: float | None = None
    written_secs: float | None = None


class SaveLog:
    """The times of the saves of a run. The training thread and the thread that writes both report to this log."""

    def __init__(self, say: Callable[[str], None], *, announced: bool) -> None:
        """Makes an empty log.

        Args:
          say: prints a line.
          announced: whether `written` will be called for every save.
        """
        self._say = say
        self._announced = announced
        self._lock = threading.Lock()
        self._saves: dict[int, SaveTimes] = {}

    def begin(self, number: int, at: float | None = None) -> None:
        """Notes that `save` is about to be called.

        Args:
          number: the checkpoint's number.
          at: when `save` was called, by `time.perf_counter`; None for now.
        """
        with self._lock:
            self._saves[number] = SaveTimes(number, time.perf_counter() if at is None else at)

    def returned(self, number: int, path: str | None, at: float | None = None) -> float:
        """Notes that `save` has returned.

        Args:
          number: the checkpoint's number.
          path: the result of `save`; None if it did not save.
          at: when it returned, by `time.perf_counter`; None for now.

        Returns:
          How many seconds the call took.
        """
        now = time.perf_counter() if at is None else at
        with self._lock:
            save = self._saves[number]
            blocked = now - save.began
            if path is None:
                del self._saves[number]
                return blocked
            save.path, save.blocked_secs = path, blocked
        self._report(save)
        return blocked

    def written(self, path: str, at: float | None = None) -> None:
        """Notes that a checkpoint is on disk. Called on the thread that writes, possibly before `save` has returned.

        Args:
          path: the checkpoint's path.
          at: when the checkpoint was on disk, by `time.perf_counter`; None for now.
        """
        now = time.perf_counter() if at is None else at
        with self._lock:
            save = self._saves.get(numbering.number_of(path))
            if save is None:
                return
            save.written_secs = now - save.began
        self._report(save)

    def finished(self) -> list[SaveTimes]:
        """Returns the saves, in order."""
        with self._lock:
            return list(self._saves.values())

    def _report(self, save: SaveTimes) -> None:
        """Prints the line of a save if both of its times are known."""
        if save.blocked_secs is None or (self._announced and save.written_secs is None):
            return
        written = "" if save.written_secs is None else f", written in {human_millis(save.written_secs)}"
        self._say(f"  saved {save.path}: training blocked {human_millis(save.blocked_secs)}{written}")


def median(values: Iterable[float]) -> float | None:
    """Returns the median; None if there are no values."""
    found = list(values)
    return statistics.median(found) if found else None
