"""Objects of a bucket, as the files of directories that exist by being part of names.

Every call goes through TensorStore's own client, which brings credentials, retries and checksums of what is sent. A wait is bounded by
the deadline of the operation (`within`), and by `_WAIT_SECS`.
"""

import contextlib
import contextvars
import errno
import functools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from jaxckpt._lib.deadline import Deadline
from jaxckpt.storage import faults

SCHEME = "gs://"
# What TensorStore calls the generation of an object that does not exist.
ABSENT = b"\x02"
_WAIT_SECS = 120.0
# Half a minute of retries. TensorStore's own default is a quarter of an hour.
RETRIES = {"max_retries": 8, "initial_delay": "250ms", "max_delay": "8s"}
# How TensorStore says that a range reaches beyond the end; the second is what it makes of an empty object.
_BEYOND = re.compile("OUT_OF_RANGE|Unexpected Content-Range")
# Objects of a directory of checkpoints (the state file), and of a checkpoint (the marker, the note of who is at work).
_TELLTALES = ("checkpoint", "commit_success.txt", "_JAXCKPT_OWNER")
_deadline: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("deadline", default=None)


class ChangedError(OSError):
    """An object is not in the generation that a conditional write expected: somebody else changed it."""


@contextlib.contextmanager
def within(deadline: Deadline) -> Iterator[None]:
    """Bounds every wait of the block by `deadline`."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def normal(path: str) -> str:
    """Returns a path without repeated slashes and without one at its end."""
    return SCHEME + "/".join(part for part in path[len(SCHEME) :].split("/") if part)


def split(path: str) -> tuple[str, str]:
    """Returns the bucket, and the name of the object in it."""
    name, _, key = normal(path)[len(SCHEME) :].partition("/")
    return name, key


@functools.cache
def _context() -> Any:
    import tensorstore as ts

    return ts.Context({"gcs_request_retries": RETRIES})


def _open(path: str) -> tuple[Any, str]:
    """Returns the store of a whole bucket, and the key of `path` in it."""
    import tensorstore as ts

    bucket, key = split(path)
    if len(key.encode()) > 1024:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    store = _wait(ts.KvStore.open({"driver": "gcs", "bucket": bucket}, context=_context()), path)
    return store, key


def _wait(future: Any, path: str) -> Any:
    deadline = _deadline.get()
    try:
        return future.result(timeout=_WAIT_SECS) if deadline is None else deadline.wait(future)
    except TimeoutError as error:
        what = str(error) if deadline is not None else f"The storage server has not answered for {_WAIT_SECS:g} s"
        raise TimeoutError(errno.ETIMEDOUT, what, path) from error
    except Exception as error:
        raise faults.os_error(error, path) or OSError(errno.EIO, str(error), path) from error


def _keys(path: str) -> list[str]:
    """Returns the names of all objects below the directory `path`, relative to it. Raises OSError, also where listing is refused."""
    store, key = _open(path)
    start = key + "/" if key else ""
    found = _listed(store, start, path)
    # TensorStore takes a refused listing for an empty one. An account that may not list is refused also when it asks for what
    # is not there; or, where the store answers that with "not found", what can be read gives the lie to the empty listing.
    if not found and (seen := _readable(store, start, path)) is not None:
        found = _listed(store, start, path)  # It may have been written in between.
        if not found:
            raise OSError(
                errno.EACCES,
                f"The storage server refuses to list this directory, although {seen} in it can be read; the account needs "
                "the permission storage.objects.list (role Storage Object User)",
                path,
            )
    return [os.fsdecode(name) for name in found if name]


def _listed(store: Any, start: str, path: str) -> list[bytes]:
    import tensorstore as ts

    span = ts.KvStore.KeyRange(start, start[:-1] + "0") if start else ts.KvStore.KeyRange()
    found: list[bytes] = _wait(store.list(span, strip_prefix_length=len(start.encode())), path)
    return found


def _readable(store: Any, start: str, path: str) -> str | None:
    """Returns the name of an object that can be read, of those that directories of checkpoints and checkpoints have."""
    pending = [(name, store.read(start + name, byte_range=slice(0, 0))) for name in ("_no_such_object", *_TELLTALES)]
    found = [name for name, future in pending if _wait(future, path).state == "value"]
    return found[0] if found else None


def is_object(path: str) -> bool:
    """Whether there is an object of exactly this name."""
    store, key = _open(path)
    return bool(key) and _wait(store.read(key, byte_range=slice(0, 0)), path).state == "value"


def is_directory(path: str) -> bool:
    """Whether there are objects below `path`."""
    return bool(_keys(path))


def exists(path: str) -> bool:
    """Whether there is an object at or below `path`."""
    return is_object(path) or is_directory(path)


def names(directory: str) -> list[str]:
    """Returns the names in a directory."""
    found = {key.partition("/")[0] for key in _keys(directory)}
    if not found:
        raise FileNotFoundError(errno.ENOENT, "No such directory in the bucket, or no such bucket", directory)
    return list(found)


def tree(directory: str) -> list[str]:
    """Returns the relative names of all objects below a directory, sorted."""
    return sorted(key for key in _keys(directory) if not key.endswith("/"))


def read(path: str) -> bytes:
    """Returns the content of an object."""
    content, _ = read_versioned(path)
    if content is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return content


def read_versioned(path: str) -> tuple[bytes | None, bytes]:
    """Returns the content of an object, None if there is none, and its generation."""
    store, key = _open(path)
    result = _wait(store.read(key), path)
    if result.state != "value":
        return None, ABSENT
    return bytes(result.value), bytes(result.stamp.generation)


def read_many(paths: Sequence[str]) -> list[bytes | None]:
    """Returns the contents of objects, all asked for at once; None for those that do not exist."""
    pending = []
    for path in paths:
        store, key = _open(path)
        pending.append(store.read(key))
    results = [_wait(future, path) for future, path in zip(pending, paths, strict=True)]
    return [bytes(result.value) if result.state == "value" else None for result in results]


def write(path: str, content: bytes, expected: bytes | None = None) -> bytes:
    """Writes an object, whole or not at all.

    Args:
      path: of the object.
      content: of the object.
      expected: the generation that it must have now; `ABSENT` if it must not exist; None if that does not matter.

    Returns:
      The new generation.

    Raises:
      ChangedError: it has another generation.
      OSError: with errno.
    """
    store, key = _open(path)
    stamp = _wait(store.write(key, content, if_equal=expected), path)
    if not stamp.generation:
        raise ChangedError(errno.EAGAIN, "Somebody else has changed it at the same time", path)
    return bytes(stamp.generation)


def remove(path: str) -> None:
    """Removes an object; one that does not exist is no error."""
    remove_all([path])


def remove_all(paths: Iterable[str]) -> None:
    """Removes objects, all at once."""
    pending = []
    for path in paths:
        store, key = _open(path)
        pending.append((store.write(key, None), path))
    for future, path in pending:
        _wait(future, path)


def children(directory: str) -> list[str]:
    """Returns the paths of all objects below a directory, placeholders of folders included."""
    return [f"{normal(directory)}/{key}" for key in _keys(directory)]


def copy(source: str, target: str, leaving: Collection[str] = (), window: int = 4) -> None:
    """Copies objects below one directory to another; few are in memory at a time.

    Args:
      source: directory.
      target: directory.
      leaving: relative names of objects that are not copied.
      window: how many objects are held at a time.
    """
    listed = [name for name in tree(source) if name not in leaving]
    for first in range(0, len(listed), window):
        group = listed[first : first + window]
        contents = read_many([f"{source}/{name}" for name in group])
        pending = []
        for name, content in zip(group, contents, strict=True):
            if content is not None:
                store, key = _open(f"{target}/{name}")
                pending.append((store.write(key, content), name))
        for future, name in pending:
            _wait(future, f"{target}/{name}")


def ranges(path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Returns parts of an object."""
    store, key = _open(path)
    asked = [slice(start, start + length if start >= 0 else None) for start, length in parts]
    pending = [store.read(key, byte_range=part) for part in asked]
    return [_part(store, key, part, future, path) for part, future in zip(asked, pending, strict=True)]


def _part(store: Any, key: str, part: slice, future: Any, path: str) -> bytes:
    try:
        result = _wait(future, path)
    except OSError as error:
        if _BEYOND.search(str(error.__cause__)) is None:
            raise
        # The object ends before the part does, so that what there is of it is small.
        if part.stop is None and (part.start is None or part.start >= 0):
            return b""
        wider = slice(part.start, None) if part.stop is not None else slice(None)
        return _part(store, key, wider, store.read(key, byte_range=wider), path)
    if result.state != "value":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return bytes(result.value)
