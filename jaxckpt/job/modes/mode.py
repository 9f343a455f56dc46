"""The interface `Mode`: which process takes which values, which process accesses files, and what the processes must agree about."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from jaxckpt.job.agree.call import Contribution
from jaxckpt.job.plan import Plan
from jaxckpt.job.session.session import Session, patience
from jaxckpt.storage.arrays.writer import Fill
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.source import Source
from jaxckpt.tree.flatten import Leaf

# Divides the arrays of a snapshot into groups, if the options have a sharding callback.
Arrange: TypeAlias = Callable[[Snapshot], Snapshot]
# Writes, commits and registers a checkpoint. Its arguments: the snapshot, the settings, and the function that fills the directory.
Commit: TypeAlias = Callable[[Snapshot, WriteSettings, Fill], None]


@dataclasses.dataclass(frozen=True)
class Reading:
    """A checkpoint that is open for reading.

    Attributes:
      source: the open checkpoint.
      finish: called once, with the error of this process's reading, or None. Waits for the other processes, and raises if one failed.
    """

    source: Source
    finish: Callable[[BaseException | None], None]


class Mode(Protocol):
    """How the processes of a job reach the files: there is only one, all share a directory, or one accesses the files for all.

    A save or restore creates its own mode, with `jaxckpt.job.modes.mode_of`. It does not need to know anything else about the job.
    """

    def plan(self, leaves: Sequence[Leaf]) -> Plan | None:
        """Returns the plan, which tells which process owns which part of an array; None if this process has everything.

        Args:
          leaves: all leaves, for which alone the plan is used.

        Raises:
          Exception: JAX's error about a leaf. The message names the leaf.
        """

    def part(self, taken: Snapshot, path: str, settings: WriteSettings, arrange: Arrange) -> Snapshot:
        """Checks and arranges the snapshot of this process, before the other processes hear of the save.

        Args:
          taken: this process's part of the snapshot.
          path: path of the checkpoint; the number may be missing.
          settings: how the checkpoint will be written.
          arrange: divides arrays into groups. Called here if this process writes its part itself.

        Returns:
          The arranged part.

        Raises:
          ValueError: several processes cannot write a checkpoint with these settings together.
        """

    def agree_to_save(
        self, leaves: Sequence[Leaf], taken: Snapshot, plan: Plan | None, facts: Mapping[str, Any]
    ) -> Contribution:
        """Returns this process's contribution to the meeting of a save.

        Args:
          leaves: the leaves of the values.
          taken: the snapshot of the values.
          plan: the plan with which the snapshot was taken.
          facts: values for every process; empty unless this process does the file access.
        """

    def agree_to_restore(self, targets: Sequence[Leaf]) -> Contribution:
        """Returns this process's contribution to the meeting of a restore.

        Args:
          targets: the leaves of the current values.
        """

    def write(
        self,
        session: Session,
        taken: Callable[[], Snapshot],
        settings: WriteSettings,
        arrange: Arrange,
        commit: Commit,
    ) -> None:
        """Writes the snapshot. Returns on every process when the checkpoint is committed and registered.

        Args:
          session: the session of the save.
          taken: returns this process's part of the snapshot, as the only reference to it. Called once.
          settings: how to write.
          arrange: divides arrays into groups. Called here if this process writes the parts of other processes too.
          commit: writes, commits and registers. Called on the process that does the file access.

        Raises:
          BaseException: the error of any process. Every process raises an error of the same kind.
        """

    def open(self, session: Session, path: str, seconds: float, names: Collection[str]) -> Reading:
        """Opens a checkpoint.

        Args:
          session: the session of the restore. If this method raises, the caller votes with the error.
          path: path of the checkpoint.
          seconds: most seconds of every wait of the reading.
          names: names of the targets, by which an item of the checkpoint is chosen.

        Raises:
          OSError: the checkpoint cannot be opened.
          CheckpointError: the path is not a checkpoint.
        """

    def explained(self, error: BaseException, process: int) -> BaseException:
        """Returns an error of reading, perhaps replaced by one whose message also gives the likely reason in this mode.

        Args:
          error: the error of this process.
          process: index of this process.
        """


def patient(settings: WriteSettings) -> WriteSettings:
    """Returns settings with a longer timeout, for the process that waits for others.

    If another process does not answer, the error should name that process, and not say that the write took too long.

    Args:
      settings: the settings of the save.
    """
    seconds = settings.timeout_secs
    return dataclasses.replace(settings, timeout_secs=seconds + patience(seconds))


def no_file_access() -> None:
    """Does nothing: the work of a process that leaves the files to another one."""
