"""Chooses and reserves the number or path of a save, so that two saves of this process never write to the same path."""

import os
import threading

from jaxckpt._lib import numbering
from jaxckpt.directory import foreign_runs
from jaxckpt.storage import stores
from jaxckpt.storage.commit import reservations

# Held from the look at the numbers in use until the chosen number is reserved.
_lock = threading.Lock()


def reserve_unused(owner: object, prefix: str, wanted: int, given: int = 0) -> tuple[int, str]:
    """Chooses and reserves a number that is not used by a checkpoint, a file or a running save of this process.

    Args:
      owner: the save. The reservation ends with it at the latest.
      prefix: directory and name.
      wanted: the preferred number. If it is in use, the number after the highest one in use is chosen.
      given: numbers up to this one count as used, even if their checkpoints are gone.

    Returns:
      The number, and the path ``<prefix>-<number>``.

    Raises:
      CheckpointError: a TensorFlow checkpoint has the number.
      OSError: the directory cannot be read; has errno.
    """
    with _lock:
        path = numbering.name_of(prefix, wanted)
        if wanted <= given or stores.exists(path) or reservations.holds(path):
            wanted = _after_the_highest(prefix, wanted, given)
            path = numbering.name_of(prefix, wanted)
        foreign_runs.refuse_prefix(path)
        reservations.reserve(path, owner)
        return wanted, path


def reserve(owner: object, path: str) -> None:
    """Reserves a path. The save may replace a checkpoint there.

    Args:
      owner: the save. The reservation ends with it at the latest.
      path: path of the checkpoint.

    Raises:
      CheckpointError: `path` is the prefix of a TensorFlow checkpoint.
    """
    foreign_runs.refuse_prefix(path)
    with _lock:
        reservations.reserve(path, owner)


def release(path: str, owner: object) -> None:
    """Ends a reservation, because the save is over. Idempotent.

    Args:
      path: absolute path of the checkpoint. A reservation of it by another save stays.
      owner: the save.
    """
    with _lock:
        reservations.release(path, owner)


def _after_the_highest(prefix: str, *taken: int) -> int:
    directory, name = os.path.split(stores.absolute(prefix))
    try:
        names = stores.names(directory)
    except FileNotFoundError:
        names = []
    return numbering.after_the_highest(name, names + reservations.names(directory), *taken)
