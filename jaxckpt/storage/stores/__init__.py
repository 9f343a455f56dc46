"""The few file operations that checkpoints need, for local directories and for buckets (``gs://``, ``s3://``).

`store_of` is the only place that chooses a store by the path. Each function below calls the method of the same name on the store of its
path; `Store` documents the methods.
"""

import os
from collections.abc import Collection, Sequence

from jaxckpt.storage.stores import networked, servers
from jaxckpt.storage.stores.bucket_store import BucketStore
from jaxckpt.storage.stores.local_store import LocalStore
from jaxckpt.storage.stores.store import ABSENT as ABSENT
from jaxckpt.storage.stores.store import ChangedError as ChangedError
from jaxckpt.storage.stores.store import Store as Store
from jaxckpt.storage.stores.store import within as within

_LOCAL = LocalStore()
_BUCKETS = (
    BucketStore("gs://", servers.gcs),
    BucketStore("s3://", servers.s3, largest_file=servers.S3_LARGEST, keeps_conditions=False),
)


def store_of(path: str) -> Store:
    """Returns the store that keeps the files at a path.

    Args:
      path: address of an object or directory in a bucket, or a local path.
    """
    for store in _BUCKETS:
        if path.startswith(store.scheme):
            return store
    return _LOCAL


def is_local(path: str) -> bool:
    """Whether a path is a local one, not an address in a bucket; see `Store.is_local`."""
    return store_of(path).is_local


def is_networked(path: str) -> bool:
    """Whether files at a path are reached over a network: those in a bucket, and on a disk of another machine."""
    return not is_local(path) or networked.is_networked(path)


def absolute(path: str) -> str:
    """See `Store.absolute`. This is the only place where ``..`` is resolved."""
    return store_of(path).absolute(path)


def spelled(path: str) -> str:
    """See `Store.spelled`."""
    return store_of(path).spelled(path)


def identity(path: str) -> str:
    """See `Store.identity`."""
    return store_of(path).identity(path)


def relative(path: str, directory: str) -> str:
    """See `Store.relative`. The store is the one of `directory`."""
    return store_of(directory).relative(path, directory)


def join(directory: str, name: str) -> str:
    """Returns the path of `name` in `directory`.

    Args:
      directory: local directory, or address of one in a bucket.
      name: relative to `directory`. An absolute one is returned as it is.
    """
    return os.path.join(directory, name) if is_local(name) else name


def exists(path: str) -> bool:
    """See `Store.exists`."""
    return store_of(path).exists(path)


def is_file(path: str) -> bool:
    """See `Store.is_file`."""
    return store_of(path).is_file(path)


def is_directory(path: str) -> bool:
    """See `Store.is_directory`."""
    return store_of(path).is_directory(path)


def names(directory: str) -> list[str]:
    """See `Store.names`."""
    return store_of(directory).names(directory)


def tree(directory: str) -> list[str]:
    """See `Store.tree`."""
    return store_of(directory).tree(directory)


def size(path: str) -> int | None:
    """See `Store.size`."""
    return store_of(path).size(path)


def modified(path: str) -> float | None:
    """See `Store.modified`."""
    return store_of(path).modified(path)


def read(path: str, limit: int | None = None) -> bytes:
    """See `Store.read`."""
    return store_of(path).read(path, limit)


def read_versioned(path: str, limit: int | None = None) -> tuple[bytes | None, bytes]:
    """See `Store.read_versioned`."""
    return store_of(path).read_versioned(path, limit)


def ranges(path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """See `Store.ranges`."""
    return store_of(path).ranges(path, parts)


def write(path: str, content: bytes) -> None:
    """See `Store.write`."""
    store_of(path).write(path, content)


def write_if(path: str, content: bytes, expected: bytes) -> bytes:
    """See `Store.write_if`."""
    return store_of(path).write_if(path, content, expected)


def require_conditions(scratch: str, contents: Sequence[bytes]) -> None:
    """See `Store.require_conditions`."""
    store_of(scratch).require_conditions(scratch, contents)


def remove(path: str) -> None:
    """See `Store.remove`."""
    store_of(path).remove(path)


def remove_tree(directory: str, leaving: Collection[str] = ()) -> None:
    """See `Store.remove_tree`."""
    store_of(directory).remove_tree(directory, leaving)


def prune(directory: str) -> None:
    """See `Store.prune`."""
    store_of(directory).prune(directory)


def copy(source: str, target: str, leaving: Collection[str] = ()) -> None:
    """See `Store.copy`. Both directories are in the same store."""
    store_of(source).copy(source, target, leaving)


def make_directory(path: str) -> None:
    """See `Store.make_directory`."""
    store_of(path).make_directory(path)


def sync_tree(directory: str) -> None:
    """See `Store.sync_tree`."""
    store_of(directory).sync_tree(directory)
