"""The interface of a store: the few file operations that checkpoints need, for files on a disk or in a bucket.

`stores.store_of` chooses the store of a path. A store has no state: every method takes whole paths. To add a store, write a class with
these methods, let `store_of` return it for its paths, and add it to ``tests/storage/rooms.py``, whose conformance suite it must pass.
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
    """Bounds every wait for a storage server in the block.

    Args:
      deadline: when every wait ends.
    """
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def current_deadline() -> Deadline | None:
    """Returns the deadline of the innermost `within`; None outside of all."""
    return _deadline.get()


class Store(Protocol):
    """A place where files are: the local directories, or the buckets of one kind of storage server.

    All methods raise OSError with errno. In a bucket, a directory exists while its name begins the name of an object.
    """

    @property
    def is_local(self) -> bool:
        """Whether files have descriptors, sizes, times and inodes that are cheap to read. In another store, each look is a request."""
        ...

    @property
    def largest_file(self) -> int | None:
        """The largest size in bytes that a file can have; None for no limit that matters."""
        ...

    def check_address(self, path: str, argument: str) -> None:
        """Refuses a path that cannot name anything in this store.

        Args:
          path: the path, as the caller gave it.
          argument: name of the caller's argument, for the message.

        Raises:
          ValueError: the path cannot be used; says what to give instead.
        """
        ...

    def absolute(self, path: str) -> str:
        """Returns the absolute path of `path`, which stays right when the working directory changes."""
        ...

    def spelled(self, path: str) -> str:
        """Returns `path` as it is spelled, but without each ``name/..`` whose `name` does not exist, so that it can be followed."""
        ...

    def identity(self, path: str) -> str:
        """Returns one spelling for all paths of the same directory entry, so that paths can be compared."""
        ...

    def relative(self, path: str, directory: str) -> str:
        """Returns `path` relative to `directory`. A file in the directory names it so; the name stays right when the directory moves.

        Args:
          path: the path, relative to `directory` or absolute.
          directory: absolute path of the directory.

        Returns:
          One spelling for all paths of the same entry; `path` as it is if it is not in `directory`.
        """
        ...

    def spec(self, directory: str) -> dict[str, Any]:
        """Returns the TensorStore spec of the key-value store that holds the files of `directory`."""
        ...

    def exists(self, path: str) -> bool:
        """Whether anything is at `path`. A broken link counts."""
        ...

    def is_file(self, path: str) -> bool:
        """Whether a file (in the local store: a file or a directory) is at `path`. A broken link does not count."""
        ...

    def is_directory(self, path: str) -> bool:
        """Whether `path` is a directory."""
        ...

    def names(self, directory: str) -> list[str]:
        """Returns the names of the entries of a directory, in any order.

        Raises:
          FileNotFoundError: the directory does not exist. (In a bucket, an empty directory does not exist.)
        """
        ...

    def tree(self, directory: str) -> list[str]:
        """Returns the paths of all files below `directory`, relative to it, sorted. The list is empty if `directory` does not exist."""
        ...

    def size(self, path: str) -> int | None:
        """Returns the size of a file in bytes; None if the store would have to read the file for it."""
        ...

    def modified(self, path: str) -> float | None:
        """Returns when a file or directory was last changed, in seconds since the epoch; None if the store does not know."""
        ...

    def read(self, path: str, limit: int | None = None) -> bytes:
        """Returns the content of a file.

        Args:
          path: path of the file.
          limit: the largest size in bytes that is read; None for any size. Not checked in a bucket.

        Raises:
          OSError: the file cannot be read. In the local store: EINVAL if it is not a regular file, EFBIG if it is larger than `limit`.
        """
        ...

    def read_versioned(self, path: str, limit: int | None = None) -> tuple[bytes | None, bytes]:
        """Returns the content of a file and its version; None and `ABSENT` if the file does not exist.

        Args:
          path: path of the file.
          limit: the largest size in bytes that is read; None for any size. Not checked in a bucket.

        Raises:
          OSError: the file cannot be read. In the local store: EINVAL if it is not a regular file, EFBIG if it is larger than `limit`.
        """
        ...

    def ranges(self, path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """Returns parts of a file.

        Args:
          path: path of the file.
          parts: first byte and length in bytes of each part. A negative first byte counts from the end of the file. A part is shorter
            than its length if the file ends before it does.
        """
        ...

    def write(self, path: str, content: bytes) -> None:
        """Writes a file; replaces the old content, if there is any. The local store writes in place, and does not sync.

        Args:
          path: path of the file. In the local store, its directory must exist.
          content: new content.
        """
        ...

    def write_if(self, path: str, content: bytes, expected: bytes) -> bytes:
        """Writes a file if its version is the expected one. Readers see the old content or the new content, nothing between.

        After the return, the new content is on stable storage.

        Args:
          path: path of the file. In the local store, its directory must exist.
          content: new content.
          expected: the version that the file must have now; `ABSENT` if it must not exist.

        Returns:
          The new version.

        Raises:
          ChangedError: the file has another version. In a bucket this may be this write's own: the server wrote the file, its answer got
            lost, and the retry found the file changed.
        """
        ...

    def require_conditions(self, scratch: str, contents: Sequence[bytes]) -> None:
        """Makes sure that `write_if` keeps its promise here. If that depends on the server, tries it at the first call for a bucket.

        Args:
          scratch: path of a file that does not exist. Afterwards it does not exist either.
          contents: three different contents or more, to be written there.

        Raises:
          OSError: with errno; ENOTSUP if the server ignores the conditions of writes, otherwise the error of a request.
        """
        ...

    def remove(self, path: str) -> None:
        """Removes a file. A file that does not exist is not an error."""
        ...

    def remove_tree(self, directory: str, leaving: Collection[str] = ()) -> None:
        """Removes everything in a directory, and the directory itself if `leaving` is empty. Does not follow links.

        Args:
          directory: absolute path of the directory. If it does not exist, nothing happens.
          leaving: names of files directly in the directory that stay.
        """
        ...

    def prune(self, directory: str) -> None:
        """Removes a directory if it exists and is empty; otherwise nothing happens. A bucket has no empty directories."""
        ...

    def copy(self, source: str, target: str, leaving: Collection[str] = ()) -> None:
        """Copies all files below one directory into another. Holds only a few files in memory at a time.

        Args:
          source: absolute path of the directory to copy.
          target: absolute path of the new directory, which is made.
          leaving: paths, relative to `source`, of files that are not copied.
        """
        ...

    def make_directory(self, path: str) -> None:
        """Makes a directory and its parents, unless they exist. Does nothing in a bucket."""
        ...

    def sync_tree(self, directory: str) -> None:
        """Brings `directory` and all that is below it to stable storage. Does nothing in a bucket, where every write does so."""
        ...
