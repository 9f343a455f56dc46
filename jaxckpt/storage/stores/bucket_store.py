"""The store of buckets. An object is a file; a directory exists while its name begins the name of an object."""

import errno
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from jaxckpt._lib.arguments import refusal
from jaxckpt.storage.stores import bucket, conditions
from jaxckpt.storage.stores.store import ABSENT, ChangedError

# A copy holds this many objects in memory at a time.
_WINDOW = 4


class BucketStore:
    """Objects of the buckets of one kind of storage server. See `Store` for the methods."""

    is_local = False

    def __init__(
        self,
        scheme: str,
        server: Callable[[str], dict[str, Any]],
        *,
        largest_file: int | None = None,
        keeps_conditions: bool = True,
    ) -> None:
        """Does not contact the server yet.

        Args:
          scheme: beginning of the addresses, such as ``gs://``.
          server: returns the TensorStore spec of the bucket with a name; see `servers`.
          largest_file: the largest size of an object in bytes; None for no limit that matters.
          keeps_conditions: whether all servers of this kind are known to check the conditions of writes.
        """
        self.scheme = scheme
        self.largest_file = largest_file
        self._keeps_conditions = keeps_conditions
        self._server = server
        # Specs of buckets whose server was found to check conditions.
        self._proven: set[str] = set()

    def check_address(self, path: str, argument: str) -> None:
        """See `Store`."""
        name, _, key = path[len(self.scheme) :].partition("/")
        if not name:
            raise ValueError(
                f"{argument}={path!r} does not name a bucket; an address is '{self.scheme}bucket/directory/name'."
            )
        if argument == "file_prefix" and not key.strip("/"):
            raise ValueError(
                f"{argument}={path!r} names only a bucket; add a name in it, such as '{self.scheme}{name}/ckpt'."
            )
        if not {".", ".."}.isdisjoint(key.split("/")):
            raise refusal(ValueError, f"{argument}={path!r}", "an address in a bucket cannot contain '.' or '..'")
        if re.search(r"[\n\r]", path):
            raise refusal(ValueError, f"{argument}={path!r}", "names of objects cannot contain line breaks")
        try:
            path.encode()
        except UnicodeEncodeError:
            raise refusal(ValueError, f"{argument}={path!a}", "names of objects must be UTF-8 text") from None

    def absolute(self, path: str) -> str:
        """See `Store`. Removes repeated slashes, and slashes at the end."""
        return self.scheme + "/".join(part for part in path[len(self.scheme) :].split("/") if part)

    def spelled(self, path: str) -> str:
        """See `Store`."""
        return path

    def identity(self, path: str) -> str:
        """See `Store`."""
        return self.absolute(path)

    def relative(self, path: str, directory: str) -> str:
        """See `Store`."""
        path = path.removeprefix(directory + "/")
        if "/" not in path or path.startswith(self.scheme):
            return path
        if not os.path.isabs(path) and os.pardir not in path.split("/"):
            return os.path.normpath(path)
        root = "/" + directory.partition("://")[2]
        found = os.path.relpath(os.path.join(root, path), root)
        return path if found.split("/")[0] == os.pardir else found

    def split(self, path: str) -> tuple[str, str]:
        """Returns the name of the bucket, and the key of the object in it."""
        name, _, key = self.absolute(path)[len(self.scheme) :].partition("/")
        return name, key

    def spec(self, directory: str) -> dict[str, Any]:
        """See `Store`."""
        name, key = self.split(directory)
        return {**self._server(name), "path": key and key + "/"}

    def _open(self, path: str) -> tuple[Any, str]:
        """Returns the store of a whole bucket, and the key of `path` in it."""
        name, key = self.split(path)
        return bucket.open_store(self._server(name), key, path), key

    def _keys(self, directory: str) -> list[str]:
        """Returns the names of all objects below a directory, relative to it, including placeholders of folders."""
        store, key = self._open(directory)
        return bucket.listed(store, key, directory)

    def exists(self, path: str) -> bool:
        """See `Store`."""
        return self.is_file(path) or self.is_directory(path)

    def is_file(self, path: str) -> bool:
        """See `Store`."""
        store, key = self._open(path)
        return bool(key) and bucket.wait(store.read(key, byte_range=slice(0, 0)), path).state == "value"

    def is_directory(self, path: str) -> bool:
        """See `Store`."""
        return bool(self._keys(path))

    def names(self, directory: str) -> list[str]:
        """See `Store`."""
        found = {key.partition("/")[0] for key in self._keys(directory)}
        if not found:
            raise FileNotFoundError(errno.ENOENT, "No such directory in the bucket, or no such bucket", directory)
        return list(found)

    def tree(self, directory: str) -> list[str]:
        """See `Store`."""
        return sorted(key for key in self._keys(directory) if not key.endswith("/"))

    def size(self, path: str) -> int | None:
        """See `Store`."""
        return None

    def modified(self, path: str) -> float | None:
        """See `Store`."""
        return None

    def read(self, path: str, limit: int | None = None) -> bytes:
        """See `Store`."""
        content, _ = self.read_versioned(path)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return content

    def read_versioned(self, path: str, limit: int | None = None) -> tuple[bytes | None, bytes]:
        """See `Store`. The version is the generation of the object."""
        store, key = self._open(path)
        result = bucket.wait(store.read(key), path)
        if result.state != "value":
            return None, ABSENT
        return bytes(result.value), bytes(result.stamp.generation)

    def ranges(self, path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store`. The parts are read concurrently."""
        store, key = self._open(path)
        asked = [bucket.begin_part(store, key, start, length) for start, length in parts]
        return [bucket.end_part(store, key, part, future, path) for part, future in asked]

    def write(self, path: str, content: bytes) -> None:
        """See `Store`. The server writes an object whole or not at all."""
        store, key = self._open(path)
        bucket.wait(store.write(key, content), path)

    def write_if(self, path: str, content: bytes, expected: bytes) -> bytes:
        """See `Store`."""
        store, key = self._open(path)
        stamp = bucket.wait(store.write(key, content, if_equal=expected), path)
        if not stamp.generation:
            raise ChangedError(errno.EAGAIN, "Another writer changed it at the same time", path)
        return bytes(stamp.generation)

    def require_conditions(self, scratch: str, contents: Sequence[bytes]) -> None:
        """See `Store`."""
        if self._keeps_conditions:
            return
        proven = json.dumps(self._server(self.split(scratch)[0]))
        if proven not in self._proven:
            conditions.require(*self._open(scratch), scratch, contents)
            self._proven.add(proven)

    def remove(self, path: str) -> None:
        """See `Store`."""
        self._remove_all([path])

    def remove_tree(self, directory: str, leaving: Collection[str] = ()) -> None:
        """See `Store`. The objects are removed concurrently."""
        root = self.absolute(directory)
        self._remove_all(f"{root}/{key}" for key in self._keys(directory) if key not in leaving)

    def prune(self, directory: str) -> None:
        """See `Store`."""

    def _remove_all(self, paths: Iterable[str]) -> None:
        pending = []
        for path in paths:
            store, key = self._open(path)
            pending.append((store.write(key, None), path))
        for future, path in pending:
            bucket.wait(future, path)

    def copy(self, source: str, target: str, leaving: Collection[str] = ()) -> None:
        """See `Store`."""
        names = [name for name in self.tree(source) if name not in leaving]
        for first in range(0, len(names), _WINDOW):
            group = names[first : first + _WINDOW]
            pending = []
            for name, content in zip(group, self._read_all(f"{source}/{name}" for name in group), strict=True):
                if content is not None:
                    store, key = self._open(f"{target}/{name}")
                    pending.append((store.write(key, content), name))
            for future, name in pending:
                bucket.wait(future, f"{target}/{name}")

    def _read_all(self, paths: Iterable[str]) -> list[bytes | None]:
        """Returns the contents of objects, read concurrently; None for each object that does not exist."""
        pending = []
        for path in paths:
            store, key = self._open(path)
            pending.append((store.read(key), path))
        results = [bucket.wait(future, path) for future, path in pending]
        return [bytes(result.value) if result.state == "value" else None for result in results]

    def make_directory(self, path: str) -> None:
        """See `Store`."""

    def sync_tree(self, directory: str) -> None:
        """See `Store`."""
