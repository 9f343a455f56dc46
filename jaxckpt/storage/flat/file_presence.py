"""Tells a checkpoint whose files were deleted or replaced while it was read from a damaged one. For a directory, see `commit.presence`."""

import os
from collections.abc import Callable, Sequence

from jaxckpt.storage import stores
from jaxckpt.storage.commit.presence import DeletedError, Watched


class FilePresence(Watched):
    """Watches the files of one open checkpoint: the first one may be deleted, and any of them may be replaced."""

    def __init__(self, given: str, files: Callable[[], Sequence[str]]) -> None:
        """Does not look at the files yet: `remember` does.

        Args:
          given: path of the checkpoint, as the caller gave it.
          files: returns the paths of its files. The first one says which others there are.
        """
        super().__init__(given)
        self._files = files
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
            raise self._changed("replaced by another one")

    def explain(self) -> DeletedError | None:
        """Checks whether the checkpoint was deleted or replaced; see `Watched`."""
        state = self._state()
        return None if state is None else self._changed("deleted" if state == "deleted" else "replaced by another one")

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

    def _changed(self, what: str) -> DeletedError:
        return self._error(f"This checkpoint was {what} while it was read")


def _identity(path: str) -> object:
    """Returns what tells a file from one that replaces it; None if it does not exist, or is in a bucket."""
    if not stores.is_local(path):
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
