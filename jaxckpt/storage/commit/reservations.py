"""Which paths the saves of this process work on, from the choice of the path until the save is over.

A path has one entry however it is spelled. It lasts no longer than the save that it belongs to: what an interrupt dropped holds none.
"""

import os
import weakref

from jaxckpt.storage import stores

# The absolute path that was reserved and what identifies it (a link on the way may change while the save runs), and whose it is. A
# save that an interrupt dropped holds none.
_reserved: "weakref.WeakValueDictionary[tuple[str, str], object]" = weakref.WeakValueDictionary()


def reserve(path: str, owner: object) -> None:
    """Notes that a save of this process works on `path`, for as long as its `owner` lasts."""
    _reserved[stores.absolute(path), stores.identity(path)] = owner


def release(path: str, owner: object) -> None:
    """Notes that the save is over, if the absolute path is the owner's. Idempotent."""
    for key, found in list(_reserved.items()):
        if key[0] == path and found is owner:
            _reserved.pop(key, None)


def holds(path: str) -> bool:
    """Whether a save of this process works on `path`."""
    return bool(_reserved) and stores.identity(path) in [identity for _, identity in list(_reserved)]


def names(directory: str) -> list[str]:
    """Returns the names of what saves of this process work on in `directory`."""
    here = os.path.dirname(stores.identity(os.path.join(directory, "name")))
    return [os.path.basename(path) for _, path in list(_reserved) if os.path.dirname(path) == here]
