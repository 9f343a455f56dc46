"""Reads chunks straight from their data files into the target arrays, and checksums them while they are in the CPU's cache."""

import os
import threading
import weakref
from collections.abc import Iterable, Iterator

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.documents import DamagedError
from jaxckpt._lib.threads import Threads
from jaxckpt.storage.arrays.chunks import Read, decode, decompressed
from jaxckpt.storage.item import layout
from jaxckpt.storage.ocdbt.model import Place
from jaxckpt.storage.stores.inside import Inside

# A block is read and then checksummed while it is in the cache.
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


def run(inside: Inside, reads: list[Read], deadline: Deadline) -> None:
    """Does all reads on a few threads, in the order of their places on disk.

    Args:
      inside: the files of the database.
      reads: the reads.
      deadline: when the reads give up.

    Raises:
      ReadError: caused by the first DamagedError or OSError.
      TimeoutError: after the deadline.
    """
    if not reads:
        return
    batches = _batches(sorted(reads, key=lambda read: read.place))
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
        _read(descriptor, batch[0])
        return
    start = batch[0].place.offset
    content = _content(descriptor, start, max(_end(read.place) for read in batch) - start)
    for read in batch:
        at = read.place.offset - start
        try:
            chunk = decode(content[at : at + read.place.length], read.target.dtype, read.shape, read.is_compressed)
        except DamagedError as error:
            raise ReadError(read.owner) from _with_file(error, read)
        read.target[...] = chunk[read.part]


def _with_file(error: DamagedError, read: Read) -> DamagedError:
    """Returns the error of a damaged chunk, with the data file in its message."""
    return DamagedError(f"{error} (byte {read.place.offset} and after in {read.place.file!r})")


def _content(descriptor: int, offset: int, nbytes: int) -> bytes:
    """Returns a range of a file. The result is shorter if the file ends before the range does."""
    content = os.pread(descriptor, nbytes, offset)
    while len(content) < nbytes:
        more = os.pread(descriptor, nbytes - len(content), offset + len(content))
        if not more:
            break
        content += more
    return content


def _read(descriptor: int, read: Read) -> None:
    nbytes = read.place.length - layout.CHECKSUM_BYTES
    target = read.target
    if read.is_compressed:
        frame = np.empty(nbytes, np.uint8)
        _fill(descriptor, read.place.offset, frame, nbytes)
        target[...] = decompressed(frame.data, target.dtype, read.shape)[read.part]
        return
    if read.is_of_first_bytes and target.flags.c_contiguous:
        _fill(descriptor, read.place.offset, target.reshape(-1).view(np.uint8), nbytes)
        return
    chunk = np.empty(nbytes, np.uint8)
    _fill(descriptor, read.place.offset, chunk, nbytes)
    target[...] = chunk.view(target.dtype).reshape(read.shape)[read.part]


def _fill(descriptor: int, offset: int, target: np.ndarray, nbytes: int) -> None:
    """Fills `target` with the first bytes of a chunk of `nbytes` bytes, and checks the whole chunk against its crc32c."""
    checked = _Checked(descriptor, offset)
    checked.fill(target)
    checked.finish(nbytes)


class _Checked:
    """Reads the bytes of a chunk in order, and checksums them while they are in the cache."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor, self._offset = descriptor, offset
        self._checksum = self._done = 0

    def fill(self, target: np.ndarray) -> None:
        """Fills an array of uint8 with the next bytes."""
        done = 0
        while done < target.size:
            view = memoryview(target[done : done + _BLOCK])  # type: ignore[arg-type]
            got = os.preadv(self._descriptor, [view], self._offset + self._done)
            if got <= 0:
                raise DamagedError("its data file is shorter than it was")
            self._checksum = checksum.extended(self._checksum, target[done : done + got])
            done += got
            self._done += got

    def finish(self, nbytes: int) -> None:
        """Checks the whole chunk of `nbytes` bytes. First reads and checksums the bytes that `fill` did not read."""
        while self._done < nbytes:
            self.fill(np.empty(min(_BLOCK, nbytes - self._done), np.uint8))
        stored = os.pread(self._descriptor, layout.CHECKSUM_BYTES, self._offset + nbytes)
        if stored != checksum.encoded(self._checksum):
            raise DamagedError("the checksum of its data does not match")


class ChunkStream:
    """Reads a box that is one chunk, or the beginning of one, block by block."""

    def __init__(self, inside: Inside, read: Read) -> None:
        """Opens the data file.

        Args:
          inside: the files of the database.
          read: the read. Only the size of its target is used.
        """
        self.nbytes = read.target.nbytes
        self._left = self.nbytes
        self._chunk_bytes = read.place.length - layout.CHECKSUM_BYTES
        self._path = inside.path(read.place.file)
        descriptor = inside.open(read.place.file)
        weakref.finalize(self, os.close, descriptor).atexit = False
        self._checked = _Checked(descriptor, read.place.offset)

    def fill(self, target: np.ndarray) -> None:
        """Fills an array with the next bytes. Only the last call checks the chunk, so do not use the bytes before it has returned.

        Args:
          target: array of uint8.

        Raises:
          DamagedError: the chunk is damaged.
          OSError: the chunk cannot be read.
        """
        try:
            self._checked.fill(target)
            self._left -= target.size
            if not self._left:
                self._checked.finish(self._chunk_bytes)
        except OSError as error:
            error.filename = self._path
            raise
