"""Which paths the saves of this process work on, from the choice of the path until the save is over.

A path has one entry however it is spelled.
"""

import os

from jaxckpt.storage import files

# The absolute path that was reserved, and what identifies it. A link on the way may change while the save runs.
_reserved: dict[str, str] = {}


def reserve(path: str) -> None:
    """Notes that a save of this process works on `path`."""
    _reserved[files.absolute(path)] = files.identity(path)


def release(path: str) -> None:
    """Notes that the save is over."""
    _reserved.pop(files.absolute(path), None)


def holds(path: str) -> bool:
    """Whether a save of this process works on `path`."""
    return bool(_reserved) and files.identity(path) in list(_reserved.values())


def names(directory: str) -> list[str]:
    """Returns the names of what saves of this process work on in `directory`."""
    here = os.path.dirname(files.identity(os.path.join(directory, "name")))
    return [os.path.basename(path) for path in list(_reserved.values()) if os.path.dirname(path) == here]
