"""Reads and replaces the state file `checkpoint` of a directory, or the object of this name in a bucket."""

import errno
import math
import os
import time

from jaxckpt._lib import bounds
from jaxckpt.directory import foreign_runs
from jaxckpt.directory.state_file.records import Records, UnreadableStateError
from jaxckpt.directory.state_file.text import from_text, is_sealed, sealed, to_text
from jaxckpt.storage import CheckpointPath, stores
from jaxckpt.storage.commit.choice import committer_of

FILE = "checkpoint"


def read(directory: str, name: str = FILE) -> Records | None:
    """Reads a state file; returns None if it does not exist.

    Args:
      directory: directory of the file.
      name: name of the file.

    Raises:
      UnreadableStateError: the file is not a state file.
      OSError: the file cannot be read, or `directory` is not a directory; has errno.
    """
    path = os.path.join(directory, name)
    content, version = stores.read_versioned(path, bounds.STATE_FILE_BYTES)
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
        same = stores.relative(entry, here)
        # If a path is listed in two spellings, it keeps the later position, because the last entry is the latest checkpoint.
        records.entries[same] = max(timestamp, records.entries.pop(same, timestamp))
    records.kept = {stores.relative(name, here) for name in records.kept}
    return records


def is_own(directory: str) -> bool:
    """Whether the directory has a state file exactly as jaxckpt wrote it. Raises OSError if the file cannot be read."""
    content, _ = stores.read_versioned(os.path.join(directory, FILE), bounds.STATE_FILE_BYTES)
    return content is not None and is_sealed(content.decode("utf-8", "surrogateescape"))


def check(directory: str) -> None:
    """Refuses a directory where the state file cannot be written because a directory has its name.

    Args:
      directory: the directory of a save.

    Raises:
      IsADirectoryError: a directory has the name of the state file; has errno.
    """
    path = os.path.join(directory, FILE)
    if stores.is_local(path) and os.path.isdir(path):
        raise IsADirectoryError(
            errno.EISDIR,
            "A directory has the name of the state file of the checkpoints; rename it, or save elsewhere",
            path,
        )


def write(directory: str, records: Records) -> None:
    """Replaces a state file, durably and atomically. If the records have no entries, the file stays as it is.

    Args:
      directory: directory of the file, as an absolute path.
      records: the new content.

    Raises:
      CheckpointError: the current file names TensorFlow's checkpoints.
      ChangedError: in a bucket, the file was replaced after the records were read from it.
      OSError: the file cannot be replaced, and stays as it was; has errno.
    """
    if records.latest is None:
        return
    if records.tensorflow:
        raise foreign_runs.tensorflow_error(directory, records.tensorflow)
    path = CheckpointPath(directory, FILE)
    # An infinite border (the time is unknown) becomes the current time: all checkpoints that exist now were committed before it.
    records.borders = {prefix: time.time() if at == math.inf else at for prefix, at in records.borders.items()}
    content = sealed(to_text(records)).encode("ascii")
    check(directory)
    committer_of(directory).replace_file(path, content, records.version or stores.ABSENT)
