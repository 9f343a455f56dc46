"""A restore on the center: it reads what it wants itself, and what several processes want once for all of them."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from jaxckpt._lib.boxes import Slices, slices_of
from jaxckpt._lib.groups import groups
from jaxckpt.job.modes.center_answers import CenterAnswers
from jaxckpt.job.modes.mode import Reading
from jaxckpt.job.modes.shared_reads import SharedReads
from jaxckpt.job.modes.small_reads import SmallFirst
from jaxckpt.job.modes.wanted import Wanted
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.serving import Finish
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.source import OpenCheckpoint

# Most bytes of parts that are taken at once. Other processes wait for the tiles that this one keeps meanwhile.
_TAKEN_BYTES = 16 << 20


def serve(session: Center, stored: OpenCheckpoint, seconds: float) -> Reading:
    """Begins to read for all processes. The peers use `RemoteCheckpoint`.

    Args:
      session: the session of the restore.
      stored: the checkpoint, which this process has open.
      seconds: most seconds of every wait.
    """
    reads = SharedReads(stored, [session.process, *session.peers], seconds)
    answers = CenterAnswers(stored, reads, session.local_peers)

    def ended(process: int, error: BaseException | None) -> None:
        if error is None:
            reads.leave(process)
        else:
            reads.fail(error)

    finish = session.serve(answers.handlers(), answers.sent, ended)
    source = CenterCheckpoint(stored, reads, session)
    return Reading(source, functools.partial(_finish, session.process, stored, reads, answers, finish))


def _finish(
    process: int,
    stored: OpenCheckpoint,
    reads: SharedReads,
    answers: CenterAnswers,
    finish: Finish,
    error: BaseException | None,
) -> None:
    """Ends the reading of all processes. While the others still read, checks that the data files are those that were written.

    Args:
      process: index of this process.
      stored: the open checkpoint.
      reads: reads for several processes.
      answers: answers the peers; it is closed at the end.
      finish: takes this process's vote and waits for the others' votes.
      error: the error of this process's reading, or None.
    """
    fallback = None
    try:
        if error is None:
            reads.leave(process)
            try:
                # This error is raised only if no process has another one, because the errors of reading say more.
                stored.check_data_files()
            except Exception as found:
                fallback = found
            except BaseException as interrupt:
                error = interrupt
        if error is not None:
            reads.fail(error)
        finish(error, fallback)
    finally:
        del fallback, error
        answers.close()


class CenterCheckpoint:
    """The checkpoint that the center has open, as its own restore reads it.

    Attributes:
      path: path of the checkpoint.
      tree: its tree metadata.
      record: jaxckpt's record of the save.
    """

    def __init__(self, stored: OpenCheckpoint, reads: SharedReads, session: Center) -> None:
        """Creates the object.

        Args:
          stored: the open checkpoint.
          reads: reads what several processes want.
          session: the session of the restore.
        """
        self.path, self.tree, self.record = stored.path, stored.tree, stored.record
        self._stored = stored
        self._reads = reads
        self._session = session
        self._positions = stored.tree.positions
        self._infos: dict[str, ArrayInfo] = {}

    def infos(self, leaves: Iterable[StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves; see `Source`."""
        infos = self._stored.infos(leaves)
        self._infos |= infos
        return infos

    def nbytes(self, leaf: StoredLeaf) -> int:
        """Returns the size of an array leaf in bytes; see `Source`."""
        return self._stored.nbytes(leaf)

    def string(self, leaf: StoredLeaf) -> str:
        """Returns the value of a str leaf; see `Source`."""
        return self._stored.string(leaf)

    def read(self, requests: Sequence[tuple[str, Slices | None]]) -> list[np.ndarray]:
        """Reads arrays, or boxes of them; see `Source`. Waits for the other processes."""
        # An interrupt ends the waits for other processes.
        arrays: list[np.ndarray] = self._session.protected(functools.partial(self._read, requests))
        return arrays

    def _read(self, requests: Sequence[tuple[str, Slices | None]]) -> list[np.ndarray]:
        small = SmallFirst(requests, self._infos, self._positions)
        wanted = Wanted(small.rest, self._infos, self._positions)
        shared, rest = wanted.divided(self._reads.announce(self._session.process, wanted.boxes, small.runs))
        left = small.agree(self._reads.small, self.tree.leaves)
        for number, key in enumerate(small.keys):
            with self._reads.taken([key]) as (content,):
                small.take_one(number, content)
        places = [wanted.target(part) for part in shared]
        for batch in groups(places, lambda place: place[0].nbytes, _TAKEN_BYTES):
            with self._reads.taken([key for _, key in batch]) as parts:
                for (target, _), part in zip(batch, parts, strict=True):
                    target[...] = part
        if rest:
            boxes: list[tuple[str, Slices | None]] = [
                (name, slices_of(start, shape)) for _, (name, start, shape) in rest
            ]
            self._stored.read(boxes, [target for target, _ in rest])
        return small.all(wanted.arrays, self._stored.read(left) if left else [])
