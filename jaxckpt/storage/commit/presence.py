"""Whether a checkpoint that was opened is still there: one that is deleted, or replaced, while it is read is not damaged.

A reader opens files by their paths, one after the other. Another process may delete the checkpoint meanwhile: a trainer that keeps the
newest one only, a person, another library. What is missing then looks like damage. After a failure, and only then, this module looks
whether the directory is still the one that was opened.
"""

import errno
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from jaxckpt.errors import CheckpointError
from jaxckpt.storage import stores
from jaxckpt.storage.commit import committed
from jaxckpt.storage.commit.committers import committer_of
from jaxckpt.storage.item import tree_metadata

# A deletion that is under way removes a file every few milliseconds. Where nothing has changed for so long, nobody is deleting.
_QUIET_SECS = 0.1
_LOOK_SECS = 0.02
_AT_MOST_SECS = 10.0


class DeletedError(FileNotFoundError):
    """The checkpoint was deleted, or replaced by another one, while it was read."""


class _Identity(NamedTuple):
    """What tells a checkpoint from another one.

    Attributes:
      directory: device and inode; in a bucket, where the checkpoint lies.
      mark: of the file that makes the directory a checkpoint: inodes are used again, and a directory that was removed and made anew may
        have the same one. None if there is no such file in the directory itself.
    """

    directory: object
    mark: tuple[int, int] | None


class Presence:
    """Watches one open checkpoint. A context manager: what is raised inside of the block is looked into.

    In a block, an error about missing or damaged files becomes a DeletedError if the checkpoint is not there any more.
    """

    def __init__(self, path: str) -> None:
        """Notes what is at `path`, where something was a moment ago."""
        self._given = path
        # The working directory may be another one when something fails.
        self._path = stores.absolute(path)
        self._is_local = stores.is_local(self._path)
        self._read_digests: Callable[[], object] | None = None
        self._digests: object = None
        self._opened = self._identity()
        self._was_checkpoint = not self._is_local or committed.is_checkpoint(self._path)

    def identify_by(self, digests: object, read: Callable[[], object]) -> None:
        """Tells a checkpoint from one that was saved anew in its place. In a local store, its inodes do so already.

        Args:
          digests: of its files, as they were when it was opened.
          read: reads them again; raises CorruptCheckpointError or OSError.
        """
        if not self._is_local:
            self._digests, self._read_digests = digests, read

    def check(self) -> None:
        """Raises DeletedError if the checkpoint is gone, where a look at its directory is cheap: where it is a request, none is made."""
        if self._is_local and (error := self._fault()) is not None:
            raise error

    def refuse_another(self, *, if_cheap: bool = False) -> None:
        """Raises DeletedError if another checkpoint is there now. After a read: some of what was read may be the other one's.

        That the checkpoint is gone doesn't matter any more, once everything has been read.

        Args:
          if_cheap: look only where that is no request.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (CheckpointError, OSError)) and not isinstance(error, (DeletedError, TimeoutError)):
            found = self.explain()
            if found is not None:
                raise found from error

    def explain(self) -> DeletedError | None:
        """Returns the error to raise if the checkpoint is not there any more, None if it is: then something else is wrong."""
        try:
            return self._explain()
        except OSError:
            # What kept the checkpoint from being read keeps this from looking.
            return None

    def _explain(self) -> DeletedError | None:
        if self._opened is None and os.path.islink(self._path):
            # A link that led nowhere from the beginning.
            return None
        if not self._is_local:
            # What is no committed checkpoint from the beginning has not been deleted.
            return None if self._opened is None else self._fault()
        deadline = time.monotonic() + _AT_MOST_SECS
        found = self._fault()
        if found is None and not self._was_checkpoint:
            # Nobody deletes a checkpoint here.
            return None
        # Where it is there: is somebody removing its files at this moment, the directory last?
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
        """Looks once."""
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

    def _error(self, text: str) -> DeletedError:
        return DeletedError(errno.ENOENT, text, self._given)

    def _identity(self) -> _Identity | None:
        """Returns what tells the checkpoint from another one at its path, None if nothing is there."""
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
    """Returns when a file was last made or removed in a directory or below it, in seconds of the file system's clock."""
    last = 0.0
    for folder, _, _ in os.walk(path):
        if time.monotonic() > deadline:
            break
        try:
            last = max(last, os.stat(folder).st_mtime)
        except FileNotFoundError:
            last = time.time()
    return last
