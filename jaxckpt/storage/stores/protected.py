"""Directories that must stay, whatever a caller names."""

import contextlib
import os


def directories() -> dict[tuple[int, int], str]:
    """Returns ``(st_dev, st_ino)`` of the working directory, the home directory and all directories above them, and each in words."""
    found: dict[tuple[int, int], str] = {}
    for what, start in (("the working directory", os.curdir), ("the home directory", os.path.expanduser("~"))):
        # A working directory may have been removed.
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
