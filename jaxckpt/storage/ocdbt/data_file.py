"""A data file of an OCDBT database: values and nodes are appended to it."""

import os
import secrets
from collections.abc import Iterable

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt.storage.ocdbt.model import Place

NAME_BYTES = 16
# Is checksummed, then written, while it is in the cache.
_BLOCK = 1 << 20


class DataFile:
    """A new data file of the database in `directory`. The caller closes it, or gives its descriptor away.

    It begins with its own name, which nothing refers to: a file that was exchanged for another one, whose checksums are all right, is
    told by that.
    """

    def __init__(self, directory: str) -> None:
        name = secrets.token_bytes(NAME_BYTES)
        self.name = "d/" + name.hex()
        self.path = os.path.join(directory, self.name)
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self.size = 0
        try:
            self._write(name)
        except BaseException:
            self.close()
            raise

    def release(self) -> int:
        """Gives the descriptor away: `close` has nothing to close from now on."""
        # An interrupt between two steps may lose the descriptor, but never closes it twice: it could be another file's by then.
        descriptor, self.descriptor = self.descriptor, -1
        return descriptor

    def close(self) -> None:
        """Closes the file, unless its descriptor was given away. Idempotent."""
        descriptor = self.release()
        if descriptor >= 0:
            os.close(descriptor)

    def append(self, data: Iterable[np.ndarray]) -> Place:
        """Writes a value: the bytes of contiguous arrays, and the crc32c of all of them."""
        start = self.size
        found = 0
        for array in data:
            content = array.reshape(-1).view(np.uint8)
            for position in range(0, content.size, _BLOCK):
                block = content[position : position + _BLOCK]
                found = checksum.extended(found, block)
                self._write(block)
        self._write(checksum.encoded(found))
        return Place(self.name, start, self.size - start)

    def append_bytes(self, content: bytes) -> Place:
        """Writes bytes as they are."""
        start = self.size
        self._write(content)
        return Place(self.name, start, len(content))

    def _write(self, data: np.ndarray | bytes) -> None:
        self.size += write_all(self.descriptor, data, self.path)


def write_all(descriptor: int, data: np.ndarray | bytes, path: str) -> int:
    """Writes all of `data` to an open file, and returns how many bytes that are. Raises OSError, which names `path`."""
    view = memoryview(data)  # type: ignore[arg-type]
    size = len(view)
    try:
        while len(view):
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        error.filename = path
        raise
    return size
