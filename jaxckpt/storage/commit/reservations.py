"""The paths that saves of this process work on. A save reserves its path when it chooses it, and releases it when it is over.

All spellings of a path count as one. A reservation ends with the object of its save, so a save that an interrupt dropped holds none.
"""

import os
import weakref

from jaxckpt.storage import stores

# Absolute path and `stores.identity` of each reserved path → the object that owns the reservation. The identity is kept because a link
# in the path may change while the save runs.
_reserved: "weakref.WeakValueDictionary[tuple[str, str], object]" = weakref.WeakValueDictionary()


def reserve(path: str, owner: object) -> None:
    """Reserves a path for a save of this process.

    Args:
      path: path of the checkpoint.
      owner: object that owns the reservation. The reservation ends when the object is garbage-collected.
    """
    _reserved[stores.absolute(path), stores.identity(path)] = owner


def release(path: str, owner: object) -> None:
    """Ends a reservation. Idempotent.

    Args:
      path: the absolute path that was reserved.
      owner: the object that owns the reservation; another owner's is left alone.
    """
    for key, found in list(_reserved.items()):
        if key[0] == path and found is owner:
            _reserved.pop(key, None)


def holds(path: str) -> bool:
    """Whether a save of this process has reserved `path`."""
    return bool(_reserved) and stores.identity(path) in [identity for _, identity in list(_reserved)]


def names(directory: str) -> list[str]:
    """Returns the names in `directory` that saves of this process have reserved."""
    here = os.path.dirname(stores.identity(os.path.join(directory, "name")))
    return [os.path.basename(path) for _, path in list(_reserved) if os.path.dirname(path) == here]
