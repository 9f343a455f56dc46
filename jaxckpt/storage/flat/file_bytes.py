"""Reads the bytes of an array from a file, on a disk or in a bucket, and checksums them while they are in the CPU's cache."""

import os

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage import stores
from jaxckpt.storage.stores.inside import Inside

_BLOCK = 1 << 20
_REQUEST = 64 << 20


class FileBytes:
    """A range of the bytes of a file."""

    def __init__(self, inside: Inside, name: str, offset: int) -> None:
        """Does not touch the file yet.

        Args:
          inside: the files of the directory.
          name: path of the file, relative to the directory.
          offset: first byte of the range.
        """
        self._inside, self._name, self._offset = inside, name, offset

    def fill(self, target: np.ndarray) -> int:
        """Fills an array with the bytes, and returns their crc32c.

        Args:
          target: contiguous array of uint8, as long as the range.

        Raises:
          DamagedError: the file ends before the range does.
          OSError: the file cannot be read.
        """
        if not target.size:
            return 0
        return self._from_disk(target) if self._inside.is_local else self._from_bucket(target)

    def _from_disk(self, target: np.ndarray) -> int:
        crc = done = 0
        descriptor = self._inside.open(self._name)
        try:
            while done < target.size:
                view = memoryview(target[done : done + _BLOCK])  # type: ignore[arg-type]
                got = os.preadv(descriptor, [view], self._offset + done)
                if got <= 0:
                    raise DamagedError("its data file is shorter than it was")
                crc = checksum.extended(crc, target[done : done + got])
                done += got
        except OSError as error:
            error.filename = self._inside.path(self._name)
            raise
        finally:
            os.close(descriptor)
        return crc

    def _from_bucket(self, target: np.ndarray) -> int:
        crc = 0
        for done in range(0, target.size, _REQUEST):
            block = target[done : done + _REQUEST]
            (content,) = stores.ranges(self._inside.path(self._name), [(self._offset + done, block.size)])
            if len(content) != block.size:
                raise DamagedError("its data file is shorter than it was")
            block[:] = np.frombuffer(content, np.uint8)
            crc = checksum.extended(crc, block)
        return crc
