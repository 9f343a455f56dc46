"""Restores the newest checkpoint of a directory, while other programs may save and delete there."""

import errno
import warnings
from collections.abc import Callable
from typing import TypeVar

from jaxckpt import storage
from jaxckpt.checkpoint import Checkpoint
from jaxckpt.directory.ask import ask
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.options import CheckpointOptions
from jaxckpt.storage import stores

# How often the newest checkpoint may be deleted before it can be read; then its error is raised.
_MAX_LOSSES = 20
_Result = TypeVar("_Result")


class Candidates:
    """The checkpoints that a manager can restore. In a job of several processes, every process gets the same answers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: str,
        options: CheckpointOptions | None,
        look: Callable[[], list[str]],
    ) -> None:
        """Creates the list of candidates, which is looked up each time that it is asked for.

        Args:
          checkpoint: the Checkpoint that is restored.
          directory: directory of the manager, for messages.
          options: they name the process that does the file access; None for the defaults.
          look: returns the paths of the checkpoints that can be restored now, best first.
        """
        self._checkpoint = checkpoint
        self._directory = directory
        self._options = options
        self._look = look

    def _together(self, work: Callable[[], _Result], before: Callable[[], None] = lambda: None) -> _Result:
        return ask("restore_or_initialize", self._directory, self._options, work, before=before, always=True)

    def newest_first(self) -> list[str]:
        """Waits for a save in flight, and returns the paths of the checkpoints that can be restored now, best first."""
        return self._together(self._look, self._checkpoint.sync)

    def exists(self, path: str) -> bool:
        """Returns whether anything exists at the path."""
        return self._together(lambda: stores.exists(path))

    def restore(self, path: str, *, verify: bool) -> None:
        """Restores a checkpoint.

        Args:
          path: path of the checkpoint.
          verify: whether to read and check every byte of it before.
        """
        self._together(lambda: require_sound(path, verify))
        self._checkpoint.restore(path, self._options)


def restore_newest(candidates: Candidates, skip_corrupt: bool) -> str | None:
    """Restores the newest checkpoint. If it is deleted while it is read, the newest one that is left is restored.

    Args:
      candidates: the checkpoints.
      skip_corrupt: whether to warn of a damaged checkpoint, and go on with the next one that verifies.

    Returns:
      The path of the restored checkpoint; None if there is none.

    Raises:
      CorruptCheckpointError: the newest checkpoint is damaged (with `skip_corrupt`: all are damaged).
      FileNotFoundError: all checkpoints were deleted meanwhile.
    """
    damage: CorruptCheckpointError | None = None
    damaged: set[str] = set()
    lost: list[tuple[str, Exception]] = []
    while (path := next((path for path in candidates.newest_first() if path not in damaged), None)) is not None:
        try:
            candidates.restore(path, verify=damage is not None)
            return path
        except (FileNotFoundError, CorruptCheckpointError) as error:
            # A checkpoint that is deleted while it is read may look damaged.
            if not candidates.exists(path) and len(lost) < _MAX_LOSSES:
                lost.append((path, error))
                continue
            if not skip_corrupt or not isinstance(error, CorruptCheckpointError):
                raise
            damage = damage or error
            damaged.add(path)
            warnings.warn(f"Skipping the damaged checkpoint {path}: {error}", stacklevel=3)
    if damage is not None:
        raise damage
    if lost:
        path, cause = lost[-1]
        raise FileNotFoundError(
            errno.ENOENT, "All checkpoints were deleted while they were looked up or read; the last was", path
        ) from cause
    return None


def require_sound(path: str, verify: bool) -> None:
    """Refuses a checkpoint that is incomplete or damaged.

    Args:
      path: path of the checkpoint.
      verify: whether to read and check every byte. False only checks that the directory is marked as a checkpoint.

    Raises:
      FileNotFoundError: the checkpoint does not exist any more.
      CorruptCheckpointError: the checkpoint is damaged.
    """
    if not storage.is_checkpoint(path):
        if not stores.exists(path):
            raise FileNotFoundError(errno.ENOENT, "The checkpoint was deleted meanwhile", path)
        raise CorruptCheckpointError.at(
            path,
            "it is listed as a checkpoint, but the file that marks it as one is missing. "
            "Remove it to go back to an older checkpoint, or pass skip_corrupt=True.",
        )
    if verify:
        report = storage.verify(path)
        if not report.ok:
            raise CorruptCheckpointError(str(report))
