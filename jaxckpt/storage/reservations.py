"""Which paths the saves of this process work on, from the choice of the path until the save is over.

A path has one entry however it is spelled. It lasts no longer than the save that it belongs to: what an interrupt dropped holds none.
"""

import os
import weakref
from typing import NamedTuple

from jaxckpt.storage import files


class _Reservation(NamedTuple):
    identity: str
    owner: "weakref.ref[object]"


# By the absolute path that was reserved. A link on the way may change while the save runs.
_reserved: dict[str, _Reservation] = {}


def reserve(path: str, owner: object) -> None:
    """Notes that the save `owner` of this process works on `path`."""
    _reserved[files.absolute(path)] = _Reservation(files.identity(path), weakref.ref(owner))


def release(path: str, owner: object) -> None:
    """Notes that the save is over. Another save's reservation of the path stays."""
    key = files.absolute(path)
    if key in _reserved and _reserved[key].owner() in (owner, None):
        del _reserved[key]


def holds(path: str) -> bool:
    """Whether a save of this process works on `path`."""
    return bool(_reserved) and files.identity(path) in _identities()


def names(directory: str) -> list[str]:
    """Returns the names of what saves of this process work on in `directory`."""
    here = os.path.dirname(files.identity(os.path.join(directory, "name")))
    return [os.path.basename(path) for path in _identities() if os.path.dirname(path) == here]


def _identities() -> list[str]:
    return [identity for identity, owner in list(_reserved.values()) if owner() is not None]
