"""Writes a new OCDBT database: a few threads write its data files, then its B-tree is written, then the manifest.

TensorStore's writer adds to an existing database. It rewrites paths of the tree, and computes checksums at a third of the speed.
"""

import itertools
import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxckpt._lib import checksum, durable
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.giving_way import GivingWay
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt._lib.threads import Threads
from jaxckpt._lib.transfer import Transfer
from jaxckpt.storage.ocdbt import encode, tree
from jaxckpt.storage.ocdbt.data_file import DataFile, write_all
from jaxckpt.storage.ocdbt.encode import INLINE_BYTES
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST, Entry, Place, Root

# At most this many chunks of other processes are in memory at once.
REMOTE_CHUNKS = 4
_WRITERS = max(2, min(8, os.cpu_count() or 1))
_SYNCERS = 4
_UNSYNCED_FILES = 16
_key: Callable[[Entry], bytes] = operator.attrgetter("key")


class Chunk(NamedTuple):
    """A value to write: the bytes of an array. The writer adds their crc32c.

    Attributes:
      key: key in the database.
      nbytes: size of the array in bytes.
      is_remote: whether `load` waits for another process.
      load: returns the array, contiguous, or its bytes in blocks. Called on one of several threads.
      group: number of the group that the value belongs to, or None. No two groups share a data file, and their values are never stored in
        nodes of the tree. All values of a group come before those of the next one.
    """

    key: str
    nbytes: int
    is_remote: bool
    load: Callable[[], np.ndarray | Iterator[np.ndarray]]
    group: int | None = None


class Database:
    """A new database, which one call of `write` writes.

    Args:
      directory: directory of the database. It exists and does not hold a database yet.
      target_file_bytes: a data file is closed once it has this many bytes.
      max_file_bytes: the largest size of a data file in bytes, or None.
      memory_bytes: at most this many bytes of chunks are in memory at once. One chunk is always allowed.
      deadline: when the write gives up.
      transfer: counts the bytes of arrays; None if they are not counted.
      giving_way: lets the threads give way to the program; None if a caller waits for them.
      part: name of the subdirectory for the data files of chunks; empty if these lie beside those of the tree.
    """

    def __init__(
        self,
        directory: str,
        target_file_bytes: int,
        max_file_bytes: int | None,
        memory_bytes: int,
        deadline: Deadline,
        transfer: Transfer | None = None,
        giving_way: GivingWay | None = None,
        part: str = "",
    ) -> None:
        self._directory = directory
        self._part = part
        self._target, self._max = target_file_bytes, max_file_bytes
        self._memory = memory_bytes
        self._transfer = transfer or Transfer()
        self._entries: list[Entry] = []
        self._writers = Threads(deadline, f"Writing {directory}", giving_way)
        self._syncers = Threads(deadline, f"Syncing {directory}", giving_way)
        self._pulling = threading.Lock()
        self._held = self._remote = 0
        self._closing: deque[tuple[int, str]] = deque()
        self._written = False

    def write(self, values: Iterator[Chunk | list[Entry]]) -> None:
        """Writes the values and then the index, and syncs all files.

        Args:
          values: the values of the database, in any order; those that are stored in the index come in lists. Several threads advance the
            iterator, one at a time.

        Raises:
          OSError: with errno.
          TimeoutError: after the deadline.
          ValueError: a key comes twice, or a chunk has another length than `Chunk.nbytes`.
          BaseException: the error that `values`, or the `load` of a chunk, raised.
        """
        for folder in {"", self._part}:
            os.makedirs(os.path.join(self._directory, folder, "d"), exist_ok=True)
        self._values = values
        try:
            self._writers.at_least(_WRITERS, self._write_values)
            self._writers.join(self._syncers)
            manifest = encode.encode_manifest(self._write_tree())
        except BaseException as error:
            self._finish_syncing(error)
            raise
        self._finish_syncing(None)
        # The manifest comes last: without it, the directory is not a database.
        _write_manifest(os.path.join(self._directory, OCDBT_MANIFEST), manifest)

    def _write_values(self) -> None:
        """The work of one writing thread: it fills data files of its own, one after the other."""
        file: DataFile | None = None
        group: int | None = None
        try:
            while not (self._writers.stopped or self._syncers.stopped):
                with self._pulling:
                    value = next(self._values, None)
                    while isinstance(value, list):
                        self._entries += value
                        value = next(self._values, None)
                if value is None:
                    break
                if value.is_remote:
                    # Threads that write remote chunks wait most of the time, so there are more of them.
                    self._writers.at_least(REMOTE_CHUNKS, self._write_values)
                if not self._enter(value):
                    break
                try:
                    data = value.load()
                    stored = value.nbytes + checksum.BYTES
                    if value.group is None and stored <= INLINE_BYTES and isinstance(data, np.ndarray):
                        self._entries.append(Entry(value.key.encode(), checksum.sealed(data.tobytes())))
                        self._transfer.add(value.nbytes)
                        continue
                    if file is not None and (
                        value.group != group
                        or file.size >= self._target
                        or (self._max is not None and file.size_with(stored) > self._max)
                    ):
                        self._close_later(file)
                        file = None
                    if file is None:
                        file, group = DataFile(os.path.join(self._directory, self._part)), value.group
                    place = file.append([data] if isinstance(data, np.ndarray) else data, stored)
                    if place.length != stored:
                        raise ValueError(
                            f"{value.key}: got {place.length - checksum.BYTES} bytes, expected {value.nbytes}"
                        )
                    if self._part:
                        place = place._replace(file=f"{self._part}/{place.file}")
                    self._entries.append(Entry(value.key.encode(), place))
                    self._transfer.add(value.nbytes)
                finally:
                    data = None  # type: ignore[assignment]
                    self._leave(value)
            if file is not None:
                self._close_later(file)
                file = None
        finally:
            if file is not None:
                file.close()

    def _enter(self, chunk: Chunk) -> bool:
        """Waits until there is room for a chunk in memory. Returns False if the write has failed."""

        def fits() -> bool:
            if chunk.is_remote and self._remote >= REMOTE_CHUNKS:
                return False
            return self._held == 0 or self._held + chunk.nbytes <= self._memory

        with self._writers.changed:
            if not self._writers.wait_until(fits):
                return False
            self._held += chunk.nbytes
            self._remote += chunk.is_remote
            return True

    def _leave(self, chunk: Chunk) -> None:
        with self._writers.changed:
            self._held -= chunk.nbytes
            self._remote -= chunk.is_remote
            self._writers.changed.notify_all()

    def _close_later(self, file: DataFile) -> None:
        """Hands a full file to the threads that sync, so that this thread can fill the next one meanwhile."""
        self._syncers.at_least(_SYNCERS, self._sync_files)
        with self._syncers.changed:
            if self._syncers.wait_until(lambda: len(self._closing) < _UNSYNCED_FILES):
                self._closing.append((file.release(), file.path))
                self._syncers.changed.notify_all()
                return
        # The write has failed.
        file.close()

    def _sync_files(self) -> None:
        while True:
            with self._syncers.changed:
                self._syncers.wait_until(lambda: bool(self._closing) or self._written)
                if not self._closing:
                    return
                descriptor, path = self._closing.popleft()
                self._syncers.changed.notify_all()
            if self._syncers.stopped:
                os.close(descriptor)
            else:
                durable.sync_and_close(descriptor, path)

    def _finish_syncing(self, error: BaseException | None) -> None:
        if error is not None:
            self._syncers.stop(error)
        with self._syncers.changed:
            self._written = True
            self._syncers.changed.notify_all()
        try:
            self._syncers.join()
        except BaseException as found:
            if found is not error:
                raise
        finally:
            with self._syncers.changed:
                while self._closing:
                    os.close(self._closing.popleft()[0])

    @quiet_gc()
    def _write_tree(self) -> Root:
        self._entries.sort(key=_key)
        keys = list(map(_key, self._entries))
        if any(map(operator.eq, keys, keys[1:])):
            twice = next(one for one, other in itertools.pairwise(keys) if one == other)
            raise ValueError(f"{twice.decode()} would be written twice into {self._directory}")
        nodes = _TreeFile(self)
        try:
            root = tree.write(self._entries, nodes.append)
            nodes.close()
        finally:
            nodes.abandon()
        return root


class _TreeFile:
    """Writes the nodes of the tree into one data file, or into several if their size is limited."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._file: DataFile | None = None

    def append(self, node: bytes) -> Place:
        database = self._database
        limit = database._target if database._max is None else min(database._target, database._max)
        if self._file is not None and self._file.size + len(node) > limit:
            self.close()
        if self._file is None:
            self._file = DataFile(database._directory)
        return self._file.append_bytes(node)

    def close(self) -> None:
        if self._file is not None:
            self._database._close_later(self._file)
            self._file = None

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _write_manifest(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, content, path)
    except BaseException:
        os.close(descriptor)
        raise
    durable.sync_and_close(descriptor, path)
