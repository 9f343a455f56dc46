"""Files of an OCDBT database: data files, which values and nodes are appended to, and the manifest."""

import os
import secrets
from collections.abc import Iterable

import numpy as np

from jaxckpt.storage import stores
from jaxckpt.storage.ocdbt.decode import CHECKSUM_BYTES, Place

_BLOCK = 1 << 20  # is checksummed, then written, while it is in the cache
NAME_BYTES = 16


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
        """Writes the bytes of contiguous arrays, and the crc32c of all of them."""
        import google_crc32c

        start = self.size
        checksum = 0
        for array in data:
            content = array.reshape(-1).view(np.uint8)
            content.flags.writeable = False  # google_crc32c takes nothing that can be written to.
            for position in range(0, content.size, _BLOCK):
                block = content[position : position + _BLOCK]
                checksum = google_crc32c.extend(checksum, block)
                self._write(block)
        self._write(checksum.to_bytes(CHECKSUM_BYTES, "little"))
        return Place(self.name, start, self.size - start)

    def append_bytes(self, content: bytes) -> Place:
        """Writes bytes as they are."""
        start = self.size
        self._write(content)
        return Place(self.name, start, len(content))

    def _write(self, data: np.ndarray | bytes) -> None:
        self.size += _write(self.descriptor, data, self.path)


def is_named(path: str) -> bool:
    """Whether a file begins with its own name, as `DataFile` makes them. Raises OSError."""
    (begin,) = stores.ranges(path, [(0, NAME_BYTES)])
    return begin.hex() == os.path.basename(path)


def checksummed(data: np.ndarray) -> bytes:
    """Returns the bytes of an array, followed by their crc32c."""
    import google_crc32c

    content = data.tobytes()
    checksum: int = google_crc32c.value(content)
    return content + checksum.to_bytes(CHECKSUM_BYTES, "little")


def write_file(path: str, content: bytes) -> None:
    """Writes a new file and syncs it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write(descriptor, content, path)
    except BaseException:
        os.close(descriptor)
        raise
    sync_and_close(descriptor, path)


def sync_and_close(descriptor: int, path: str) -> None:
    """Brings a file to stable storage, and closes it in any case."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: np.ndarray | bytes, path: str) -> int:
    view = memoryview(data)  # type: ignore[arg-type]
    size = len(view)
    try:
        while len(view):
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        error.filename = path
        raise
    return size
