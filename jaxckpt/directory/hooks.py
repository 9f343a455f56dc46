"""Hooks around a save: they register the checkpoint in its directory, and delete old checkpoints."""

import time

from jaxckpt.directory import registration, state_file
from jaxckpt.directory.schedule import Due, SaveSchedule
from jaxckpt.directory.series import CheckpointSeries
from jaxckpt.storage import CheckpointPath


class SaveHooks:
    """Hooks that are called around a save, on the thread that writes (for an asynchronous save, a background thread).

    `check`, `register` and `finished` are called only on the process that does the file access.
    """

    def check(self, path: CheckpointPath) -> None:
        """Called before anything is written. Refuses a checkpoint that could not be registered afterwards."""
        state_file.check(path.directory)

    def register(self, path: CheckpointPath) -> None:
        """Called when the checkpoint is committed. Makes it the latest. If this raises, the commit is undone."""
        registration.register(path)

    def saved(self) -> None:
        """Called on every process when the checkpoint is committed and registered."""

    def finished(self, path: CheckpointPath) -> None:
        """Called after the write callbacks, even if they failed. Deletes old checkpoints."""

    def failed(self, error: BaseException) -> None:
        """Called on every process when the write has failed and its files have been removed."""


class Unregistered(SaveHooks):
    """Hooks of `write`, which does not register the checkpoint."""

    def check(self, path: CheckpointPath) -> None:
        """Does nothing."""

    def register(self, path: CheckpointPath) -> None:
        """Does nothing."""


class ManagerHooks(SaveHooks):
    """Hooks of one save of a manager.

    These methods never take the Checkpoint's lock, because another thread may hold it while it waits for this save.

    Attributes:
      is_saved: whether the checkpoint is committed and registered.
    """

    def __init__(self, series: CheckpointSeries, schedule: SaveSchedule, due: Due) -> None:
        """Makes the hooks of one save, which begins now.

        Args:
          series: the manager's checkpoints.
          schedule: decides when the manager saves.
          due: what it has decided.
        """
        self.is_saved = False
        self._series = series
        self._schedule = schedule
        self._due = due
        self._began = time.monotonic()

    def register(self, path: CheckpointPath) -> None:
        """Registers the checkpoint."""
        self._series.register(path)

    def saved(self) -> None:
        """Counts the step as saved."""
        self.is_saved = True
        self._schedule.commit(self._due, time.monotonic() - self._began)

    def finished(self, path: CheckpointPath) -> None:
        """Deletes old checkpoints."""
        self._series.retain(path.directory, path.name)

    def failed(self, error: BaseException) -> None:
        """No longer counts the step as saved."""
        self._schedule.fail(self._due)
