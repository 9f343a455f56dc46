"""A new data file of an OCDBT database, to which values and nodes are appended."""

import os
import secrets
from collections.abc import Iterable

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt.storage.ocdbt.model import Place

NAME_BYTES = 16
# A block is checksummed and then written while it is in the cache.
_BLOCK = 1 << 20
# A value of at least so many bytes begins at a multiple of 64, as arrays do in memory. Some processors copy several times slower to an
# address that is up to 31 bytes behind that of the source, both taken modulo the size of a page.
_ALIGNED_FROM = 64 << 10
_ALIGNMENT = 64


class DataFile:
    """A new data file. The caller must call `close` or `release`.

    The file begins with its own name. By it, a reader recognizes a file that was exchanged for another intact one.

    Attributes:
      name: path of the file, relative to the database.
      path: path of the file.
      descriptor: descriptor of the open file; -1 after `release` or `close`.
      size: size of the file in bytes.
    """

    def __init__(self, directory: str) -> None:
        """Makes the file.

        Args:
          directory: directory of the database.

        Raises:
          OSError: with errno.
        """
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
        """Returns the descriptor, which the caller must close. `close` does nothing from now on."""
        # An interrupt between two steps may leak the descriptor. It cannot close it twice: another file might have its number by then.
        descriptor, self.descriptor = self.descriptor, -1
        return descriptor

    def close(self) -> None:
        """Closes the file, unless `release` returned its descriptor. Idempotent."""
        descriptor = self.release()
        if descriptor >= 0:
            os.close(descriptor)

    def size_with(self, nbytes: int) -> int:
        """Returns the size that the file would have with one more value.

        Args:
          nbytes: size of the value, with its crc32c.
        """
        return self.size + self._padding(nbytes) + nbytes

    def _padding(self, nbytes: int) -> int:
        return -self.size % _ALIGNMENT if nbytes >= _ALIGNED_FROM else 0

    def append(self, data: Iterable[np.ndarray], nbytes: int) -> Place:
        """Writes a value, whose parts follow one another. Before a large one, zeros fill the file up to an aligned position.

        Args:
          data: contiguous arrays. The crc32c of all their bytes follows them.
          nbytes: size of the value, with its crc32c.

        Returns:
          Its place. Its length is not `nbytes` if `data` had another size.
        """
        self._write(bytes(self._padding(nbytes)))
        start, found = self.size, 0
        for array in data:
            content = array.reshape(-1).view(np.uint8)
            for position in range(0, content.size, _BLOCK):
                block = content[position : position + _BLOCK]
                found = checksum.extended(found, block)
                self._write(block)
        self._write(checksum.encoded(found))
        return Place(self.name, start, self.size - start)

    def append_bytes(self, content: bytes) -> Place:
        """Writes bytes without a crc32c. Returns their place."""
        start = self.size
        self._write(content)
        return Place(self.name, start, len(content))

    def _write(self, data: np.ndarray | bytes) -> None:
        self.size += write_all(self.descriptor, data, self.path)


def write_all(descriptor: int, data: np.ndarray | bytes, path: str) -> int:
    """Writes data to an open file, and returns the number of bytes.

    Args:
      descriptor: of the open file.
      data: all of it is written.
      path: path of the file, for errors.

    Raises:
      OSError: with errno and `path`.
    """
    view = memoryview(data)  # type: ignore[arg-type]
    size = len(view)
    try:
        while len(view):
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        error.filename = path
        raise
    return size
