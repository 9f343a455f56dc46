"""Reading and replacing the file `checkpoint` of a directory, or the object in a bucket."""

import errno
import math
import os
import time

from jaxckpt._lib import bounds
from jaxckpt.directory import foreign_runs
from jaxckpt.directory.state_file.records import Records, UnreadableStateError
from jaxckpt.directory.state_file.text import from_text, is_sealed, sealed, to_text
from jaxckpt.storage import CheckpointPath, stores
from jaxckpt.storage.commit.committers import committer_of

FILE = "checkpoint"


def read(directory: str, name: str = FILE) -> Records | None:
    """Reads the state file `name` of a directory; None if there is none.

    Raises:
      UnreadableStateError: something else is in the file.
      OSError: with errno: it cannot be read, or `directory` is not one.
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
        # The last one is the latest, also where it was spelled in two ways.
        records.entries[same] = max(timestamp, records.entries.pop(same, timestamp))
    records.kept = {stores.relative(name, here) for name in records.kept}
    return records


def is_own(directory: str) -> bool:
    """Whether there is a state file as jaxckpt wrote it. Raises OSError: it cannot be read."""
    content, _ = stores.read_versioned(os.path.join(directory, FILE), bounds.STATE_FILE_BYTES)
    return content is not None and is_sealed(content.decode("utf-8", "surrogateescape"))


def check(directory: str) -> None:
    """Refuses a directory in which no state file can be written, because a directory has its name.

    Raises:
      IsADirectoryError: with errno.
    """
    path = os.path.join(directory, FILE)
    if stores.is_local(path) and os.path.isdir(path):
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
    check(directory)
    committer_of(directory).replace_file(path, content, records.version or stores.ABSENT)
