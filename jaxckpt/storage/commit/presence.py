"""Tells a checkpoint that was deleted or replaced while it was read from a damaged one.

A reader opens files by their paths, one after the other. Meanwhile another process may delete the checkpoint: a trainer that keeps only
the newest one, a person, or another library. The missing files then look like damage. So after a failure, and only then, this module
checks whether the directory is still the one that was opened.
"""

import abc
import errno
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from jaxckpt.errors import CheckpointError
from jaxckpt.storage import stores
from jaxckpt.storage.commit import checkpoints
from jaxckpt.storage.commit.choice import committer_of
from jaxckpt.storage.item import tree_metadata

# A running deletion removes a file every few milliseconds. If nothing has changed for this long, no deletion is running.
_QUIET_SECS = 0.1
_LOOK_SECS = 0.02
_AT_MOST_SECS = 10.0


class DeletedError(FileNotFoundError):
    """The checkpoint was deleted, or replaced by another one, while it was read."""


class _Identity(NamedTuple):
    """Tells a checkpoint from another one at its path.

    Attributes:
      directory: device and inode number of the directory; in a bucket, the directory that holds the files.
      mark: inode number and time of ``_METADATA``; None if the directory itself has no such file. The inode of the directory is not
        enough: a new directory may get the inode number of a removed one.
    """

    directory: object
    mark: tuple[int, int] | None


class Watched(abc.ABC):
    """Watches one open checkpoint.

    As a context manager, it examines errors that are raised in its block. An error about missing or damaged files becomes a DeletedError
    if `explain` finds that the checkpoint was deleted or replaced.
    """

    def __init__(self, given: str) -> None:
        """Takes the path of the checkpoint, as the caller gave it."""
        self._given = given

    @abc.abstractmethod
    def explain(self) -> DeletedError | None:
        """Returns the error to raise if the checkpoint was deleted or replaced; None if it is still there, so that it is damaged."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (CheckpointError, OSError)) and not isinstance(error, (DeletedError, TimeoutError)):
            found = self.explain()
            if found is not None:
                raise found from error

    def _error(self, text: str) -> DeletedError:
        return DeletedError(errno.ENOENT, text, self._given)


class Presence(Watched):
    """Watches a checkpoint that is a directory."""

    def __init__(self, path: str) -> None:
        """Remembers the identity of the checkpoint at `path`, which existed a moment ago."""
        super().__init__(path)
        # The working directory may change before an error occurs.
        self._path = stores.absolute(path)
        self._is_local = stores.is_local(self._path)
        self._read_digests: Callable[[], object] | None = None
        self._digests: object = None
        self._opened = self._identity()
        self._was_checkpoint = not self._is_local or checkpoints.is_checkpoint(self._path)

    def identify_by(self, digests: object, read: Callable[[], object]) -> None:
        """Identifies a checkpoint in a bucket by its digests. A local checkpoint does not need this: its inodes identify it.

        Args:
          digests: digests of its files when it was opened.
          read: reads the digests again; raises CorruptCheckpointError or OSError.
        """
        if not self._is_local:
            self._digests, self._read_digests = digests, read

    def check(self) -> None:
        """Raises DeletedError if a local checkpoint was deleted or replaced. Does nothing in a bucket, where this would take a request."""
        if self._is_local and (error := self._fault()) is not None:
            raise error

    def refuse_another(self, *, if_cheap: bool = False) -> None:
        """Raises DeletedError if another checkpoint is at the path now.

        Call it after a read: some of the data may come from the other checkpoint. If the checkpoint was only deleted, that does not
        matter after everything has been read.

        Args:
          if_cheap: do nothing in a bucket, where this would take a request.
        """
        if if_cheap and not self._is_local:
            return
        if not self._is_local:
            another = self._read_digests is not None and self._was_rewritten()
        else:
            now, then = self._identity(), self._opened
            half_deleted = now is not None and then is not None and now.mark is None and now.directory == then.directory
            another = now is not None and now != then and not half_deleted
        if another:
            raise self._replaced()

    def explain(self) -> DeletedError | None:
        """Checks whether the checkpoint was deleted or replaced; see `Watched`. Waits for a deletion that may be running."""
        try:
            return self._explain()
        except OSError:
            # The directory cannot be read either, for the same reason as the checkpoint.
            return None

    def _explain(self) -> DeletedError | None:
        if self._opened is None and os.path.islink(self._path):
            # The link was broken from the beginning.
            return None
        if not self._is_local:
            # If there was not a committed checkpoint from the beginning, it has not been deleted.
            return None if self._opened is None else self._fault()
        deadline = time.monotonic() + _AT_MOST_SECS
        found = self._fault()
        if found is None and not self._was_checkpoint:
            # There was not a checkpoint here that could have been deleted.
            return None
        # The directory still exists. A deletion may be removing its files now, and the directory last. Wait until nothing changes.
        changed = _last_change(self._path, deadline)
        quiet_since = time.monotonic() - max(0.0, time.time() - changed)
        while found is None and quiet_since + _QUIET_SECS > time.monotonic() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECS)
            found = self._fault()
            now = _last_change(self._path, deadline)
            if now != changed:
                changed, quiet_since = now, time.monotonic()
        return found

    def _fault(self) -> DeletedError | None:
        """Checks once. Returns the error if the checkpoint was deleted or replaced, otherwise None."""
        now, then = self._identity(), self._opened
        unmarked = now is not None and then is not None and now.mark is None and then.mark is not None
        if now is None or unmarked:
            return self._error(
                "This checkpoint was deleted while it was read (by a trainer that keeps only the newest, perhaps)"
            )
        if now != then or (self._read_digests is not None and self._was_rewritten()):
            return self._replaced()
        return None

    def _replaced(self) -> DeletedError:
        return self._error(
            "This checkpoint was deleted while it was read, and another one was saved under its name; read it again"
        )

    def _was_rewritten(self) -> bool:
        assert self._read_digests is not None
        try:
            return self._read_digests() != self._digests
        except (CheckpointError, OSError):
            return False

    def _identity(self) -> _Identity | None:
        """Returns the identity of the checkpoint at the path; None if nothing is there."""
        if not self._is_local:
            home = committer_of(self._path).home(self._path)
            return None if home is None else _Identity(home, None)
        try:
            status = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        directory = status.st_dev, status.st_ino
        try:
            mark = os.stat(os.path.join(self._path, tree_metadata.FILE))
        except OSError:
            return _Identity(directory, None)
        return _Identity(directory, (mark.st_ino, mark.st_mtime_ns))


def _last_change(path: str, deadline: float) -> float:
    """Returns when an entry was last added or removed in a directory or below it, in seconds since the epoch (file system's clock)."""
    last = 0.0
    for folder, _, _ in os.walk(path):
        if time.monotonic() > deadline:
            break
        try:
            last = max(last, os.stat(folder).st_mtime)
        except FileNotFoundError:
            last = time.time()
    return last
