"""Reading and replacing the file `checkpoint` of a directory, or the object in a bucket."""

import contextlib
import errno
import math
import os
import time

from jaxckpt._lib import bounds
from jaxckpt.directory import foreign_runs
from jaxckpt.directory.state_file.records import Records, UnreadableStateError
from jaxckpt.directory.state_file.text import from_text, is_sealed, sealed, to_text
from jaxckpt.storage import CheckpointPath, stores
from jaxckpt.storage.commit import by_rename, temporary

FILE = "checkpoint"


def read(directory: str, name: str = FILE) -> Records | None:
    """Reads the state file `name` of a directory; None if there is none.

    Raises:
      UnreadableStateError: something else is in the file.
      OSError: with errno: it cannot be read, or `directory` is not one.
    """
    path = os.path.join(directory, name)
    content, version = _read_versioned(path)
    if content is None:
        return None
    text = content.decode("utf-8", "surrogateescape")
    try:
        records = from_text(text)
    except UnreadableStateError as error:
        unreadable = UnreadableStateError(f"{path} is not a state file: {error}")
        unreadable.version = version
        raise unreadable from None
    records.version = version
    here = stores.absolute(directory)
    listed, records.entries = records.entries, {}
    for entry, timestamp in listed.items():
        same = _relative(entry, here)
        # The last one is the latest, also where it was spelled in two ways.
        records.entries[same] = max(timestamp, records.entries.pop(same, timestamp))
    records.kept = {_relative(name, here) for name in records.kept}
    return records


def is_own(directory: str) -> bool:
    """Whether there is a state file as jaxckpt wrote it. Raises OSError: it cannot be read."""
    content, _ = _read_versioned(os.path.join(directory, FILE))
    return content is not None and is_sealed(content.decode("utf-8", "surrogateescape"))


def _read_versioned(path: str) -> tuple[bytes | None, bytes | None]:
    """Returns the content of a file, None if there is none, and in a bucket its generation."""
    if stores.is_bucket(path):
        return stores.bucket.read_versioned(path)
    try:
        return stores.read(path, bounds.STATE_FILE_BYTES), None
    except FileNotFoundError:
        return None, None


def _relative(name: str, directory: str) -> str:
    """Spells a path inside `directory` relative to it and in one way, so that it stays right when the directory moves."""
    bucket = stores.is_bucket(directory)
    if bucket:
        name = name.removeprefix(directory + "/")
    if "/" not in name or (bucket and stores.is_bucket(name)):
        return name
    if not os.path.isabs(name) and os.pardir not in name.split("/"):
        return os.path.normpath(name)
    if bucket:
        root = "/" + directory.partition("://")[2]
        relative = os.path.relpath(os.path.join(root, name), root)
    else:
        path = os.path.join(directory, name).rstrip("/") or "/"
        relative = os.path.relpath(stores.identity(path), os.path.realpath(directory))
    return name if relative.split("/")[0] == os.pardir else relative


def check(directory: str) -> None:
    """Refuses a directory in which no state file can be written, because a directory has its name.

    Raises:
      IsADirectoryError: with errno.
    """
    path = os.path.join(directory, FILE)
    if not stores.is_bucket(path) and os.path.isdir(path):
        raise IsADirectoryError(
            errno.EISDIR,
            "A directory is where the state file of the checkpoints has to be; rename it, or save elsewhere",
            path,
        )


def write(directory: str, records: Records) -> None:
    """Replaces a state file, durably and atomically; without any entry to write, it stays as it is.

    Args:
      directory: absolute path.
      records: what the file shall say.

    Raises:
      CheckpointError: it names TensorFlow's checkpoints.
      ChangedError: in a bucket: the file is not the one that the records were read from.
      OSError: with errno; the file is as it was.
    """
    if records.latest is None:
        return
    if records.tensorflow:
        raise foreign_runs.tensorflow_error(directory, records.tensorflow)
    path = CheckpointPath(directory, FILE)
    # All checkpoints that exist now were committed before now.
    records.borders = {prefix: time.time() if at == math.inf else at for prefix, at in records.borders.items()}
    content = sealed(to_text(records)).encode("ascii")
    if path.in_bucket:
        stores.bucket.write(str(path), content, expected=records.version or stores.bucket.ABSENT)
        return
    check(directory)
    folder = temporary.TemporaryDirectory(path)
    try:
        try:
            with open(folder.new, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or str(path)
            raise
        os.replace(folder.new, str(path))
    finally:
        # It is empty, or will be swept: what has been written is written.
        with contextlib.suppress(OSError):
            folder.remove()
    by_rename.sync_directory(directory)
