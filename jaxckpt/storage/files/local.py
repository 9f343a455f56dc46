"""Files of the operating system."""

import os
from collections.abc import Sequence


def absolute(path: str) -> str:
    """Returns the absolute path that the operating system would reach, without ``.`` and ``..``.

    ``link/..`` is the parent of what the link points to. A ``name/..`` whose `name` does not exist stands for nothing.
    Links after the last ``..`` keep their names.
    """
    # os.path.abspath would take "link/.." for the directory that holds the link.
    parts = os.path.join(os.getcwd(), path).split(os.sep)
    after = len(parts) - parts[::-1].index(os.pardir) if os.pardir in parts else 0
    if after:
        parts[:after] = [os.path.realpath(os.sep.join(parts[:after]))]
    return os.path.normpath(os.sep.join(parts))


def spelled(path: str) -> str:
    """Returns a path that the operating system takes to `absolute(path)`: `path` itself, if that does."""
    parts = path.split(os.sep)
    if os.pardir not in parts:
        return path
    kept: list[str] = []
    left_out = False
    for part in parts:
        if kept and part in ("", os.curdir):
            continue
        follows_name = part == os.pardir and kept and kept[-1] not in ("", os.curdir, os.pardir)
        if follows_name and not os.path.isdir(os.sep.join(kept)):
            kept.pop()
            left_out = True
            continue
        kept.append(part)
    if not left_out:
        return path
    candidate, place = os.sep.join(kept) or os.curdir, absolute(path)
    # They differ where a link leads nowhere.
    return candidate if absolute(candidate) == place else place


def identity(path: str) -> str:
    """Returns one spelling for all paths of the same entry of a directory: every link on the way to it is followed."""
    directory, name = os.path.split(absolute(path))
    return os.path.join(os.path.realpath(directory), name)


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
