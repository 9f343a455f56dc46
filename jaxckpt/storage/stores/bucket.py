"""The client of a storage server: requests through TensorStore, which brings credentials, retries and checksums of what is sent.

A wait is bounded by the deadline of the operation (`store.within`), and by `_WAIT_SECS`.
"""

import errno
import functools
import os
import re
from typing import Any

from jaxckpt.storage import faults
from jaxckpt.storage.stores.store import current_deadline

_WAIT_SECS = 120.0
# Half a minute of retries. TensorStore's own default is a quarter of an hour.
RETRIES = {"max_retries": 8, "initial_delay": "250ms", "max_delay": "8s"}
# What a TensorStore context needs for stores that are reached by requests.
CONTEXT = {"gcs_request_retries": RETRIES}
# How TensorStore says that a range reaches beyond the end; the second is what it makes of an empty object.
_BEYOND = re.compile("OUT_OF_RANGE|Unexpected Content-Range")
# Objects of a directory of checkpoints (the state file), and of a checkpoint (the marker, the note of who is at work).
_TELLTALES = ("checkpoint", "commit_success.txt", "_JAXCKPT_OWNER")
_MOST_KEY_BYTES = 1024


@functools.cache
def _context() -> Any:
    import tensorstore as ts

    return ts.Context(CONTEXT)


def open_store(spec: dict[str, Any], key: str, path: str) -> Any:
    """Returns TensorStore's key-value store of a whole bucket.

    Args:
      spec: of the store.
      key: that will be asked for.
      path: of the object, for errors.

    Raises:
      OSError: with errno; ENAMETOOLONG if no object can be called so.
    """
    import tensorstore as ts

    if len(key.encode()) > _MOST_KEY_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    return wait(ts.KvStore.open(spec, context=_context()), path)


def wait(future: Any, path: str) -> Any:
    """Returns the result of a request.

    Args:
      future: TensorStore's.
      path: of the object, for errors.

    Raises:
      OSError: with errno; TimeoutError after the deadline.
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
      key: of the directory; empty for the whole bucket.
      path: of the directory, for errors.

    Raises:
      OSError: with errno, also where listing is refused.
    """
    start = key + "/" if key else ""
    found = _list(store, start, path)
    # TensorStore takes a refused listing for an empty one. An account that may not list is refused also when it asks for what
    # is not there; or, where the store answers that with "not found", what can be read gives the lie to the empty listing.
    if not found and (seen := _readable(store, start, path)) is not None:
        # It may have been written in between.
        found = _list(store, start, path)
        if not found:
            raise OSError(
                errno.EACCES,
                f"The storage server refuses to list this directory, although {seen} in it can be read; the account needs "
                "the permission storage.objects.list (role Storage Object User)",
                path,
            )
    return [os.fsdecode(name) for name in found if name]


def _list(store: Any, start: str, path: str) -> list[bytes]:
    import tensorstore as ts

    span = ts.KvStore.KeyRange(start, start[:-1] + "0") if start else ts.KvStore.KeyRange()
    found: list[bytes] = wait(store.list(span, strip_prefix_length=len(start.encode())), path)
    return found


def _readable(store: Any, start: str, path: str) -> str | None:
    """Returns the name of an object that can be read, of those that directories of checkpoints and checkpoints have."""
    pending = [(name, store.read(start + name, byte_range=slice(0, 0))) for name in ("_no_such_object", *_TELLTALES)]
    found = [name for name, future in pending if wait(future, path).state == "value"]
    return found[0] if found else None


def begin_part(store: Any, key: str, start: int, length: int) -> tuple[slice, Any]:
    """Asks for a part of an object.

    Args:
      store: the bucket.
      key: of the object.
      start: first byte; a negative one counts from the end, and the part then reaches to the end.
      length: in bytes.

    Returns:
      What `end_part` takes.
    """
    part = slice(start, start + length if start >= 0 else None)
    return part, store.read(key, byte_range=part)


def end_part(store: Any, key: str, part: slice, future: Any, path: str) -> bytes:
    """Returns a part of an object, without what is beyond its end.

    Args:
      store, key: as of `begin_part`.
      part, future: what `begin_part` returned.
      path: of the object, for errors.

    Raises:
      OSError: with errno.
    """
    try:
        result = wait(future, path)
    except OSError as error:
        if _BEYOND.search(str(error.__cause__)) is None:
            raise
        # The object ends before the part does, so that what there is of it is small.
        if part.stop is None and (part.start is None or part.start >= 0):
            return b""
        wider = slice(part.start, None) if part.stop is not None else slice(None)
        return end_part(store, key, wider, store.read(key, byte_range=wider), path)
    if result.state != "value":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return bytes(result.value)
