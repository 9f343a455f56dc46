"""The client of a storage server. TensorStore makes the requests: it handles credentials, retries, and checksums of transferred data.

The deadline of the operation (`store.within`) bounds every wait; without a deadline, `_WAIT_SECS` does.
"""

import errno
import functools
import json
import os
import re
from typing import Any

from jaxckpt.storage import faults
from jaxckpt.storage.stores.servers import CONTEXT
from jaxckpt.storage.stores.store import current_deadline

_WAIT_SECS = 120.0
# TensorStore's errors for a range beyond the end of an object. It reports the second one for an empty object.
_BEYOND = re.compile("OUT_OF_RANGE|Unexpected Content-Range")
# Objects that a directory of checkpoints has (the state file) or that a checkpoint has (the marker, the lease that names its owner).
_TELLTALES = ("checkpoint", "commit_success.txt", "_JAXCKPT_OWNER")
_MOST_KEY_BYTES = 1024


@functools.cache
def _opened() -> tuple[Any, dict[str, Any]]:
    """Returns the TensorStore context of this process, and the buckets that it has opened in it, by their specs as text."""
    import tensorstore as ts

    return ts.Context(CONTEXT), {}


def open_store(spec: dict[str, Any], key: str, path: str) -> Any:
    """Returns TensorStore's key-value store of a whole bucket.

    Args:
      spec: TensorStore spec of the bucket.
      key: the key that the caller will read or write.
      path: address of that object, for errors.

    Raises:
      OSError: with errno; ENAMETOOLONG if the key is too long for an object.
    """
    import tensorstore as ts

    if len(key.encode()) > _MOST_KEY_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    context, opened = _opened()
    text = json.dumps(spec)
    if text not in opened:
        opened[text] = wait(ts.KvStore.open(spec, context=context), path)
    return opened[text]


def wait(future: Any, path: str) -> Any:
    """Returns the result of a request.

    Args:
      future: TensorStore's future of the request.
      path: address of the object, for errors.

    Raises:
      TimeoutError: after the deadline.
      OSError: with errno; the request failed.
    """
    deadline = current_deadline()
    try:
        return future.result(timeout=_WAIT_SECS) if deadline is None else deadline.wait(future)
    except TimeoutError as error:
        what = str(error) if deadline is not None else f"The storage server has not answered for {_WAIT_SECS:g} s"
        raise TimeoutError(errno.ETIMEDOUT, what, path) from error
    except Exception as error:
        raise faults.os_error(error, path) or OSError(errno.EIO, str(error), path) from error


def listed(store: Any, key: str, path: str) -> list[str]:
    """Returns the names of all objects below a directory, relative to it.

    Args:
      store: the bucket.
      key: key of the directory; empty for the whole bucket.
      path: address of the directory, for errors.

    Raises:
      OSError: with errno; EACCES if the account has no permission to list.
    """
    start = key + "/" if key else ""
    found = _list(store, start, path)
    # If the server refuses to list, TensorStore may return an empty list. So an empty list is checked: without the permission to list,
    # reading an absent object fails as refused; and if it does not, an object that can be read proves that the list is wrong.
    if not found and (seen := _readable(store, start, path)) is not None:
        # Another process may have written the object after the first listing.
        found = _list(store, start, path)
        if not found:
            permission = (
                "s3:ListBucket" if path.startswith("s3://") else "storage.objects.list (role Storage Object User)"
            )
            raise OSError(
                errno.EACCES,
                f"The storage server refuses to list this directory, although {seen} in it can be read; the account needs "
                f"the permission {permission}",
                path,
            )
    return [os.fsdecode(name) for name in found if name]


def _list(store: Any, start: str, path: str) -> list[bytes]:
    import tensorstore as ts

    span = ts.KvStore.KeyRange(start, start[:-1] + "0") if start else ts.KvStore.KeyRange()
    try:
        found: list[bytes] = wait(store.list(span, strip_prefix_length=len(start.encode())), path)
    except FileNotFoundError:
        # The bucket does not exist.
        return []
    return found


def _readable(store: Any, start: str, path: str) -> str | None:
    """Returns the name of a readable object among `_TELLTALES`; None if there is none. Raises OSError if reading is refused."""
    pending = [(name, store.read(start + name, byte_range=slice(0, 0))) for name in ("_no_such_object", *_TELLTALES)]
    found = [name for name, future in pending if wait(future, path).state == "value"]
    return found[0] if found else None


def begin_part(store: Any, key: str, start: int, length: int) -> tuple[slice, Any]:
    """Starts to read a part of an object.

    Args:
      store: the bucket.
      key: key of the object.
      start: offset of the first byte. A negative one counts from the end, and the part then reaches to the end.
      length: length of the part in bytes.

    Returns:
      The arguments `part` and `future` of `end_part`.
    """
    part = slice(start, start + length if start >= 0 else None)
    return part, store.read(key, byte_range=part)


def end_part(store: Any, key: str, part: slice, future: Any, path: str) -> bytes:
    """Waits for a part of an object and returns it. The part is shorter if the object ends before it.

    Args:
      store: the bucket.
      key: key of the object.
      part: first value that `begin_part` returned.
      future: second value that `begin_part` returned.
      path: address of the object, for errors.

    Raises:
      OSError: with errno.
    """
    try:
        result = wait(future, path)
    except OSError as error:
        if _BEYOND.search(str(error.__cause__)) is None:
            raise
        # The object ends before the part does. So the rest of the object is smaller than the part and can be read whole.
        if part.stop is None and (part.start is None or part.start >= 0):
            return b""
        wider = slice(part.start, None) if part.stop is not None else slice(None)
        return end_part(store, key, wider, store.read(key, byte_range=wider), path)
    if result.state != "value":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return bytes(result.value)
