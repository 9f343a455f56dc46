"""What a save and a restore leave to the mode of the job: who brings which values, who touches files, and what has to agree."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from jaxckpt.job.agree.call import Contribution
from jaxckpt.job.plan import Plan
from jaxckpt.job.session.session import Session, patience
from jaxckpt.storage.arrays.writer import Fill
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.source import Source
from jaxckpt.tree.flatten import Leaf

# Puts the arrays of a snapshot into groups, if the user has asked for that.
Arrange: TypeAlias = Callable[[Snapshot], Snapshot]
# Writes, commits and registers a checkpoint: a snapshot, how, and what fills the directory.
Commit: TypeAlias = Callable[[Snapshot, WriteSettings, Fill], None]


@dataclasses.dataclass(frozen=True)
class Reading:
    """A checkpoint that is open on this process.

    Attributes:
      source: what is in it.
      finish: called once, with the error of this process's reading, or None. Waits for the other processes, and raises if one failed.
    """

    source: Source
    finish: Callable[[BaseException | None], None]


class Mode(Protocol):
    """How the processes of a job reach the files of a checkpoint: each alone, in a shared directory, or through one of them.

    A save or restore makes one for itself, with `jaxckpt.job.modes.mode_of`, and knows nothing more about the job.
    """

    def plan(self) -> Plan | None:
        """Returns a new plan of who owns which part of an array; None if this process has all of everything."""

    def part(self, taken: Snapshot, path: str, settings: WriteSettings, arrange: Arrange) -> Snapshot:
        """Checks and arranges what this process has taken, before the others hear of the save.

        Args:
          taken: this process's part of the snapshot.
          path: where the checkpoint, or its name without number, belongs.
          settings: how it will be written.
          arrange: puts arrays into groups; called by a process that writes what it has taken.

        Raises:
          ValueError: the processes cannot write this together.
        """

    def agree_to_save(
        self, leaves: Sequence[Leaf], taken: Snapshot, plan: Plan | None, facts: Mapping[str, Any]
    ) -> Contribution:
        """Returns what this process has to say before a save.

        Args:
          leaves: of the values.
          taken: the snapshot of them.
          plan: that it was taken with.
          facts: what everyone is told, on the process that does the file access.
        """

    def agree_to_restore(self, targets: Sequence[Leaf]) -> Contribution:
        """Returns what this process has to say before a restore into these targets."""

    def write(
        self,
        session: Session,
        taken: Callable[[], Snapshot],
        settings: WriteSettings,
        arrange: Arrange,
        commit: Commit,
    ) -> None:
        """Brings the snapshot to the disk; returns when the checkpoint is committed and registered, on every process.

        Args:
          session: of the save.
          taken: gives away this process's part of the snapshot, so that no other reference keeps it; called once.
          settings: how to write.
          arrange: as for `part`; called by the process that writes what others have taken.
          commit: called on the process that does the file access.

        Raises:
          BaseException: what went wrong; on every process, an error of the same kind.
        """

    def open(self, session: Session, path: str, seconds: float) -> Reading:
        """Opens a checkpoint.

        Args:
          session: of the restore. If this raises, the caller votes with the error.
          path: of the checkpoint.
          seconds: bound for every wait of the reading.

        Raises:
          OSError, CheckpointError: it cannot be opened.
        """

    def explained(self, error: BaseException, process: int) -> BaseException:
        """Returns an error of reading, or one like it that says what about the job may be the reason.

        Args:
          error: what this process met.
          process: index of this process.
        """


def patient(settings: WriteSettings) -> WriteSettings:
    """Returns settings for the process that waits for others. If one does not answer, that is to be said, not that the write took long."""
    seconds = settings.timeout_secs
    return dataclasses.replace(settings, timeout_secs=seconds + patience(seconds))


def no_file_access() -> None:
    """The work of a process that leaves the files to another one."""


def empty_nodes(leaves: Sequence[Leaf], taken: Snapshot) -> Iterable[tuple[str, str]]:
    """Yields name and description of what a snapshot holds besides the leaves."""
    return ((entry.name, "empty") for entry in taken.entries[len(leaves) :])
