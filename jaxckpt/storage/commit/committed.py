"""Finding what is committed: by the name of its directory, and in a bucket by its marker."""

import os
import stat

from jaxckpt._lib import numbering
from jaxckpt.storage import stores
from jaxckpt.storage.commit import by_marker, temporary
from jaxckpt.storage.item import description, digests, tree_metadata

# A directory that has one of these files is a checkpoint, a damaged one perhaps.
MARKS = (tree_metadata.FILE, digests.FILE, description.FILE)
# Orbax writes the key that tells its file first.
_MARK_BYTES = 4096


def item_directory(path: str) -> str | None:
    """Returns the directory below `path` that holds the tree of an Orbax checkpoint, or None if `path` is not one.

    Plain Orbax puts the tree of a v1 or composite checkpoint into a subdirectory.

    Raises:
      ValueError: there are several trees.
    """
    if stores.is_bucket(path):
        home = by_marker.home(path)
        if home is None:
            return None
        path = home
    if stores.is_file(os.path.join(path, tree_metadata.FILE)):
        return path
    try:
        names = sorted(stores.names(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    items = [
        name
        for name in names
        if stores.is_file(os.path.join(path, name, tree_metadata.FILE))
        and "orbax-checkpoint-tmp" not in name
        and not temporary.is_temporary(name)
    ]
    if len(items) > 1 and _is_orbax(path):
        raise ValueError(f"{path} holds several items: {', '.join(items)}. Name one: {os.path.join(path, items[0])!r}.")
    return os.path.join(path, items[0]) if len(items) == 1 and _is_orbax(path) else None


def _is_orbax(path: str) -> bool:
    return stores.is_file(os.path.join(path, description.FILE))


def is_checkpoint(path: str) -> bool:
    """Whether `path` is a committed Orbax checkpoint, written by jaxckpt or not, even a damaged one."""
    name = os.path.basename(stores.absolute(path))
    if "orbax-checkpoint-tmp" in name or temporary.is_temporary(name):
        return False
    if stores.is_bucket(path):
        return by_marker.home(path) is not None
    if not os.path.isdir(path):
        return False
    return any(stores.is_file(os.path.join(path, mark)) for mark in MARKS)


def is_marked(descriptor: int) -> bool:
    """Whether the open directory is one of a checkpoint beyond doubt, so that it may be deleted or replaced.

    A file called ``_METADATA`` is not enough: other programs have such files. It must say what Orbax's says.
    """
    return any(_reads(descriptor, mark, 0) is not None for mark in MARKS if mark != tree_metadata.FILE) or (
        (text := _reads(descriptor, tree_metadata.FILE, _MARK_BYTES)) is not None and tree_metadata.KEY in text
    )


def _reads(directory: int, name: str, size: int) -> bytes | None:
    """Returns the first `size` bytes of a regular file of an open directory; None if there is no such file."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        return os.read(descriptor, size) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)


def list_numbered(prefix: str) -> list[int]:
    """Returns the numbers of the committed checkpoints ``prefix-N``, ascending."""
    directory, name = os.path.split(prefix)
    if stores.is_bucket(directory):
        names = by_marker.committed(directory)
    else:
        try:
            names = os.listdir(directory or ".")
        except (FileNotFoundError, NotADirectoryError):
            return []
    numbers = numbering.numbers(name, names)
    if stores.is_bucket(directory):
        return numbers
    here = os.path.join(directory or ".", name)
    return [number for number in numbers if is_checkpoint(numbering.name_of(here, number))]
