"""The interface of a committer. It makes checkpoints appear and disappear, so that a crash at any moment leaves a whole one or none.

`choice.committer_of` chooses the committer of a path. A committer has no state. To add one, write a class with these methods, let
`committer_of` return it for its paths, and add it to ``tests/storage/rooms.py``, whose conformance suite it must pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jaxckpt.storage.commit.checkpoint_path import CheckpointPath


@dataclass(frozen=True)
class Leftover:
    """A directory with unfinished work: its owner is still at work, or was killed.

    Attributes:
      path: path of the directory.
      final: path of the checkpoint that the work is for.
      bytes: size of its files in bytes; None in a bucket, where it is not known.
      age_secs: seconds since the last sign of life of its owner.
      live: whether the owner is running, or may be (if it is on another machine). Then a sweep leaves it alone.
      owner: the process that owns it, in words.
    """

    path: str
    final: str
    bytes: int | None
    age_secs: float
    live: bool
    owner: str


class Pending(Protocol):
    """An unfinished checkpoint, from `Committer.begin` until `publish` or `discard`.

    If an interrupt drops this object, its work has ended, and the next sweep removes its files.
    """

    @property
    def new(self) -> str:
        """The directory for the files of the checkpoint. `Committer.in_place` says whether it exists."""
        ...

    @property
    def own_files(self) -> tuple[str, ...]:
        """Names of the files in `new` that belong to the committer, not to the checkpoint."""
        ...

    def prepare(self, nbytes: int | None) -> None:
        """Checks, before anything is written, that there are enough resources for the save.

        Args:
          nbytes: the least number of bytes that will be written; None if that is not known.

        Raises:
          OSError: with errno, for example ENOSPC.
        """
        ...

    def seal(self) -> None:
        """Brings the written files to stable storage. Raises OSError."""
        ...

    def publish(self, register: Callable[[], None]) -> None:
        """Makes the checkpoint visible and registers it. If a step fails, discards the checkpoint.

        The caller runs it where no interrupt reaches it.

        Args:
          register: called once the checkpoint is visible. If it raises, the commit is undone. If the checkpoint replaced another one,
            that one is put back where the committer can do so.

        Raises:
          OSError: with errno.
          BaseException: the error that `register` raised.
        """
        ...

    def discard(self) -> None:
        """Removes the written files. Never raises OSError: files that cannot be removed stay as a leftover."""
        ...


class Committer(Protocol):
    """Makes checkpoints durable and visible, finds them, and removes them."""

    @property
    def in_place(self) -> bool:
        """Whether a checkpoint is written where it will stay, and committed by a marker that is written last.

        Then `Pending.new` is a directory that the save has leased. Otherwise the commit is a rename, and `Pending.new` is a path in a
        temporary directory, where nothing exists yet.
        """
        ...

    def begin(self, path: CheckpointPath, *, replace: bool) -> Pending:
        """Begins a checkpoint. First removes leftovers of earlier saves under the same name.

        Args:
          path: path of the checkpoint.
          replace: whether it may replace a checkpoint at `path`.

        Raises:
          FileExistsError: something is at `path` and may not be replaced, or another process is working there.
          OSError: with errno.
        """
        ...

    def home(self, path: str) -> str | None:
        """Returns the directory that holds the files of the committed checkpoint `path`; None if there is no such checkpoint.

        A committer that is not `in_place` always returns `path`, without looking.
        """
        ...

    def is_committed(self, path: str) -> bool:
        """Whether `path` is a committed checkpoint. Damaged checkpoints and those that plain Orbax wrote count."""
        ...

    def names(self, directory: str, wanted: Callable[[str], bool]) -> list[str]:
        """Returns the names of the committed checkpoints in a directory; an empty list if it does not exist.

        Args:
          directory: path of the directory. Its subdirectories are not searched.
          wanted: says whether a name is asked for.
        """
        ...

    def is_there(self, path: str) -> bool:
        """Whether there is anything at `path`, apart from the unfinished work of a save or a deletion.

        If a process moved the checkpoint aside to replace it, and died, the checkpoint is first put back.
        """
        ...

    def saving(self, path: str) -> str | None:
        """Returns, in words, the running process that is saving a checkpoint to `path` now; None if there is none."""
        ...

    def identity(self, path: str) -> object | None:
        """Returns a value that differs from that of every later checkpoint at `path`; None if nothing is there."""
        ...

    def delete(self, path: CheckpointPath, expected: object | None = None) -> None:
        """Removes a checkpoint. A partly removed one never counts as a checkpoint. If the path does not exist, nothing happens.

        Args:
          path: path of the checkpoint.
          expected: the value that `identity` returned for the checkpoint to delete; None to delete any.

        Raises:
          OSError: with errno. EBUSY: another checkpoint is at the path by now. EINVAL: something else than a checkpoint is there, and
            has not been touched. After any other error the checkpoint is still there, or its rest is a leftover.
        """
        ...

    def replace_file(self, path: CheckpointPath, content: bytes, expected: bytes) -> None:
        """Replaces a file beside checkpoints. Readers see the old content or the new content, nothing between.

        After the return, the new content is on stable storage.

        Args:
          path: path of the file.
          content: new content.
          expected: the version that the caller read, or `ABSENT`. Not checked on disks, where a lock keeps other writers out.

        Raises:
          ChangedError: the file has another version by now.
          OSError: with errno; the file is unchanged.
        """
        ...

    def leftovers(self, directory: str, name: str | None = None) -> list[Leftover]:
        """Lists the uncommitted work of running and dead processes in a directory, oldest first.

        Args:
          directory: path of the directory. Its subdirectories are not searched.
          name: list only work for checkpoints called `name` or ``<name>-<number>``; None for all.
        """
        ...

    def sweep(self, directory: str, name: str | None = None) -> list[str]:
        """Removes the leftovers of dead processes. If one died while it replaced a checkpoint, that checkpoint is first made whole.

        Args:
          directory: path of the directory. Its subdirectories are not searched.
          name: remove only leftovers of checkpoints called `name` or ``<name>-<number>``; None for all.

        Returns:
          The paths of the removed leftovers.
        """
        ...
