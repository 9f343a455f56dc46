"""Deletes the old checkpoints of a directory that neither a manager's `max_to_keep` nor its preservation policy keeps."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxckpt import storage, telemetry
from jaxckpt._lib import user_code
from jaxckpt._lib.uninterrupted import uninterrupted
from jaxckpt.directory import policies, retention, state_file
from jaxckpt.directory.lock import update
from jaxckpt.directory.policies import CheckpointInfo, PreservationPolicy
from jaxckpt.directory.state_file import Records, UnreadableStateError
from jaxckpt.errors import CheckpointError
from jaxckpt.storage import CheckpointPath, stores

_logger = logging.getLogger("jaxckpt")


@dataclass(frozen=True)
class View:
    """The content of a directory at one moment.

    Attributes:
      records: the records of the state file, corrected by the checkpoints on disk.
      listed: the manager's listed names, oldest first.
      unregistered: the records to write if a crash left a checkpoint that the state file does not list; otherwise None.
    """

    records: Records
    listed: list[str]
    unregistered: Records | None


class Keeping:
    """The rules for which checkpoints a manager keeps, and their application after each save.

    Attributes:
      least: how many of the newest checkpoints are managed for certain; None for all. A checkpoint that is older and not listed,
        for an unknown reason, is kept for ever.
    """

    def __init__(self, max_to_keep: int | None, every_n_hours: float | None, policy: PreservationPolicy | None) -> None:
        """Notes the rules. The arguments are those of `CheckpointSeries`."""
        self.least = max_to_keep if policy is None else max_to_keep or 1
        self._max_to_keep = max_to_keep
        self._every_n_hours = every_n_hours
        self._policy = policy
        # Where the program made the manager: a save in the background has no line of its own.
        self._made = None if policy is None else user_code.line()

    def retain(
        self, root: str, new: str, load: Callable[[], View], infos: Callable[[], Mapping[str, CheckpointInfo]]
    ) -> None:
        """Deletes or preserves the checkpoints that neither `max_to_keep` nor the policy keeps.

        A checkpoint that cannot be deleted stays listed, so that the next call tries again. A warning is logged. If the policy
        raises, nothing is deleted, and a RuntimeWarning is issued.

        Args:
          root: the directory, as an absolute path.
          new: the checkpoint that was just saved, which is never deleted.
          load: reads the directory.
          infos: returns what policies are told about the listed checkpoints, by name, oldest first.

        Raises:
          OSError: the state file cannot be read or written.
        """
        newest = self._max_to_keep or 0
        if self._policy is not None:
            rejected = self._rejected(root, self._policy, new, infos())
            if not rejected:
                return
        elif self._max_to_keep is None:
            return
        else:
            rejected = None

        def due(listed: list[str]) -> set[str]:
            old = {*listed[: max(0, len(listed) - newest)]} - {new}
            # What was listed since the policy was asked is not among the rejected ones.
            return old if rejected is None else old & rejected

        # An interrupt must not come between a deletion and the update of the state file.
        uninterrupted(lambda: self._retain(root, load, due))

    def _rejected(
        self, root: str, policy: PreservationPolicy, new: str, infos: Mapping[str, CheckpointInfo]
    ) -> set[str]:
        """Returns the names of the listed checkpoints that the policy does not preserve; none if it raises."""
        try:
            answers = policies.preserved(policy, list(infos.values()))
        except Exception as error:
            user_code.warn(
                f"{os.path.join(root, new)} is saved, and no old checkpoint was deleted, because "
                f"preservation_policy={policies.described(policy)} failed: {type(error).__name__}: {error}",
                RuntimeWarning,
                user_code.line() or self._made,
            )
            return set()
        return {name for name, keeps in zip(infos, answers, strict=True) if not keeps} - {new}

    def _retain(self, root: str, load: Callable[[], View], due: Callable[[list[str]], set[str]]) -> None:
        def evict() -> dict[str, object]:
            view = load()
            records = view.records
            doomed = retention.evict(records, view.listed, due(view.listed), self._every_n_hours)
            if not _says(root, records):
                state_file.write(root, records)
            found = {name: storage.identity(stores.join(root, name)) for name in doomed}
            # If one is not there, a new one may be about to take its place. The new one must not be deleted.
            return {name: identity for name, identity in found.items() if identity is not None}

        doomed = update(root, evict)
        if not doomed:
            return
        # The lock is not held here, because removing many files can take long. Another checkpoint may be saved under the same name
        # meanwhile, so each is deleted only if it still has the identity found above.
        for name, identity in doomed.items():
            try:
                path = stores.join(root, name)
                with telemetry.deletion(path, _nbytes(path)):
                    storage.delete(CheckpointPath(root, name), identity)
            except (OSError, ValueError) as error:
                _logger.warning("Could not delete the old checkpoint %s: %s", os.path.join(root, name), error)
        update(root, lambda: state_file.write(root, load().records))


def _nbytes(path: str) -> int | None:
    """Returns the size of a checkpoint's arrays, for the log; None if it does not say, or if the log is off."""
    if not _logger.isEnabledFor(logging.INFO):
        return None
    try:
        account = storage.read_facts(path).account
    except (OSError, CheckpointError):
        # Also damaged checkpoints are deleted when they are old.
        return None
    return None if account is None else account.bytes


def _says(root: str, records: Records) -> bool:
    """Whether the state file has exactly these records."""
    try:
        there = state_file.read(root)
    except UnreadableStateError:
        return False
    return there == records and (there is None or list(there.entries) == list(records.entries))
