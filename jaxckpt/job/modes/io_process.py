"""The mode of an IO process: one process does all file access. The others send it their pieces, and ask it for the pieces they need."""

import contextlib
import functools
from collections.abc import Callable, Collection

from jaxckpt import storage
from jaxckpt.job.modes import center_reading, gather, states
from jaxckpt.job.modes.mode import Arrange, Commit, Reading, no_file_access, patient
from jaxckpt.job.modes.peer_answers import PeerAnswers
from jaxckpt.job.modes.remote import RemoteCheckpoint
from jaxckpt.job.modes.several import Several
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.session import Session
from jaxckpt.storage.arrays import writer
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.source import OpenCheckpoint


class IoProcess(Several):
    """The mode of a job with ``experimental_io_device``. The IO process is the center of every session."""

    def __init__(self, center: int) -> None:
        """Creates the mode.

        Args:
          center: index of the process that does the file access.
        """
        self._io_process = center

    def part(self, taken: Snapshot, path: str, settings: WriteSettings, arrange: Arrange) -> Snapshot:
        """Returns the snapshot unchanged: the center arranges all arrays when it writes them; see `Mode`."""
        return taken

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
            answers.keep()

    def open(self, session: Session, path: str, seconds: float, names: Collection[str]) -> Reading:
        """Opens the files on the center, for all processes; see `Mode`."""
        if isinstance(session, Peer):
            # If the center cannot open the checkpoint, this raises its error here too.
            session.decide(no_file_access)
            return Reading(RemoteCheckpoint(path, session), session.vote)
        assert isinstance(session, Center)
        opened: list[OpenCheckpoint] = []
        session.decide(
            lambda: opened.append(
                storage.open_checkpoint(path, seconds, check_data=False, has_targets=True, names=names)
            )
        )
        return center_reading.serve(session, opened[0], seconds)

    def explained(self, error: BaseException, process: int) -> BaseException:
        """Returns the error unchanged; see `Mode`."""
        return error


def _fill(session: Center, arrange: Arrange, new: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes the center's part of a snapshot, and the parts of the others, which are fetched while they are written."""
    whole, keep = gather.complete(snapshot, session)
    writer.write(new, arrange(states.complete(whole, session)), settings)
    keep()
