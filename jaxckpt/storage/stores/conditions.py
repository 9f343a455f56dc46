"""Finds out whether a storage server checks the conditions of writes, on which the notes of saves and the state file rely.

Some servers with S3's interface ignore them: then two creations of one object both succeed, and the second overwrites the first.
"""

import errno
import logging
from collections.abc import Sequence
from typing import Any

from jaxckpt._lib.deadline import Deadline
from jaxckpt.storage.stores import bucket
from jaxckpt.storage.stores.store import ABSENT, within

_CLEAN_SECS = 10.0
_log = logging.getLogger("jaxckpt")


def require(store: Any, key: str, path: str, contents: Sequence[bytes]) -> None:
    """Tries whether conditions are checked, with a scratch object that is removed again.

    Args:
      store: TensorStore's key-value store of the bucket, which sends a condition with the request that writes, and only there.
      key: key of the scratch object, which does not exist.
      path: address of the scratch object, for errors.
      contents: three different contents or more, written at the same time.

    Raises:
      OSError: with errno; ENOTSUP if the server ignores conditions, otherwise the error of a request.
    """
    try:
        _try(store, key, path, contents)
    except BaseException:
        with within(Deadline(_CLEAN_SECS, f"Removing {path}")):
            try:
                bucket.wait(store.write(key, None), path)
            except OSError as error:
                # The error of the trial says more. A sweep removes the object later.
                _log.warning("Could not remove %s: %s", path, error)
        raise
    bucket.wait(store.write(key, None), path)


def _try(store: Any, key: str, path: str, contents: Sequence[bytes]) -> None:
    # At the same time, because a server may look at the object and write it in two steps.
    pending = [store.write(key, content, if_equal=ABSENT) for content in contents]
    versions, errors = [], []
    for future in pending:
        try:
            versions.append(bytes(bucket.wait(future, path).generation))
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    winners = [version for version in versions if version]
    if len(winners) > 1:
        raise _refusal(path, f"{len(winners)} of {len(contents)} creations of one object at the same time succeeded")
    version = winners[0] if winners else _version(store, key, path, contents)
    if _write(store, key, contents[0], ABSENT, path):
        raise _refusal(path, "an object that exists was created again (If-None-Match was ignored)")
    there = bytes(bucket.wait(store.read(key), path).value)
    if not _write(store, key, next(content for content in contents if content != there), version, path):
        raise _refusal(path, "an object could not be overwritten although it had the expected ETag (If-Match)")
    if _write(store, key, contents[0], version, path):
        raise _refusal(path, "an object without the expected ETag was overwritten (If-Match was ignored)")


def _write(store: Any, key: str, content: bytes, expected: bytes, path: str) -> bool:
    return bool(bucket.wait(store.write(key, content, if_equal=expected), path).generation)


def _version(store: Any, key: str, path: str, contents: Sequence[bytes]) -> bytes:
    """Returns the version of the object after all creations were refused."""
    found = bucket.wait(store.read(key), path)
    if found.state == "value" and bytes(found.value) in contents:
        # One succeeded, but its answer got lost, and its retry found the object.
        return bytes(found.stamp.generation)
    # If the bucket does not exist, TensorStore takes this for a condition that is not met. Without one, the request fails as it should.
    bucket.wait(store.write(key, contents[0]), path)
    raise _refusal(path, "an object that does not exist could not be created (If-None-Match)")


def _refusal(path: str, why: str) -> OSError:
    return OSError(
        errno.ENOTSUP,
        f"This storage server does not check the conditions of writes: {why}. Two processes could overwrite each other's checkpoints, "
        "so nothing was saved. Use a server with conditional writes (Amazon S3 has them, and current versions of R2, MinIO, Ceph and "
        "SeaweedFS do), or a file system",
        path,
    )
