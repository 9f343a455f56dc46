"""Restoring the newest checkpoint of a directory while other programs save and delete there."""

import errno
import warnings
from collections.abc import Sequence
from typing import Protocol

from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import files

# How often the newest checkpoint may be deleted before it could be read.
_MAX_LOSSES = 20


class Candidates(Protocol):
    """The checkpoints of a directory. In a job of several processes every method gives all of them the same answer."""

    def newest_first(self) -> Sequence[str]:
        """Returns the paths of what could be restored now, best first."""

    def require_sound(self, path: str, verify: bool) -> None:
        """Raises CorruptCheckpointError for a damaged checkpoint, and FileNotFoundError for one that is gone."""

    def exists(self, path: str) -> bool:
        """Whether anything is at the path."""

    def restore(self, path: str) -> object:
        """Restores a checkpoint."""


def restore_newest(candidates: Candidates, skip_corrupt: bool) -> str | None:
    """Restores the newest checkpoint that is there. One that is deleted while it is read is followed by the newest then.

    Args:
      candidates: the checkpoints.
      skip_corrupt: warn of damaged ones, and go on with the next one that verifies.

    Returns:
      Its path; None if there is none.

    Raises:
      CorruptCheckpointError: the newest is damaged (with `skip_corrupt`: all are).
      FileNotFoundError: all were deleted meanwhile.
    """
    damage: CorruptCheckpointError | None = None
    damaged: set[str] = set()
    lost: list[tuple[str, Exception]] = []
    while (path := next((path for path in candidates.newest_first() if path not in damaged), None)) is not None:
        try:
            candidates.require_sound(path, damage is not None)
            candidates.restore(path)
        except FileNotFoundError as error:
            if len(lost) == _MAX_LOSSES or path in [known for known, _ in lost[-1:]]:
                raise
            lost.append((path, error))
        except CorruptCheckpointError as error:
            if not candidates.exists(path) and len(lost) < _MAX_LOSSES:  # Half of it was read before it was deleted.
                lost.append((path, error))
                continue
            if not skip_corrupt:
                raise
            damage = damage or error
            damaged.add(path)
            warnings.warn(f"Skipping the damaged checkpoint {path}: {error}", stacklevel=4)
        else:
            return path
    if damage is not None:
        raise damage
    if lost:
        path, cause = lost[-1]
        raise FileNotFoundError(
            errno.ENOENT, "All checkpoints were deleted while they were looked up or read; the last was", path
        ) from cause
    return None


def require_sound(path: str, verify: bool) -> None:
    """Refuses a checkpoint that cannot be whole.

    Args:
      path: of the checkpoint.
      verify: read and check every byte.

    Raises:
      FileNotFoundError: nothing is there any more.
      CorruptCheckpointError: it is damaged.
    """
    from jaxckpt import storage

    if not storage.is_checkpoint(path):
        if not files.exists(path):
            raise FileNotFoundError(errno.ENOENT, "The checkpoint was deleted meanwhile", path)
        raise CorruptCheckpointError(
            f"{path} is listed as a checkpoint, but what marks it as one is missing. "
            "Remove it to go back to an older one, or pass skip_corrupt=True."
        )
    if verify:
        report = storage.verify(path)
        if not report.ok:
            raise CorruptCheckpointError(str(report))
