"""The directories that are never removed or replaced, whatever a caller asks for."""

import contextlib
import os


def directories() -> dict[tuple[int, int], str]:
    """Returns the working directory, the home directory and all directories above them.

    Returns:
      A description in words for each directory, by its ``(st_dev, st_ino)``.
    """
    found: dict[tuple[int, int], str] = {}
    for what, start in (("the working directory", os.curdir), ("the home directory", os.path.expanduser("~"))):
        # Another process may have removed the working directory.
        with contextlib.suppress(OSError):
            folder, words = os.path.realpath(start), what
            while True:
                status = os.stat(folder)
                found.setdefault((status.st_dev, status.st_ino), words)
                folder, below = os.path.dirname(folder), folder
                words = f"a directory above {what}"
                if folder == below:
                    break
    return found
