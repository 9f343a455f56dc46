"""Registers a committed checkpoint: makes it the latest of its directory, in the state file."""

import time

from jaxckpt.directory import foreign_runs, on_disk, state_file
from jaxckpt.directory.lock import update
from jaxckpt.directory.state_file import Records, UnreadableStateError
from jaxckpt.storage import CheckpointPath, stores


def register(path: CheckpointPath) -> None:
    """Makes a committed checkpoint the latest of its directory. Other checkpoints that still exist stay listed.

    Args:
      path: the checkpoint.

    Raises:
      OSError: the state file cannot be changed; has errno.
    """
    directory, name = path.directory, path.name

    def change() -> None:
        try:
            records = state_file.read(directory) or Records()
        except UnreadableStateError as error:
            records = on_disk.rebuilt(directory, error)
        gone = on_disk.missing(directory, records)
        on_disk.bound(directory, records, gone, new=name)
        records.forget(gone)
        records.add(name, time.time())
        state_file.write(directory, records)

    update(directory, change)


def refuse_tensorflow(directory: str) -> None:
    """Refuses a directory of TensorFlow's checkpoints, because a save would have to change TensorFlow's state file there.

    Args:
      directory: the directory of a save.

    Raises:
      CheckpointError: the directory holds TensorFlow's checkpoints.
    """
    try:
        if state_file.is_own(directory):
            # A state file that jaxckpt wrote never names a TensorFlow checkpoint, so its records need not be read.
            return
        records = state_file.read(directory)
        names = stores.names(directory) if records is None else []
    except (OSError, UnreadableStateError):
        # The registration reads the state file too, and reports the error.
        return
    found = foreign_runs.tensorflow_prefixes(names)
    if records is not None and records.latest is not None:
        latest = stores.join(directory, records.latest)
        if not stores.exists(latest) and foreign_runs.is_tensorflow(latest):
            found = [records.latest]
    if found:
        raise foreign_runs.tensorflow_error(directory, found)
