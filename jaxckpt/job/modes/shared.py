"""The mode of a shared directory: each process writes its own shards into a directory that all of them see, and reads from there.

Very small arrays are an exception: process 0 writes them (see `together`).

Process 0 creates the directory and commits. Before the processes write, they make sure that all of them see the same directory: process 0
writes a *mark* (a file with random content) into it, and the others look for the mark.
"""

import contextlib
import functools
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import jax

from jaxckpt import storage
from jaxckpt._lib import durable
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.uninterrupted import start
from jaxckpt.errors import ProcessError
from jaxckpt.job.agree import leaves as agreed
from jaxckpt.job.agree.call import Contribution
from jaxckpt.job.modes import center_reading, states, together
from jaxckpt.job.modes.mode import Arrange, Commit, Reading, no_file_access, patient
from jaxckpt.job.modes.remote import RemoteCheckpoint
from jaxckpt.job.modes.several import Several
from jaxckpt.job.protocol.messages import AskSmall, AskState, Done, Look, Pieces, Seen, WritePart
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.session import Answer, Handlers, Session
from jaxckpt.storage import owner, stores
from jaxckpt.storage.commit import temporary
from jaxckpt.storage.commit.choice import committer_of
from jaxckpt.storage.commit.presence import DeletedError
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree.flatten import Leaf

# Network file systems may show a new file a little later: look for it for so long.
_LOOK_SECS = 5.0
_POLL_SECS = 0.05
CENTER = 0
# The fact that the center tells: whether it reads what several processes want.
_READS_ONCE = "reads_once"
_ADVICE = (
    "Without experimental_io_device every process writes its own part, so all of them need the same directory: use a shared directory, or "
    "set experimental_io_device on every process (to the process whose disk has the directory)."
)


class SharedDirectory(Several):
    """The mode of a job without ``experimental_io_device``. Process 0 is the center of every session."""

    def __init__(self, reads_once: Callable[[], bool]) -> None:
        """Creates the mode.

        Args:
          reads_once: tells whether a restore reads what several processes want once, on the center. Called there only.
        """
        self._reads_once = reads_once

    def part(self, taken: Snapshot, path: str, settings: WriteSettings, arrange: Arrange) -> Snapshot:
        """Arranges the arrays that this process writes; see `Mode`."""
        storage.check_part(path, settings)
        return arrange(taken)

    def agree_to_restore(self, targets: Sequence[Leaf]) -> Contribution:
        """Describes the targets; see `Mode`."""
        facts = {_READS_ONCE: self._reads_once()} if jax.process_index() == CENTER else {}
        return agreed.targets(targets, self.plan(targets), facts)

    def write(
        self,
        session: Session,
        taken: Callable[[], Snapshot],
        settings: WriteSettings,
        arrange: Arrange,
        commit: Commit,
    ) -> None:
        """Lets every process write its part into the directory that the center creates; see `Mode`."""
        if isinstance(session, Center):
            fill = functools.partial(write, session)
            session.decide(functools.partial(commit, taken(), patient(settings), fill), asks=True)
            return
        session.decide(no_file_access, Writer(taken(), settings, session.process).handlers())

    def open(self, session: Session, path: str, seconds: float, names: Collection[str]) -> Reading:
        """Opens the files that this process sees; see `Mode`."""
        if not session.facts.get(_READS_ONCE):
            return Reading(storage.open_checkpoint(path, seconds, has_targets=True, names=names), session.vote)
        if isinstance(session, Center):
            stored = storage.open_checkpoint(path, seconds, check_data=False, has_targets=True, names=names)
            return center_reading.serve(session, stored, seconds)
        assert isinstance(session, Peer)
        stored = storage.open_checkpoint(path, seconds, has_targets=True, names=names)
        return Reading(RemoteCheckpoint(path, session, stored), session.vote)

    def explained(self, error: BaseException, process: int) -> BaseException:
        """Adds advice to a FileNotFoundError: perhaps this process does not see the directory; see `Mode`."""
        # Not if the checkpoint was deleted while it was read: then this process did see it.
        if not isinstance(error, FileNotFoundError) or isinstance(error, DeletedError):
            return error
        text = f"{error.strerror}. {_ADVICE} Process {process} did not find"
        explained = FileNotFoundError(error.errno, text, error.filename)
        explained.__cause__ = error
        return explained


class Writer:
    """A peer's part of a save."""

    def __init__(self, snapshot: Snapshot, settings: WriteSettings, process: int) -> None:
        """Creates the writer of this process's part.

        Args:
          snapshot: this process's part of the snapshot.
          settings: how to write it.
          process: index of this process.
        """
        self._small = together.own_small_pieces(snapshot)
        self._snapshot = together.rest(snapshot)
        self._settings = settings
        self._process = process

    def handlers(self) -> Handlers:
        """Returns the functions that answer the requests of process 0."""
        return {
            Look: self._look,
            AskSmall: self._send,
            WritePart: self._write,
            AskState: states.States(self._snapshot).answer,
        }

    def _look(self, request: Look) -> Answer:
        """Answers whether this process sees the mark of process 0."""
        path = request.path
        end = time.monotonic() + request.secs
        while True:
            try:
                with stores.within(Deadline(max(0.1, end - time.monotonic()), f"Looking for {path}")):
                    if stores.read(path) == request.token.encode():
                        return Seen(True), None
            except OSError:
                pass
            if time.monotonic() > end:
                return Seen(False), None
            time.sleep(_POLL_SECS)

    def _send(self, request: AskSmall) -> Answer:
        return Pieces(), [self._small.take(request)]

    def _write(self, request: WritePart) -> Answer:
        new = request.path
        if not committer_of(new).in_place and not owner.is_temporary(os.path.basename(os.path.dirname(new))):
            raise ProcessError(f"Process 0 asked for a part in {new}, which is not in a temporary directory.", (0,))
        with _not_revived(os.path.dirname(new)):
            storage.write_part(new, self._snapshot, self._settings, self._process, request.token)
        return Done(), None


@contextlib.contextmanager
def _not_revived(folder: str) -> Iterator[None]:
    """Removes a temporary directory at the end, if the code inside has created it again.

    This process may have been suspended for so long that the others gave up and process 0 removed the directory. The storage engine
    creates directories that do not exist, so it would leave the directory behind.

    Args:
      folder: path of the temporary directory, which exists.
    """
    if committer_of(folder).in_place:
        yield
        return
    # As long as the descriptor is open, another directory cannot get the same inode number.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
    finally:
        try:
            was = os.fstat(descriptor)
            with contextlib.suppress(OSError):
                if not os.path.samestat(was, os.stat(folder)):
                    temporary.remove(folder)
        finally:
            os.close(descriptor)


def write(session: Center, new: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes a checkpoint into its directory together with all peers.

    Args:
      session: the session with the peers, which are in `SharedDirectory.write`.
      new: directory of the item, which exists.
      snapshot: the center's part of the snapshot.
      settings: how to write.

    Raises:
      ProcessError: a process does not see the directory, failed, or did not answer.
      OSError: the write failed; `errno` is set.
    """
    # The mark goes into the temporary directory. Where a checkpoint is written in place, this save has claimed the directory itself.
    _require_shared(new if committer_of(new).in_place else os.path.dirname(new), session)
    # Now, because a peer that writes its part does not answer.
    snapshot = together.gathered(snapshot, session)
    token = storage.save_token(new)
    errors: list[BaseException] = []
    given_up = threading.Event()
    under_way = threading.Lock()

    def ask() -> None:
        with under_way:
            if given_up.is_set():
                return
            try:
                session.ask_all(WritePart(new, token), "writing its part")
            except BaseException as error:
                errors.append(error)

    asking = threading.Thread(target=ask, name="jaxckpt parts", daemon=True)

    def others() -> list[int]:
        start(asking)
        return session.peers

    def finish() -> None:
        # This ends, because every wait of that thread is bounded.
        asking.join()
        if errors:
            raise errors[0]

    try:
        whole = states.complete(snapshot, session)
        storage.write_jointly(new, whole, settings, session.process, token, others, finish)
    except BaseException as error:
        # The caller removes the directory now. First wait until no peer writes there any more. (Not with join(): an interrupt may have
        # come while the thread was being started.)
        given_up.set()
        with under_way:
            pass
        if errors and error is not errors[0]:
            error.add_note(f"In addition: {errors[0]}")
        raise


def _require_shared(folder: str, session: Center) -> None:
    token = secrets.token_hex(16)
    path = os.path.join(folder, temporary.MARK)
    stores.write(path, token.encode())
    if stores.is_local(path):
        durable.sync_and_close(os.open(path, os.O_RDONLY), path)
    secs = min(_LOOK_SECS, session.timeout / 4)
    answers = session.ask_all(Look(path, token, secs), "looking for the directory")
    stores.remove(path)
    blind = sorted(process for process, answer in answers.items() if not answer.seen)
    if blind:
        listed = ", ".join(map(str, blind))
        raise ProcessError(
            f"Process{'es' if len(blind) > 1 else ''} {listed} did not find the directory that process {session.process} made for the "
            f"checkpoint, {folder}. {_ADVICE}",
            blind,
        )
