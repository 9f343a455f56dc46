"""Which number, or path, a save of this process gets, so that no two saves work on one path."""

import os
import threading

from jaxckpt._lib import numbering
from jaxckpt.directory import foreign_runs
from jaxckpt.storage import stores
from jaxckpt.storage.commit import reservations

# Held from the look at what is taken until the choice is reserved.
_lock = threading.Lock()


def reserve_unused(owner: object, prefix: str, wanted: int, given: int = 0) -> tuple[int, str]:
    """Chooses and reserves a number that no checkpoint, file or save in flight of this process has.

    Args:
      owner: the save, which the reservation lasts no longer than.
      prefix: directory and name.
      wanted: the number to take if it is free; otherwise the one after the highest is taken.
      given: numbers up to this one are taken, although nothing may be there any more.

    Returns:
      The number, and the path ``<prefix>-<number>``.

    Raises:
      CheckpointError: the number is that of a TensorFlow checkpoint.
      OSError: with errno; the directory cannot be read.
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
    """Reserves a path that may replace what is there.

    Args:
      owner: the save, which the reservation lasts no longer than.
      path: of the checkpoint.

    Raises:
      CheckpointError: it is the prefix of a TensorFlow checkpoint.
    """
    foreign_runs.refuse_prefix(path)
    with _lock:
        reservations.reserve(path, owner)


def release(path: str, owner: object) -> None:
    """Gives up a reservation, because the save is over. Idempotent.

    Args:
      path: absolute path of the checkpoint; left alone if it is reserved for another save.
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
