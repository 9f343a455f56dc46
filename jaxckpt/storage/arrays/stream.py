"""Reads an array that lies in one chunk block by block, so that it never is in memory as a whole."""

from collections.abc import Callable

import numpy as np

from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.arrays import pread


class ArrayStream:
    """Reads a box of an array block by block. Made by `StoredArrays.stream`."""

    def __init__(
        self, fault: Callable[[BaseException, str | None], Exception], name: str, chunk: pread.ChunkStream
    ) -> None:
        # `fault` returns the exception to raise for an error about the leaf that Orbax calls `name`.
        self.nbytes = chunk.nbytes
        self._fault, self._name, self._chunk = fault, name, chunk

    def fill(self, target: np.ndarray) -> None:
        """Fills an array of uint8 with the next bytes. Only the last call checks them: do not use them before it has returned.

        Raises:
          CorruptCheckpointError: the array is damaged; names the leaf.
          OSError: the checkpoint cannot be read.
        """
        try:
            self._chunk.fill(target)
        except (DamagedError, OSError) as error:
            raise self._fault(error, self._name) from error
