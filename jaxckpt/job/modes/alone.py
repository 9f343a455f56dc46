"""The mode of a job of one process, which has all values and accesses all files."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxckpt import storage
from jaxckpt.job.agree.call import Contribution
from jaxckpt.job.modes.mode import Arrange, Commit, Reading
from jaxckpt.job.plan import Plan
from jaxckpt.job.session.session import Session
from jaxckpt.storage.arrays import writer
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree.flatten import Leaf


class Alone:
    """The mode of a job of one process, with or without `experimental_io_device`."""

    def plan(self, leaves: Sequence[Leaf]) -> None:
        """Returns None; see `Mode`."""

    def part(self, taken: Snapshot, path: str, settings: WriteSettings, arrange: Arrange) -> Snapshot:
        """Arranges the arrays; see `Mode`."""
        return arrange(taken)

    def agree_to_save(
        self, leaves: Sequence[Leaf], taken: Snapshot, plan: Plan | None, facts: Mapping[str, Any]
    ) -> Contribution:
        """Returns the facts, and nothing to compare; see `Mode`."""
        return Contribution(facts=facts)

    def agree_to_restore(self, targets: Sequence[Leaf]) -> Contribution:
        """Returns nothing to compare; see `Mode`."""
        return Contribution()

    def write(
        self,
        session: Session,
        taken: Callable[[], Snapshot],
        settings: WriteSettings,
        arrange: Arrange,
        commit: Commit,
    ) -> None:
        """Writes and commits; see `Mode`."""
        session.decide(functools.partial(commit, taken(), settings, writer.write))

    def open(self, session: Session, path: str, seconds: float, names: Collection[str]) -> Reading:
        """Opens the files; see `Mode`."""
        return Reading(storage.open_checkpoint(path, seconds, has_targets=True, names=names), session.vote)

    def explained(self, error: BaseException, process: int) -> BaseException:
        """Returns the error unchanged; see `Mode`."""
        return error
