"""Hooks around a save: the checkpoint is registered in its directory, and those that are not kept are deleted."""

from jaxckpt.directory import registration, state_file
from jaxckpt.directory.series import CheckpointSeries
from jaxckpt.directory.steps import SavedStep, SavedSteps
from jaxckpt.storage import CheckpointPath


class SaveHooks:
    """Steps around a save. The methods run on the thread that writes: the background's for an asynchronous save.

    `check`, `committed` and `finished` run on the process that does the file access only.
    """

    def check(self, path: CheckpointPath) -> None:
        """Nothing has been written yet: refuse what could not be registered."""
        state_file.check(path.directory)

    def committed(self, path: CheckpointPath) -> None:
        """The checkpoint has its name: make it the latest. If this raises, it loses the name again."""
        registration.register(path)

    def saved(self) -> None:
        """The checkpoint is committed and registered. Runs on every process."""

    def finished(self, path: CheckpointPath) -> None:
        """The callbacks have run, or failed: delete what is not kept."""

    def failed(self, error: BaseException) -> None:
        """The write failed, and left nothing. Runs on every process."""


class Unregistered(SaveHooks):
    """Hooks of `write`, which does not register."""

    def check(self, path: CheckpointPath) -> None:
        """Does nothing."""

    def committed(self, path: CheckpointPath) -> None:
        """Does nothing."""


class ManagerHooks(SaveHooks):
    """One save of a manager.

    Nothing here waits for the Checkpoint, whose lock another thread may hold while it waits for this save.

    Attributes:
      is_saved: the checkpoint is committed and registered.
    """

    def __init__(self, series: CheckpointSeries, steps: SavedSteps, step: SavedStep | None) -> None:
        """Makes the hooks of one save.

        Args:
          series: the manager's checkpoints.
          steps: the manager's steps.
          step: the step that is saved; None without an interval.
        """
        self.is_saved = False
        self._series = series
        self._steps = steps
        self._step = step

    def committed(self, path: CheckpointPath) -> None:
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
        """Gives the step back."""
        if self._step is not None:
            self._steps.fail(self._step)
