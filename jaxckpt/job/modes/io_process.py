"""One process does all file access: the others send it what they have, and ask it for what they need."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxckpt import storage
from jaxckpt.job.agree import leaves as agreed
from jaxckpt.job.agree.call import Contribution
from jaxckpt.job.modes import gather
from jaxckpt.job.modes.mode import Arrange, Commit, Reading, empty_nodes, no_file_access, patient
from jaxckpt.job.modes.provider import Provider
from jaxckpt.job.modes.remote import RemoteCheckpoint
from jaxckpt.job.modes.supplier import Supplier
from jaxckpt.job.plan import Plan
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.serving import Finish
from jaxckpt.job.session.session import Session
from jaxckpt.storage.arrays import writer
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree.flatten import Leaf


class IoProcess:
    """The mode of a job with ``experimental_io_device``. It is the center of every session."""

    def __init__(self, center: int) -> None:
        """Args: the index of the process that does the file access."""
        self._center = center

    def plan(self) -> Plan:
        """Returns a plan by which the center owns all that it has; see `Mode`."""
        return Plan(jax.process_index(), self._center)

    def part(self, taken: Snapshot, path: str, settings: WriteSettings, arrange: Arrange) -> Snapshot:
        """Leaves the arranging to the center, which has everything later; see `Mode`."""
        return taken

    def agree_to_save(
        self, leaves: Sequence[Leaf], taken: Snapshot, plan: Plan | None, facts: Mapping[str, Any]
    ) -> Contribution:
        """Describes the values; see `Mode`."""
        assert plan is not None
        return agreed.stored_values(leaves, plan, empty_nodes(leaves, taken), facts)

    def agree_to_restore(self, targets: Sequence[Leaf]) -> Contribution:
        """Describes the targets; see `Mode`."""
        return agreed.targets(targets, self.plan())

    def write(
        self,
        session: Session,
        taken: Callable[[], Snapshot],
        settings: WriteSettings,
        arrange: Arrange,
        commit: Commit,
    ) -> None:
        """Has the center write what all of them have; see `Mode`."""
        if isinstance(session, Center):
            fill = functools.partial(_fill, session, arrange)
            session.decide(functools.partial(commit, taken(), patient(settings), fill), asks=True)
            return
        with contextlib.closing(Supplier(taken())) as supplier:
            session.decide(no_file_access, supplier.handlers())

    def open(self, session: Session, path: str, seconds: float) -> Reading:
        """Opens the files on the center, for all; see `Mode`."""
        if isinstance(session, Peer):
            # What the center met when it opened the checkpoint is raised here too.
            session.decide(no_file_access)
            return Reading(RemoteCheckpoint(path, session), session.vote)
        assert isinstance(session, Center)
        opened: list[storage.StoredCheckpoint] = []
        session.decide(
            lambda: opened.append(storage.StoredCheckpoint(path, seconds, check_data=False, has_targets=True))
        )
        provider = Provider(opened[0], session.local_peers)
        collected = session.collect(provider.handlers(), provider.sent)
        return Reading(opened[0], functools.partial(_finish, opened[0], provider, collected))

    def explained(self, error: BaseException, process: int) -> BaseException:
        """Returns the error; see `Mode`."""
        return error


def _fill(session: Center, arrange: Arrange, new: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes the center's part of a snapshot, and the parts of the others, which are fetched as they are written."""
    writer.write(new, arrange(gather.complete(snapshot, session)), settings)


def _finish(
    stored: storage.StoredCheckpoint, provider: Provider, collected: Finish, error: BaseException | None
) -> None:
    """Ends the reading of all: looks once more whether the data files are those that were written, while the others still read."""
    fallback = None
    try:
        if error is None:
            try:
                # Raised only if nobody has found anything else wrong: what the others find says more.
                stored.check_data_files()
            except Exception as found:
                fallback = found
            except BaseException as interrupt:
                error = interrupt
        collected(error, fallback)
    finally:
        del fallback, error
        provider.close()
