"""Checks the path of a file of a checkpoint, as another file of the checkpoint names it."""

import os

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import DamagedError


def checked_name(name: str) -> str:
    """Returns `name` if it is a valid path relative to the checkpoint.

    Args:
      name: the path, with ``/`` between its parts.

    Raises:
      DamagedError: the path leads out of the checkpoint, or is not a possible file name.
    """
    # Most names are two parts without a dot.
    if not name or name[0] == "/" or "\0" in name or len(name) > bounds.PATH_BYTES:
        raise DamagedError(f"the file name {name[:80]!r} is impossible")
    if ".." in name and ".." in name.split("/"):
        raise DamagedError(f"the file name {name[:80]!r} leads out of the checkpoint")
    if not name.isascii():
        try:
            os.fsencode(name)
        except UnicodeEncodeError as error:
            raise DamagedError(f"the file name {name[:80]!a} is not text") from error
    return name
