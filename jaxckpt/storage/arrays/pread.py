"""Reads chunks from their data files on a few threads: large ones block by block, small ones that lie close together in one step."""

import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.documents import DamagedError
from jaxckpt._lib.threads import Threads
from jaxckpt.storage.arrays import chunk_bytes, counts
from jaxckpt.storage.arrays.chunks import Read, decode
from jaxckpt.storage.ocdbt.model import Place
from jaxckpt.storage.stores.inside import Inside

# Chunks that are read together lie within this many bytes.
_BLOCK = 1 << 20
# Chunks up to this many bytes are read together,
_SMALL = 64 << 10
# if at most this many bytes lie between them.
_GAP = 16 << 10
_READERS = max(2, min(8, os.cpu_count() or 1))


class ReadError(Exception):
    """The read of a chunk failed. The error is its `__cause__`.

    Attributes:
      owner: Orbax's name of the array.
    """

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


def run(inside: Inside, reads: Sequence[Read], deadline: Deadline) -> None:
    """Reads chunks on a few threads.

    Args:
      inside: the files of the database.
      reads: the chunks, in the order of their places on disk.
      deadline: when the reads give up.

    Raises:
      ReadError: caused by the first DamagedError or OSError.
      TimeoutError: after the deadline.
    """
    if not reads:
        return
    batches = _batches(reads)
    lock = threading.Lock()
    threads = Threads(deadline, f"Reading {inside.directory}")

    def work() -> None:
        file, descriptor = "", -1
        try:
            while not threads.stopped:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    break
                try:
                    if file != batch[0].place.file:
                        if descriptor >= 0:
                            os.close(descriptor)
                            descriptor = -1
                        file = batch[0].place.file
                        descriptor = inside.open(file)
                    _read_batch(descriptor, batch)
                    counts.add(len(batch), chunk_bytes.nbytes_of(batch))
                except DamagedError as error:
                    raise ReadError(batch[0].owner) from _with_file(error, batch[0])
                except OSError as error:
                    error.filename = inside.path(file)
                    raise ReadError(batch[0].owner) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    threads.at_least(min(_READERS, len(reads)), work)
    threads.join()


def _batches(reads: Iterable[Read]) -> Iterator[list[Read]]:
    """Groups small chunks that lie close together. One read of them all takes a fraction of the time of one read for each.

    Args:
      reads: the reads, in the order of their places.
    """
    batch: list[Read] = []
    for read in reads:
        place = read.place
        if batch and not (
            place.length <= _SMALL
            and place.file == batch[0].place.file
            and place.offset <= _end(batch[-1].place) + _GAP
            and _end(place) <= batch[0].place.offset + _BLOCK
        ):
            yield batch
            batch = []
        batch.append(read)
        if place.length > _SMALL:
            yield batch
            batch = []
    if batch:
        yield batch


def _end(place: Place) -> int:
    return place.offset + place.length


def _read_batch(descriptor: int, batch: list[Read]) -> None:
    """Does the reads of a batch. Raises ReadError for a damaged chunk of a batch; DamagedError or OSError for the whole batch."""
    if len(batch) == 1 and batch[0].place.length > _SMALL:
        chunk_bytes.deliver(chunk_bytes.content_of(descriptor, batch[0]), batch[0])
        return
    start = batch[0].place.offset
    stored = _content(descriptor, start, max(_end(read.place) for read in batch) - start)
    for read in batch:
        at = read.place.offset - start
        try:
            chunk = decode(stored[at : at + read.place.length], read.dtype, read.shape, read.encoding)
        except DamagedError as error:
            raise ReadError(read.owner) from _with_file(error, read)
        for part in read.parts:
            part.target[...] = chunk[part.box]


def _with_file(error: DamagedError, read: Read) -> DamagedError:
    """Returns the error of a damaged chunk, with the data file in its message."""
    return DamagedError(f"{error} (byte {read.place.offset} and after in {read.place.file!r})")


def _content(descriptor: int, offset: int, nbytes: int) -> bytes:
    """Returns a range of a file. The result is shorter if the file ends before the range does."""
    found = os.pread(descriptor, nbytes, offset)
    while len(found) < nbytes:
        more = os.pread(descriptor, nbytes - len(found), offset + len(found))
        if not more:
            break
        found += more
    return found


class ChunkStream:
    """Reads a box that is one chunk, or the beginning of one, block by block."""

    def __init__(self, inside: Inside, read: Read) -> None:
        """Opens the data file.

        Args:
          inside: the files of the database.
          read: the chunk. Its only part is its beginning; the target is not used.
        """
        self.nbytes = self._left = read.parts[0].target.nbytes
        self._stored_bytes = read.place.length
        self._path = inside.path(read.place.file)
        descriptor = inside.open(read.place.file)
        weakref.finalize(self, os.close, descriptor).atexit = False
        self._content = chunk_bytes.content_of(descriptor, read)

    def fill(self, target: np.ndarray) -> None:
        """Fills an array with the next bytes. Only the last call checks the chunk, so do not use the bytes before it has returned.

        Args:
          target: array of uint8.

        Raises:
          DamagedError: the chunk is damaged.
          OSError: the chunk cannot be read.
        """
        try:
            self._content.fill(target)
            self._left -= target.size
            if not self._left:
                self._content.finish()
                counts.add(1, self._stored_bytes)
        except OSError as error:
            error.filename = self._path
            raise
