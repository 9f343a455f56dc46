"""The interface of a store: the few file operations that checkpoints need, whatever keeps the files.

A store is chosen by a path (`stores.store_of`) and has no state: every method takes whole paths. To add a store, write a class with these
methods, let `store_of` return it for its paths, and add it to ``tests/storage/rooms.py``, whose conformance suite it has to pass.
"""

import contextlib
import contextvars
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

from jaxckpt._lib.deadline import Deadline

# The version of a file that does not exist. (TensorStore's name for the generation of an absent object.)
ABSENT = b"\x02"
_deadline: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("deadline", default=None)


class ChangedError(OSError):
    """A file does not have the version that a conditional write expected: another writer changed it."""


@contextlib.contextmanager
def within(deadline: Deadline) -> Iterator[None]:
    """Bounds every wait of a remote store in the block.

    Args:
      deadline: that no wait may pass.
    """
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def current_deadline() -> Deadline | None:
    """Returns the deadline of the innermost `within`; None outside of any."""
    return _deadline.get()


class Store(Protocol):
    """What keeps files: directories of the operating system, or a bucket.

    All methods raise OSError with errno. A directory of a bucket exists by being part of the names of objects.
    """

    @property
    def is_local(self) -> bool:
        """Whether files have descriptors, sizes, times and inodes, and a look at them is cheap. Otherwise each look is a request."""
        ...

    def check_address(self, path: str, argument: str) -> None:
        """Refuses a path that a caller gave and that can name nothing in this store.

        Args:
          path: as given.
          argument: name of the caller's argument, for the message.

        Raises:
          ValueError: saying what to give instead.
        """
        ...

    def absolute(self, path: str) -> str:
        """Returns the path that stands for `path` whatever the working directory is."""
        ...

    def spelled(self, path: str) -> str:
        """Returns `path` as it is spelled, but without a ``name/..`` that could not be followed, as there is no `name`."""
        ...

    def identity(self, path: str) -> str:
        """Returns one spelling for all paths of the same entry of a directory, to compare them."""
        ...

    def relative(self, path: str, directory: str) -> str:
        """Returns how a file in `directory` names `path`, so that the name stays right when the directory moves.

        Args:
          path: relative to `directory`, or absolute.
          directory: absolute path.

        Returns:
          One spelling, relative to `directory`; `path` as it is if it leads elsewhere.
        """
        ...

    def spec(self, directory: str) -> dict[str, Any]:
        """Returns the TensorStore spec of the key-value store that holds the files of `directory`."""
        ...

    def exists(self, path: str) -> bool:
        """Whether anything is at `path`, a broken link included."""
        ...

    def is_file(self, path: str) -> bool:
        """Whether a file can be found at `path` (or, in a local store, a directory)."""
        ...

    def is_directory(self, path: str) -> bool:
        """Whether `path` is a directory."""
        ...

    def names(self, directory: str) -> list[str]:
        """Returns the names in a directory, in no order.

        Raises:
          FileNotFoundError: there is no such directory (an empty one does not exist in a bucket).
        """
        ...

    def tree(self, directory: str) -> list[str]:
        """Returns the paths of all files below `directory`, relative to it, sorted; none if it does not exist."""
        ...

    def size(self, path: str) -> int | None:
        """Returns the size of a file in bytes; None where it is not known without reading the file."""
        ...

    def modified(self, path: str) -> float | None:
        """Returns when a file or directory was last changed, in seconds since the epoch; None where that is not known."""
        ...

    def read(self, path: str, limit: int | None = None) -> bytes:
        """Returns the content of a file.

        Args:
          path: of the file.
          limit: how many bytes it may have; not looked at where the size is not known before it is read.

        Raises:
          OSError: it cannot be read. In a local store: EINVAL if it is not a regular file, EFBIG if it is larger than `limit`.
        """
        ...

    def read_versioned(self, path: str, limit: int | None = None) -> tuple[bytes | None, bytes]:
        """Returns the content of a file and its version; None and `ABSENT` if there is none. Arguments and errors as for `read`."""
        ...

    def ranges(self, path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """Returns parts of a file.

        Args:
          path: of the file.
          parts: first byte and length of each; a negative first byte counts from the end, and such a part reaches to the end at
            most. Bytes beyond the end are left out.
        """
        ...

    def write(self, path: str, content: bytes) -> None:
        """Writes a file, whatever is there. In a local store in place, and without a sync.

        Args:
          path: of the file. Its directory must exist where the store has directories.
          content: of the file.
        """
        ...

    def write_if(self, path: str, content: bytes, expected: bytes) -> bytes:
        """Writes a file if nobody else has changed it. Readers see the old content or the new one, which is on stable storage then.

        Args:
          path, content: as for `write`.
          expected: the version that the file must have now; `ABSENT` if there must be none.

        Returns:
          The new version.

        Raises:
          ChangedError: the file has another version. Also where the answer to a write got lost that was then tried again.
        """
        ...

    def remove(self, path: str) -> None:
        """Removes a file; one that does not exist is no error."""
        ...

    def remove_tree(self, directory: str, leaving: Collection[str] = ()) -> None:
        """Removes everything in a directory, and the directory itself if nothing is to stay. Links are not followed.

        Args:
          directory: absolute path; one that does not exist is no error.
          leaving: names of files directly in it that stay.
        """
        ...

    def prune(self, directory: str) -> None:
        """Removes a directory if it is empty; a bucket has no empty ones. That it is not, or is gone, is no error."""
        ...

    def copy(self, source: str, target: str, leaving: Collection[str] = ()) -> None:
        """Copies the files below one directory to another; few are in memory at a time.

        Args:
          source: absolute path of a directory.
          target: absolute path of a directory, which is made.
          leaving: paths, relative to `source`, of files that are not copied.
        """
        ...

    def make_directory(self, path: str) -> None:
        """Makes a directory, with its parents; one that is there is no error. A bucket needs none."""
        ...

    def sync_tree(self, directory: str) -> None:
        """Brings every file and directory below `directory`, and itself, to stable storage. A bucket does so when it is written."""
        ...
