"""Compares the state file with the disk: which listed checkpoints exist, which others do, and when each was committed."""

import contextlib
import logging
import math
import os
from collections.abc import Collection

from jaxckpt import storage
from jaxckpt._lib import numbering
from jaxckpt.directory import foreign_runs, retention, state_file
from jaxckpt.directory.state_file import Records, UnreadableStateError
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import stores
from jaxckpt.storage.item import description

_logger = logging.getLogger("jaxckpt")


def missing(directory: str, records: Records) -> set[str]:
    """Returns the listed names for which there is no file or directory. Notes in the records which of them are TensorFlow's.

    A damaged checkpoint still exists, and is not returned: only the user may decide to go back to an older one.

    Args:
      directory: directory of the state file.
      records: the content of the state file. `tensorflow` is set.
    """
    listed: set[str] = set()
    # In a bucket, one listing replaces a request for each name.
    if not stores.is_local(directory):
        with contextlib.suppress(FileNotFoundError):
            listed.update(stores.names(directory))

    def there(name: str) -> bool:
        return name in listed or stores.exists(stores.join(directory, name))

    gone = {name for name in {*records.entries, *records.kept} if not there(name)}
    records.tensorflow = [name for name in records.entries if name in gone and there(foreign_runs.index_of(name))]
    return gone


def bound(directory: str, records: Records, gone: Collection[str], new: str | None = None) -> None:
    """Notes in the records which checkpoints later calls must not adopt (see `retention.bound`).

    Args:
      directory: directory of the state file.
      records: the records as they were read; changed in place.
      gone: the result of `missing`.
      new: a checkpoint to ignore, because it was just committed and is about to be registered.

    Raises:
      OSError: the directory cannot be read.
    """
    retention.bound(
        records,
        set(gone) - set(records.tensorflow),
        lambda: _written(directory),
        lambda: {prefix: [name for name in names if name != new] for prefix, names in _committed(directory).items()},
        lambda name: commit_time(os.path.join(directory, name)),
    )


def _written(directory: str) -> float:
    """Returns when the state file was written, in seconds since the epoch; inf if that is unknown, -inf if there is no file."""
    try:
        modified = stores.modified(os.path.join(directory, state_file.FILE))
        return math.inf if modified is None else modified
    except FileNotFoundError:
        return -math.inf


def rebuilt(directory: str, reason: Exception) -> Records:
    """Makes new records for a directory whose state file is unreadable: its numbered checkpoints, in the order of their commits.

    All of them are kept for ever, because it is unknown which of them a manager had preserved. A warning is logged.

    Args:
      directory: directory of the state file.
      reason: the error that the state file caused.
    """
    _logger.warning("%s. Rebuilding it from the checkpoints in %s.", reason, directory)
    names = [name for names in _committed(directory).values() for name in names]
    times = {name: commit_time(os.path.join(directory, name)) for name in names}
    names.sort(key=lambda name: (times[name], numbering.number_of(name)))
    version = reason.version if isinstance(reason, UnreadableStateError) else None
    return Records({name: times[name] for name in names}, set(names), version=version)


def _committed(directory: str) -> dict[str, list[str]]:
    """Returns the names of the committed checkpoints in a directory, by the part of the name before the number."""
    prefixes = {prefix for name in stores.names(directory) if (prefix := numbering.prefix_of(name)) is not None}
    return {
        prefix: [numbering.name_of(prefix, number) for number in storage.list_numbered(os.path.join(directory, prefix))]
        for prefix in prefixes
    }


def commit_time(path: str) -> float:
    """Returns when a checkpoint was committed (seconds since the epoch): the time that Orbax recorded, or else that of its directory."""
    with contextlib.suppress(OSError, CorruptCheckpointError):
        return description.commit_seconds(path)
    try:
        return stores.modified(path) or 0.0
    except OSError:
        return 0.0
