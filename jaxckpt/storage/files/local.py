"""Files of the operating system."""

import os
from collections.abc import Sequence


def tree(directory: str) -> list[str]:
    """Returns the relative paths of all files below a directory, sorted."""
    found = []
    for folder, _, names in os.walk(directory):
        relative = os.path.relpath(folder, directory)
        found += [name if relative == "." else f"{relative}/{name}" for name in names]
    return sorted(found)


def read(path: str) -> bytes:
    """Returns the content of a file."""
    with open(path, "rb") as file:
        return file.read()


def write(path: str, content: bytes) -> None:
    """Writes a file."""
    with open(path, "wb") as file:
        file.write(content)


def ranges(path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Returns parts of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return [os.pread(descriptor, length, start if start >= 0 else max(0, size + start)) for start, length in parts]
    finally:
        os.close(descriptor)
