"""Measures one save, and tells about it: a line of the log, events, and what its checkpoint remembers."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxckpt._lib.output import describe, human_bytes, human_seconds
from jaxckpt.telemetry import events

# A wait for the save before is worth a warning if it takes longer.
WORTH_A_WARNING_SECS = 1.0


class SaveTimes:
    """The times of one save. The thread that called `save` and the thread that writes both report to it.

    Attributes:
      began: when the call began, in seconds since the epoch.
      mode: "async" if the save is written in the background.
      bytes: size of all arrays of the checkpoint; None until it is known.
      is_saved: whether the checkpoint is committed and registered, as far as this process knows.
    """

    def __init__(self, subject: str, *, asynchronous: bool, previous: "SaveTimes | None") -> None:
        """Starts the clock: the call has just begun.

        Args:
          subject: the path or prefix that the caller gave, for messages.
          asynchronous: whether the save is written in the background.
          previous: the save of the same Checkpoint before this one; None if it is the first.
        """
        self.began = time.time()
        self.mode: events.Mode = "async" if asynchronous else "sync"
        self.bytes: int | None = None
        self.is_saved = False
        self._subject = subject
        self._start = time.monotonic()
        self._since_previous = None if previous is None else self._start - previous._start
        self._waited = 0.0
        self._blocked: float | None = None
        self._written: float | None = None
        self._path = ""
        self._lock = threading.Lock()
        self._has_failed = False

    def wait(self, until_over: Callable[[], None]) -> None:
        """Waits for the save before. Warns if it takes more than a second.

        Args:
          until_over: waits, and raises the error of that save.
        """
        began = time.monotonic()
        try:
            until_over()
        finally:
            self._waited = time.monotonic() - began
            if self._waited > WORTH_A_WARNING_SECS:
                events.LOGGER.warning(
                    "Training waited %s for the save before, which was not yet written, when it began to save %s. Save less often, or "
                    "to a faster disk.",
                    human_seconds(self._waited),
                    self._subject,
                )

    def returned(self) -> None:
        """Notes that the call is about to return: training goes on."""
        blocked = time.monotonic() - self._start
        events.duration(events.SAVE_BLOCKED, blocked, self.mode)
        events.duration(events.SAVE_WAITED, self._waited, self.mode)
        if self._since_previous is not None:
            events.duration(events.SAVE_SINCE_PREVIOUS, self._since_previous, self.mode)
        with self._lock:
            self._blocked = blocked
            is_last = self._written is not None
        if is_last:
            self._tell()

    def written(self, path: str) -> None:
        """Notes that the checkpoint is committed and registered.

        Args:
          path: its path.
        """
        self.is_saved = True
        written = time.monotonic() - self._start
        events.duration(events.SAVE_WRITTEN, written, self.mode)
        events.scalar(events.SAVE_BYTES, self.bytes or 0, self.mode)
        with self._lock:
            self._path, self._written = path, written
            is_last = self._blocked is not None
        if is_last:
            self._tell()

    def failed(self, path: str, error: BaseException) -> None:
        """Notes that the save has failed, unless its checkpoint is saved: then an interrupt or a callback failed. May be called twice.

        Args:
          path: its path; empty if that is not known yet.
          error: why.
        """
        with self._lock:
            if self._has_failed or self.is_saved:
                return
            self._has_failed = True
        events.LOGGER.info(
            "did not save %s after %s: %s: %s",
            path or self._subject,
            human_seconds(time.monotonic() - self._start),
            type(error).__name__,
            describe(error),
        )
        events.event(events.SAVE_FAILED, self.mode)

    def account(self) -> dict[str, Any]:
        """Returns what the checkpoint remembers, as JSON values, right before it is committed. Its times end now.

        See `jaxckpt.storage.item.account` for the meaning.
        """
        now = time.monotonic() - self._start
        return {
            "began": self.began,
            "asynchronous": self.mode == "async",
            "blocked_secs": now if self._blocked is None else self._blocked,
            "waited_secs": self._waited,
            "written_secs": now,
            "bytes": self.bytes or 0,
        }

    def _tell(self) -> None:
        if not events.LOGGER.isEnabledFor(logging.INFO):
            return
        assert self._blocked is not None
        assert self._written is not None
        events.LOGGER.info(
            "saved %s: %s in %s; training was blocked for %s, %s of it waiting for the save before",
            self._path,
            human_bytes(self.bytes),
            human_seconds(self._written),
            human_seconds(self._blocked),
            human_seconds(self._waited),
        )
