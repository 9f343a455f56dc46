"""Hooks around a save: they register the checkpoint in its directory, and delete old checkpoints."""

from jaxckpt.directory import registration, state_file
from jaxckpt.directory.series import CheckpointSeries
from jaxckpt.directory.steps import SavedStep, SavedSteps
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

    def __init__(self, series: CheckpointSeries, steps: SavedSteps, step: SavedStep | None) -> None:
        """Makes the hooks of one save.

        Args:
          series: the manager's checkpoints.
          steps: the manager's saved steps.
          step: the step of this save; None if the manager has no step counter.
        """
        self.is_saved = False
        self._series = series
        self._steps = steps
        self._step = step

    def register(self, path: CheckpointPath) -> None:
        """Registers the checkpoint."""
        self._series.register(path)

    def saved(self) -> None:
        """Counts the step as saved."""
        self.is_saved = True
        if self._step is not None:
            self._steps.commit(self._step)

    def finished(self, path: CheckpointPath) -> None:
        """Deletes old checkpoints."""
        self._series.retain(path.directory)

    def failed(self, error: BaseException) -> None:
        """No longer counts the step as saved."""
        if self._step is not None:
            self._steps.fail(self._step)
