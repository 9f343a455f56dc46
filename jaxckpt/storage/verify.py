"""Reads every byte of a checkpoint, without targets, to find damage."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from jaxckpt._lib.groups import groups
from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.storage.item import description, layout, tree_metadata
from jaxckpt.storage.opening import open_checkpoint
from jaxckpt.storage.source import OpenCheckpoint

_GROUP_BYTES = 256 << 20


@dataclass(frozen=True)
class Problem:
    """A damaged leaf or file.

    Attributes:
      where: name of the leaf, or path of the file.
      what: description of the damage.
    """

    where: str
    what: str


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    Attributes:
      path: path of the checkpoint.
      problems: the damaged leaves and files.
      checksummed: whether the checkpoint has checksums. Plain Orbax does not write any, and safetensors files have none; then only
        data that cannot be decoded is found.
      leaves: number of leaves.
      bytes: size in bytes of all arrays that were read.
      files: number of files that were checked.
      unread: names of leaves that were not read, because only the program that saved them can read them: by a type handler of its own,
        or a type of TensorFlow's that numpy does not have.
    """

    path: str
    problems: tuple[Problem, ...]
    checksummed: bool
    leaves: int
    bytes: int
    files: int
    unread: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def __str__(self) -> str:
        lines = [
            f"{self.path}: "
            + ("ok" if self.ok else f"{len(self.problems)} problem(s)")
            + f": {self.leaves} leaves, {self.bytes} bytes, {self.files} files"
        ]
        if not self.checksummed:
            lines.append(
                "  has no checksums (not written by jaxckpt): data that can be read may still contain flipped bits"
            )
        if self.unread:
            lines.append(f"  not read, because only the program that saved it can read it: {', '.join(self.unread)}")
        lines += [f"  {problem.where}: {problem.what}" for problem in self.problems]
        return "\n".join(lines)


def verify(
    path: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    progress_bytes: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Reads and checks every byte of a checkpoint.

    Args:
      path: path of the checkpoint.
      progress: called after each group of leaves, with the number of leaves that have been read and the number of all leaves.
      progress_bytes: called before the first group and after each, with the bytes of arrays that have been read, and those of all arrays.

    Returns:
      The report. Damage is reported in it, not raised.

    Raises:
      FileNotFoundError: nothing is at the path, or the checkpoint was deleted meanwhile.
      CheckpointError: something else than a checkpoint is at the path.
      OSError: the checkpoint cannot be read.
    """
    path = os.fspath(path)
    try:
        # Data files are checked below, one by one.
        stored = open_checkpoint(path, check_data=False)
    except CheckpointError as error:
        if type(error) is CheckpointError:
            raise
        return VerifyReport(path, (_problem(error, path),), True, 0, 0, 0)
    with stored.presence:
        report = _verified(stored, progress, progress_bytes)
        if not report.ok and (deleted := stored.presence.explain()) is not None:
            raise deleted
    return report


def _verified(
    stored: OpenCheckpoint,
    progress: Callable[[int, int], None] | None,
    progress_bytes: Callable[[int, int], None] | None,
) -> VerifyReport:
    problems: list[Problem] = []
    files, damaged = stored.check_files()
    problems += [Problem(where, what) for where, what in damaged]
    arrays = [leaf for leaf in stored.tree.leaves if not (leaf.is_empty or leaf.is_string or leaf.is_foreign)]
    readable = []
    for leaf in arrays:
        try:
            stored.infos([leaf])
            readable.append(leaf)
        except CheckpointError as error:
            problems.append(_problem(error, leaf.name))
    total, done = 0, 0
    everything = sum(stored.nbytes(leaf) for leaf in readable)
    if progress_bytes is not None:
        progress_bytes(0, everything)
    # Each leaf counts a few bytes more than it has, so that even a group of empty arrays ends.
    for group in groups(readable, lambda leaf: stored.nbytes(leaf) + layout.CHECKSUM_BYTES, _GROUP_BYTES):
        for leaf in group if not _readable(stored, group) else ():
            try:
                stored.read([(leaf.param_name, None)])
            except CheckpointError as error:
                problems.append(_problem(error, leaf.name))
        total += sum(stored.nbytes(leaf) for leaf in group)
        done += len(group)
        if progress is not None:
            progress(done, len(arrays))
        if progress_bytes is not None:
            progress_bytes(total, everything)
    for leaf in stored.tree.leaves:
        if leaf.is_string:
            try:
                stored.string(leaf)
            except CheckpointError as error:
                problems.append(_problem(error, leaf.name))
    unread = []
    for leaf in stored.tree.leaves:
        if leaf.is_foreign:
            try:
                stored.peculiar(leaf)
            except CorruptCheckpointError as error:
                problems.append(_problem(error, leaf.name))
            except CheckpointError:
                unread.append(leaf.name)
    if not problems:
        # A leaf's own problem says more than one of a data file.
        problems += [Problem(where, what) for where, what in stored.exchanged_files()]
    # The save counter counts as a leaf, whether it is stored in the tree or in the record.
    leaves = sum(not leaf.is_empty for leaf in stored.tree.leaves) + (description.COUNTER in stored.record)
    # A problem of the whole database was reported once for every leaf.
    problems = list(dict.fromkeys(problems))
    return VerifyReport(stored.path, tuple(problems), stored.is_checksummed, leaves, total, files, tuple(unread))


def _problem(error: CheckpointError, where: str) -> Problem:
    """Returns the problem that an error reports.

    Args:
      error: the error of a read.
      where: the leaf or file that was read; used if the error does not name the place itself.
    """
    if isinstance(error, CorruptCheckpointError) and error.where is not None and error.what is not None:
        return Problem(error.where, error.what)
    return Problem(where, str(error))


def _readable(stored: OpenCheckpoint, group: list[tree_metadata.StoredLeaf]) -> bool:
    """Whether a whole group of leaves can be read. If not, the caller reads them one by one to find the damaged ones."""
    try:
        stored.read([(leaf.param_name, None) for leaf in group])
    except CheckpointError:
        return False
    return True
