"""One restore: what is stored, matched with the current values, read, and put in their place on every process or on none."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax

from jaxckpt import restoring, storage
from jaxckpt.job.agree import leaves, meeting
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.job.modes.provider import Provider
from jaxckpt.job.modes.remote import RemoteCheckpoint
from jaxckpt.job.modes.shared import ADVICE
from jaxckpt.job.plan import Plan, digest_of
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.session import Session
from jaxckpt.storage.commit.presence import DeletedError
from jaxckpt.storage.item.description import COUNTER
from jaxckpt.tree import flatten


@dataclass(frozen=True)
class Loaded:
    """What a restore has read and not applied yet.

    Attributes:
      new: values by name of the leaf.
      counter: the stored save counter, or None.
      matched, missing, unexpected, cast: names, for the status.
    """

    new: dict[str, Any]
    counter: int | None
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    cast: list[str]


class Restore:
    """One restore. A context manager: the processes of the job stay connected until it is over."""

    def __init__(self, call: Call, path: str, io_process: int | None) -> None:
        """Args: what the processes agree about; the checkpoint; the process that has it, or None if each process sees it."""
        self._call = call
        self._path = path
        self._io_process = io_process
        self._session = Session()
        self._finish: Callable[[BaseException | None], None] | None = None  # instead of a vote

    def meet(self, prepare: Callable[[], Iterable[flatten.Leaf]]) -> list[flatten.Leaf]:
        """Meets the other processes.

        Args:
          prepare: waits for what has to be over, and returns the targets.

        Returns:
          The targets.

        Raises:
          BaseException: what `prepare` raised; ProcessError: see `meeting.meet`.
        """
        targets: list[flatten.Leaf] = []

        def contribution() -> Contribution:
            targets.extend(restoring.resolved(prepare()))
            if not meeting.several():
                return Contribution()
            described = leaves.descriptions(targets, Plan(jax.process_index(), self._io_process))
            return Contribution(digest_of(described), lambda: described)

        self._session = meeting.meet(self._call, contribution)
        self._session.adopt()
        return targets

    def load(
        self, targets: Iterable[flatten.Leaf], skip: set[str], *, with_counter: bool, cast: bool = False
    ) -> Loaded:
        """Matches, validates and reads. Changes nothing; succeeds on every process or on none.

        Args:
          targets: leaves of the current values.
          skip: names of targets that keep their values.
          with_counter: read the save counter too.
          cast: convert arrays of another dtype of the same kind.

        Raises:
          As `Checkpoint.restore`.
        """
        loaded: Loaded | None = None
        error: BaseException | None = None
        try:
            loaded = _read(self._open(), list(targets), skip, with_counter, cast)
        except BaseException as raised:
            error = self._advised(raised)
        finish, self._finish = self._finish or self._session.vote, None
        try:
            finish(error)
        finally:
            del error
        assert loaded is not None
        return loaded

    def _open(self) -> restoring.Source:
        session, seconds = self._session, self._call.timeout
        if self._io_process is None or not session.several:
            return storage.StoredCheckpoint(self._path, seconds, has_targets=True)
        if isinstance(session, Peer):
            session.decide(_nothing)  # What the IO process met when it opened the checkpoint is raised here too.
            return RemoteCheckpoint(self._path, session)
        assert isinstance(session, Center)
        opened: list[storage.StoredCheckpoint] = []
        session.decide(
            lambda: opened.append(storage.StoredCheckpoint(self._path, seconds, check_data=False, has_targets=True))
        )
        provider = Provider(opened[0], session.local_peers)
        finish = session.collect(provider.handlers(), provider.sent)

        def end(error: BaseException | None) -> None:
            fallback = None
            try:
                if error is None:
                    try:
                        opened[0].check_data_files()  # While the others still read: what they find wrong says more.
                    except Exception as found:
                        fallback = found
                    except BaseException as interrupt:
                        error = interrupt
                finish(error, fallback)
            finally:
                del fallback, error
                provider.close()

        self._finish = end
        return opened[0]

    def _advised(self, error: BaseException) -> BaseException:
        """Says what may be wrong where a process without the files was to read them."""
        # A checkpoint that was deleted while it was read was seen by this process.
        missing = isinstance(error, FileNotFoundError) and not isinstance(error, DeletedError)
        if self._session.several and self._io_process is None and missing:
            assert isinstance(error, FileNotFoundError)
            advised = FileNotFoundError(
                error.errno, f"{error.strerror}. {ADVICE} It was process {self._session.process}", error.filename
            )
            advised.__cause__ = error
            return advised
        return error

    def agree(self, error: BaseException | None) -> None:
        """Ends the restore: raises on every process if `error` is not None on any of them."""
        self._session.vote(error)

    def __enter__(self) -> "Restore":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._session.close()


def _nothing() -> None:
    """The work of a process that does no file access."""


def _read(
    stored: restoring.Source, targets: list[flatten.Leaf], skip: set[str], with_counter: bool, cast: bool
) -> Loaded:
    found = restoring.match(targets, stored, skip, COUNTER)
    pairs = found.pairs
    counter = stored.record.get(COUNTER)
    if with_counter and counter is None:  # jaxckpt 0.1 had it as a leaf.
        pairs = pairs + restoring.match([flatten.flatten(COUNTER, 0).leaves[0]], stored, set(), "").pairs
    new = restoring.load(pairs, stored, cast=cast)
    counter = new.values.pop(COUNTER, counter)
    if counter is not None and not 0 <= counter < 2**63:
        raise ValueError(
            f"{COUNTER}: {stored.path} holds {counter}, which is no number of a save. Use read() instead of restore()."
        )
    matched = [leaf.name for leaf, _ in found.pairs] + found.skipped
    return Loaded(new.values, counter if with_counter else None, matched, found.missing, found.unexpected, new.cast)


def carry_out(changes: Iterable[Callable[[], flatten.Undo]], agree: Callable[[BaseException | None], None]) -> None:
    """Makes changes: all of them on every process, or none.

    Args:
      changes: each returns its undo.
      agree: tells the other processes how it went here, and raises if it went wrong anywhere.
    """
    undos: list[flatten.Undo] = []
    failure: BaseException | None = None
    try:
        for change in changes:
            undos.append(change())
    except BaseException as error:
        failure = error
    try:
        agree(failure)
    except BaseException as error:
        for undo in reversed(undos):
            try:
                undo()
            except Exception as second:
                error.add_note(f"Besides, an object could not be given back its old state: {second!r}")
        raise
    finally:
        del failure
