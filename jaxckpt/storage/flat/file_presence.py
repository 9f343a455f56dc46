"""Tells a checkpoint whose files were deleted or replaced while it was read from a damaged one. For a directory, see `commit.presence`."""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

from jaxckpt.errors import CheckpointError
from jaxckpt.storage import stores
from jaxckpt.storage.commit.presence import DeletedError


class FilePresence:
    """Watches the files of one open checkpoint.

    As a context manager, it examines errors that are raised in its block. An error about missing or damaged files becomes a DeletedError if
    the first file was deleted, or any file was replaced.
    """

    def __init__(self, given: str, files: Callable[[], Sequence[str]]) -> None:
        """Does not look at the files yet: `remember` does.

        Args:
          given: path of the checkpoint, as the caller gave it.
          files: returns the paths of its files. The first one says which others there are.
        """
        self._given, self._files = given, files
        self._opened: list[object] = []

    def remember(self) -> None:
        """Remembers the files that are there now."""
        self._opened = [_identity(path) for path in self._files()]

    def check(self) -> None:
        """Raises DeletedError if the checkpoint on a local disk was deleted or replaced. Does nothing in a bucket."""
        if (error := self.explain()) is not None:
            raise error

    def refuse_another(self) -> None:
        """Raises DeletedError if another checkpoint is at the path now. Call it after a read."""
        if self._state() == "replaced":
            raise self._error("replaced by another one")

    def explain(self) -> DeletedError | None:
        """Returns the error to raise if the checkpoint was deleted or replaced; None if it is still there, so that it is damaged."""
        state = self._state()
        return None if state is None else self._error("deleted" if state == "deleted" else "replaced by another one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (CheckpointError, OSError)) and not isinstance(error, (DeletedError, TimeoutError)):
            found = self.explain()
            if found is not None:
                raise found from error

    def _state(self) -> str | None:
        files = self._files()
        if not files or not stores.is_local(files[0]):
            return None
        for path, then in zip(files, self._opened, strict=False):
            now = _identity(path)
            if now is None and then is not None:
                return "deleted"
            if now != then:
                return "replaced"
        return None

    def _error(self, what: str) -> DeletedError:
        return DeletedError(errno.ENOENT, f"This checkpoint was {what} while it was read", self._given)


def _identity(path: str) -> object:
    """Returns what tells a file from one that replaces it; None if it does not exist, or is in a bucket."""
    if not stores.is_local(path):
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
