"""The interface of a committer: how a checkpoint appears and disappears, so that a crash at any moment leaves a whole one or none.

A committer is chosen by a path (`committers.committer_of`) and has no state. To add one, write a class with these methods, let
`committer_of` return it for its paths, and add it to ``tests/storage/rooms.py``, whose conformance suite it has to pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jaxckpt.storage.commit.checkpoint_path import CheckpointPath


@dataclass(frozen=True)
class Leftover:
    """Unfinished work: a directory that is not a committed checkpoint, or not yet.

    Attributes:
      path: the directory.
      final: path of the checkpoint that it was made for.
      bytes: size of its files; None in a bucket, which does not tell.
      age_secs: seconds since its owner gave a sign of life.
      live: a running process owns it (or, of another machine, may own it): not a leftover yet.
      owner: the process, in words.
    """

    path: str
    final: str
    bytes: int | None
    age_secs: float
    live: bool
    owner: str


class Pending(Protocol):
    """A checkpoint in the making, from `Committer.begin` until `publish` or `discard`.

    An object that an interrupt drops is nobody's work any more: a sweep removes what it has left.
    """

    @property
    def new(self) -> str:
        """The directory that the files of the checkpoint are written to. See `Committer.in_place` for whether it exists."""
        ...

    @property
    def own_files(self) -> tuple[str, ...]:
        """Names of files in `new` that are the committer's, and not the checkpoint's."""
        ...

    def prepare(self, nbytes: int | None) -> None:
        """Makes sure, before anything is written, that what the commit needs can be had.

        Args:
          nbytes: how many bytes will be written at least; None if that is not known.

        Raises:
          OSError: with errno, for example ENOSPC.
        """
        ...

    def seal(self) -> None:
        """Brings what has been written to stable storage. Raises OSError."""
        ...

    def publish(self, register: Callable[[], None]) -> None:
        """Makes the checkpoint visible and registers it. Does not run where an interrupt could come. Discards it if something fails.

        Args:
          register: called once the checkpoint is visible. If it raises, a new checkpoint is taken back; one that replaces another is
            taken back where the committer can.

        Raises:
          OSError: with errno; or what `register` raised.
        """
        ...

    def discard(self) -> None:
        """Removes what has been written. What cannot be removed is logged, and is a leftover."""
        ...


class Committer(Protocol):
    """Makes checkpoints durable and visible, finds them, and removes them."""

    @property
    def in_place(self) -> bool:
        """Whether a checkpoint is written where it will stay, and a marker in it, written last, commits it.

        `Pending.new` then is a directory that the save has claimed. Otherwise it is a name in a temporary directory, where nothing is
        yet, and the commit is a rename.
        """
        ...

    def begin(self, path: CheckpointPath, *, replace: bool) -> Pending:
        """Begins a checkpoint. Leftovers of earlier saves of the same name are removed first.

        Args:
          path: where it will be.
          replace: put it in the place of the checkpoint that is there, if there is one.

        Raises:
          FileExistsError: something is there, and may not be replaced; or another process is at work there.
          OSError: with errno.
        """
        ...

    def home(self, path: str) -> str | None:
        """Returns the directory that holds the files of the committed checkpoint `path`; None if there is none.

        A committer that is not `in_place` does not look: `path` it is.
        """
        ...

    def is_committed(self, path: str) -> bool:
        """Whether `path` is a committed checkpoint, even a damaged one, whoever wrote it."""
        ...

    def committed(self, directory: str, wanted: Callable[[str], bool]) -> list[str]:
        """Returns the names of the committed checkpoints in a directory; none if it does not exist.

        Args:
          directory: where to look (not below).
          wanted: tells of a name whether it is asked for.
        """
        ...

    def is_there(self, path: str) -> bool:
        """Whether there is anything at `path`. What a save or a deletion is (or was) at work on does not count.

        A checkpoint that a dead process had moved aside, to replace it, is put back.
        """
        ...

    def saving(self, path: str) -> str | None:
        """Returns which running process is saving a checkpoint to `path` right now, in words; None if none is known to."""
        ...

    def identity(self, path: str) -> object | None:
        """Returns what tells the checkpoint at `path` from a later one of that name; None if nothing is there."""
        ...

    def delete(self, path: CheckpointPath, expected: object | None = None) -> None:
        """Removes a checkpoint, so that one that is half removed never counts as one. A path that does not exist is no error.

        Args:
          path: of the checkpoint.
          expected: what `identity` returned for the one to delete; None for whichever is there.

        Raises:
          OSError: with errno; EBUSY: it is another one by now. EINVAL: what is there is not a checkpoint, and has not been touched.
            Otherwise the checkpoint is still there, or what is left of it is a leftover.
        """
        ...

    def replace_file(self, path: CheckpointPath, content: bytes, expected: bytes) -> None:
        """Replaces a file beside checkpoints, so that readers see the old one or the new one, which is on stable storage then.

        Args:
          path: of the file.
          content: of the file.
          expected: the version that was read, or `ABSENT`; of no matter where writers keep each other out by a lock.

        Raises:
          ChangedError: it has another version by now.
          OSError: with errno; the file is as it was.
        """
        ...

    def leftovers(self, directory: str, name: str | None = None) -> list[Leftover]:
        """Lists what running or dead processes have in a directory that is not committed, oldest first.

        Args:
          directory: where to look (not below).
          name: only what was made for checkpoints called `name` or ``<name>-<number>``.
        """
        ...

    def sweep(self, directory: str, name: str | None = None) -> list[str]:
        """Removes what dead processes left, after putting right a checkpoint that one was replacing when it died.

        Args: as for `leftovers`.

        Returns:
          The paths that were removed.
        """
        ...
