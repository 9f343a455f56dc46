"""The mode of an IO process: one process does all file access. The others send it their pieces, and ask it for the pieces they need."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxckpt import storage
from jaxckpt.job.agree import leaves as agreed
from jaxckpt.job.agree.call import Contribution
from jaxckpt.job.modes import gather
from jaxckpt.job.modes.center_answers import CenterAnswers
from jaxckpt.job.modes.mode import Arrange, Commit, Reading, empty_nodes, no_file_access, patient
from jaxckpt.job.modes.peer_answers import PeerAnswers
from jaxckpt.job.modes.remote import RemoteCheckpoint
from jaxckpt.job.plan import Plan
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.serving import Finish
from jaxckpt.job.session.session import Session
from jaxckpt.storage.arrays import writer
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.source import OpenCheckpoint
from jaxckpt.tree.flatten import Leaf


class IoProcess:
    """The mode of a job with ``experimental_io_device``. The IO process is the center of every session."""

    def __init__(self, center: int) -> None:
        """Creates the mode.

        Args:
          center: index of the process that does the file access.
        """
        self._center = center

    def plan(self) -> Plan:
        """Returns a plan in which the center owns every piece that it has; see `Mode`."""
        return Plan(jax.process_index(), self._center)

    def part(self, taken: Snapshot, path: str, settings: WriteSettings, arrange: Arrange) -> Snapshot:
        """Returns the snapshot unchanged: the center arranges all arrays when it writes them; see `Mode`."""
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
        """Lets the center write the pieces of all processes; see `Mode`."""
        if isinstance(session, Center):
            fill = functools.partial(_fill, session, arrange)
            session.decide(functools.partial(commit, taken(), patient(settings), fill), asks=True)
            return
        with contextlib.closing(PeerAnswers(taken())) as answers:
            session.decide(no_file_access, answers.handlers())

    def open(self, session: Session, path: str, seconds: float) -> Reading:
        """Opens the files on the center, for all processes; see `Mode`."""
        if isinstance(session, Peer):
            # If the center cannot open the checkpoint, this raises its error here too.
            session.decide(no_file_access)
            return Reading(RemoteCheckpoint(path, session), session.vote)
        assert isinstance(session, Center)
        opened: list[OpenCheckpoint] = []
        session.decide(
            lambda: opened.append(storage.open_checkpoint(path, seconds, check_data=False, has_targets=True))
        )
        answers = CenterAnswers(opened[0], session.local_peers)
        finish = session.serve(answers.handlers(), answers.sent)
        return Reading(opened[0], functools.partial(_finish, opened[0], answers, finish))

    def explained(self, error: BaseException, process: int) -> BaseException:
        """Returns the error unchanged; see `Mode`."""
        return error


def _fill(session: Center, arrange: Arrange, new: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes the center's part of a snapshot, and the parts of the others, which are fetched while they are written."""
    writer.write(new, arrange(gather.complete(snapshot, session)), settings)


def _finish(stored: OpenCheckpoint, answers: CenterAnswers, finish: Finish, error: BaseException | None) -> None:
    """Ends the reading of all processes. While the others still read, checks that the data files are those that were written.

    Args:
      stored: the open checkpoint.
      answers: answers the peers; it is closed at the end.
      finish: takes this process's vote and waits for the others' votes.
      error: the error of this process's reading, or None.
    """
    fallback = None
    try:
        if error is None:
            try:
                # This error is raised only if no process has another one, because the errors of reading say more.
                stored.check_data_files()
            except Exception as found:
                fallback = found
            except BaseException as interrupt:
                error = interrupt
        finish(error, fallback)
    finally:
        del fallback, error
        answers.close()
