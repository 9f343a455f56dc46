"""One restore: match stored leaves with the current values, read them, and replace the values, on every process or on none."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax

from jaxckpt import restoring
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt._lib.transfer import Transfer
from jaxckpt.job.agree import meeting
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.job.modes import mode_of
from jaxckpt.job.plan import digest_of
from jaxckpt.job.session.session import Session
from jaxckpt.restoring.adapting import AS_IT_IS, Adaptation, Rename, Sought, sought
from jaxckpt.storage import stores
from jaxckpt.storage.item.description import COUNTER
from jaxckpt.tree import flatten

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Loaded:
    """The values that a restore has read. They have not replaced the current values yet.

    Attributes:
      new: new values by name of the leaf.
      counter: the stored save counter, or None.
      matched: names of targets that were found or skipped.
      missing: names of targets that are not stored.
      unexpected: names of stored leaves that have no target.
      cast: names of leaves that were converted to another dtype.
      mismatched: names of targets that keep their values because the stored shape differs.
      near: for some of the missing names, a stored name that is much like it.
      renamed: the stored names of targets that have another name there, by the target's name.
    """

    new: dict[str, Any]
    counter: int | None
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    cast: list[str]
    mismatched: list[str]
    near: dict[str, str]
    renamed: Mapping[str, str]


@dataclass(frozen=True)
class Compared:
    """What a restore would do.

    Attributes:
      found: targets and stored leaves, matched by name.
      validated: the pairs, validated as with ``cast=True``.
      renamed: as `Loaded.renamed`.
    """

    found: restoring.Matched
    validated: restoring.Validated
    renamed: Mapping[str, str]


class Restore:
    """One restore. A context manager: the processes of the job stay connected until it is over."""

    def __init__(self, call: Call, path: str, io_process: int | None, read_once: bool | None = None) -> None:
        """Creates a restore. `meet` comes next.

        Args:
          call: the description of the call, which must be the same on every process.
          path: path of the checkpoint.
          io_process: index of the process that does all file access; None if each process sees the files.
          read_once: whether one process reads what several want; None if the path decides.
        """
        self._call = call
        self._path = path
        self._mode = mode_of(io_process, functools.partial(_reads_once, path, read_once))
        self._session = Session()
        self._sought = Sought(())

    def meet(self, prepare: Callable[[], Iterable[flatten.Leaf]], rename: Rename | None = None) -> list[flatten.Leaf]:
        """Meets the other processes.

        Args:
          prepare: waits for the save in flight, and returns the targets.
          rename: as `Adaptation.rename`.

        Returns:
          The targets.

        Raises:
          ProcessError: as `meeting.meet`.
          BaseException: the error of `prepare`, and those of `adapting.sought`.
        """
        targets: list[flatten.Leaf] = []
        self._session = meeting.meet(self._call, functools.partial(self._contribution, prepare, targets, rename))
        self._session.adopt()
        return targets

    def _contribution(
        self, prepare: Callable[[], Iterable[flatten.Leaf]], targets: list[flatten.Leaf], rename: Rename | None
    ) -> Contribution:
        targets.extend(restoring.resolved(prepare()))
        self._sought = sought(targets, rename)
        return _with_names(self._mode.agree_to_restore(targets), self._sought.renamed)

    def load(
        self,
        targets: Iterable[flatten.Leaf],
        skip: set[str],
        *,
        with_counter: bool,
        adaptation: Adaptation = AS_IT_IS,
        memory: int = restoring.GROUP_BYTES,
        transfer: Transfer | None = None,
    ) -> Loaded:
        """Matches, validates and reads. Does not change a value; succeeds on every process or on none.

        Args:
          targets: leaves of the current values.
          skip: names of targets that keep their values.
          with_counter: whether to read the save counter too.
          adaptation: the differences between targets and stored leaves that the caller allows. `meet` has got its `rename`.
          memory: at most so many bytes of arrays are in memory on their way to devices; see `restoring.load`.
          transfer: counts the bytes of the new values; None if they are not counted.

        Raises:
          BaseException: as `Checkpoint.restore`.
        """

        def read(stored: restoring.Source) -> Loaded:
            return _read(stored, list(targets), self._sought, skip, with_counter, adaptation, memory, transfer)

        return self._with_source(read)

    def compare(self, targets: Iterable[flatten.Leaf], skip: set[str]) -> Compared:
        """Matches and validates. Reads no data; succeeds on every process or on none.

        Args:
          targets: leaves of the current values.
          skip: names of targets that keep their values.

        Raises:
          BaseException: as `Checkpoint.diff`.
        """

        def work(stored: restoring.Source) -> Compared:
            found = _match(stored, list(targets), self._sought, skip)
            return Compared(
                found, restoring.validate(found.pairs, stored, cast=True, tolerant=True), self._sought.renamed
            )

        return self._with_source(work)

    def _with_source(self, work: Callable[[restoring.Source], _Result]) -> _Result:
        """Opens the checkpoint and does some work on it, on every process or on none.

        Args:
          work: its argument is the open checkpoint.

        Returns:
          The result of the work.
        """
        session = self._session
        results: list[_Result] = []
        error: BaseException | None = None
        finish: Callable[[BaseException | None], None] = session.vote
        try:
            with quiet_gc():
                reading = self._mode.open(session, self._path, self._call.timeout, self._sought.names)
                finish = reading.finish
                results.append(work(reading.source))
        except BaseException as raised:
            error = self._mode.explained(raised, session.process)
        try:
            finish(error)
        finally:
            del error
        return results[0]

    def agree(self, error: BaseException | None) -> None:
        """Ends the restore: raises on every process if any of them failed.

        Args:
          error: the error of this process, or None.
        """
        self._session.vote(error)

    def __enter__(self) -> "Restore":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._session.close()


def _reads_once(path: str, given: bool | None) -> bool:
    return stores.is_networked(path) if given is None else given


def _with_names(contribution: Contribution, renamed: Mapping[str, str]) -> Contribution:
    """Adds the stored names of renamed targets to what the processes compare: they must agree, but functions cannot be compared.

    Args:
      contribution: the contribution about the targets.
      renamed: as `Sought.renamed`.
    """
    if not renamed:
        return contribution
    described = contribution.leaves

    def leaves() -> Sequence[tuple[str, str]]:
        return [
            (name, f"{text}, renamed to {renamed[name]!r}" if name in renamed else text) for name, text in described()
        ]

    return replace(contribution, digest=digest_of([("", contribution.digest), *renamed.items()]), leaves=leaves)


def _match(
    stored: restoring.Source, targets: Sequence[flatten.Leaf], wanted: Sought, skip: set[str]
) -> restoring.Matched:
    process = jax.process_index(), jax.process_count()
    found = restoring.match(targets, stored, skip, COUNTER, process, wanted)
    wanted.require_hits(found.missing, stored.path)
    return found


def _read(
    stored: restoring.Source,
    targets: Sequence[flatten.Leaf],
    wanted: Sought,
    skip: set[str],
    with_counter: bool,
    adaptation: Adaptation,
    memory: int,
    transfer: Transfer | None,
) -> Loaded:
    found = _match(stored, targets, wanted, skip)
    pairs = found.pairs
    counter = stored.record.get(COUNTER)
    # jaxckpt 0.1 stored the counter as a leaf.
    if with_counter and counter is None:
        leaves = flatten.flatten(COUNTER, 0).leaves
        pairs = pairs + restoring.match(leaves, stored, set(), "", (0, 1), Sought(leaves)).pairs
    new = restoring.load(
        pairs,
        stored,
        cast=adaptation.cast,
        skip_mismatched=adaptation.skip_mismatched,
        memory=memory,
        transfer=transfer,
    )
    counter = new.values.pop(COUNTER, counter)
    if counter is not None and not 0 <= counter < 2**63:
        raise ValueError(
            f"{COUNTER}: {stored.path} holds {counter}, which cannot be the number of a save. Use read() instead of restore()."
        )
    matched = found.names + found.skipped
    if new.mismatched:
        left = set(new.mismatched)
        matched = [name for name in matched if name not in left]
    kept = counter if with_counter else None
    return Loaded(
        new.values,
        kept,
        matched,
        found.missing,
        found.unexpected,
        new.cast,
        new.mismatched,
        found.near,
        wanted.renamed,
    )
