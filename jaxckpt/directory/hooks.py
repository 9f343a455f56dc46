"""What a directory does around a save: registers the checkpoint, and deletes what is not kept."""

from jaxckpt.directory import state_file, state_store
from jaxckpt.storage import CheckpointPath


class SaveHooks:
    """What else happens around a save. The methods run on the thread that writes: the background's for an asynchronous save.

    `check`, `committed` and `finished` run on the process that does the file access only.
    """

    def check(self, path: CheckpointPath) -> None:
        """Nothing has been written yet: refuse what could not be registered."""
        state_store.check(path.directory)

    def committed(self, path: CheckpointPath) -> None:
        """The checkpoint has its name: make it the latest. If this raises, it loses the name again."""
        state_file.register(path)

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
