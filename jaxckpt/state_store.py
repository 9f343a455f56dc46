"""Reading and replacing the file `checkpoint` of a directory, or the object in a bucket."""

import os

from jaxckpt.state_text import Records, UnreadableStateError, from_text, to_text
from jaxckpt.storage import bounds, files

FILE = "checkpoint"


def read_state(directory: str) -> Records | None:
    """Reads a state file; None if there is none.

    Raises:
      UnreadableStateError: something else is in the file.
      OSError: with errno: it cannot be read, or `directory` is not one.
    """
    path = os.path.join(directory, FILE)
    content, version = _read_versioned(path)
    if content is None:
        return None
    try:
        records = from_text(content.decode("utf-8", "surrogateescape"))
    except UnreadableStateError as error:
        unreadable = UnreadableStateError(f"{path} is not a state file: {error}")
        unreadable.version = version
        raise unreadable from None
    records.version = version
    here = files.absolute(directory)
    records.entries = {_relative(name, here): timestamp for name, timestamp in records.entries.items()}
    records.kept = {_relative(name, here) for name in records.kept}
    return records


def _read_versioned(path: str) -> tuple[bytes | None, bytes | None]:
    """Returns the content of a file, None if there is none, and in a bucket its generation."""
    if files.is_bucket(path):
        return files.bucket.read_versioned(path)
    try:
        return files.read(path, bounds.STATE_FILE_BYTES), None
    except FileNotFoundError:
        return None, None


def _relative(name: str, directory: str) -> str:
    """Spells an absolute path inside `directory` relative to it, so that it stays right when the directory moves."""
    if files.is_bucket(directory):
        return name.removeprefix(directory + "/")
    if not os.path.isabs(name):
        return name
    relative = os.path.relpath(name, directory)
    return name if relative.split(os.sep)[0] == os.pardir else relative


def write_state(directory: str, records: Records) -> None:
    """Replaces a state file, durably and atomically; without any entry to write, it stays as it is.

    Raises:
      ChangedError: in a bucket: the file is not the one that the records were read from.
      OSError: with errno; the file is as it was.
    """
    from jaxckpt.storage import commit, temporary

    if records.latest is None:
        return
    path = os.path.join(directory, FILE)
    if files.is_bucket(path):
        files.bucket.write(path, to_text(records).encode("ascii"), expected=records.version or files.bucket.ABSENT)
        return
    folder = temporary.create(path)
    try:
        new = os.path.join(folder, FILE)
        try:
            with open(new, "x", encoding="ascii") as file:
                file.write(to_text(records))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or path
            raise
        os.replace(new, path)
    finally:
        temporary.remove(folder)
    commit.sync_directory(directory)
