"""Entries → the key-value store of one directory. Runs on the thread that writes; blocks until everything is on disk.

What is not compressed goes into an OCDBT database by our own writer; the rest, compressed chunks, chunks in files of their own,
and everything in buckets, through TensorStore.
"""

import functools
import math
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.documents import DamagedError
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.storage import faults, stores
from jaxckpt.storage.arrays import tensorstore_writer
from jaxckpt.storage.arrays.database import Chunk, Database
from jaxckpt.storage.item import layout, tree_metadata
from jaxckpt.storage.item.content import ArrayContent, Blocks, Entry, Piece, Snapshot, padded
from jaxckpt.storage.ocdbt.encode import INLINE_BYTES
from jaxckpt.storage.ocdbt.index import Index
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST, Place, UnknownFormatError
from jaxckpt.storage.ocdbt.model import Entry as Value
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.stores.inside import Inside


def write(directory: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes a snapshot into an existing, empty directory as an Orbax PyTree item: arrays, strings, tree metadata.

    Args:
      directory: where to.
      snapshot: what.
      settings: how.

    Raises:
      OSError: with errno, e.g. ENOSPC.
      TimeoutError: after `settings.timeout_secs`.
      BaseException: whatever the source of a piece raised.
    """
    write_arrays(directory, snapshot.entries, settings, snapshot.groups)
    with quiet_gc():
        tree_metadata.write(directory, snapshot, settings)


def write_arrays(
    directory: str,
    entries: Sequence[Entry],
    settings: WriteSettings,
    groups: Sequence[Sequence[Entry]] | None = None,
) -> None:
    """Writes the arrays among `entries`, and nothing else: a database, or a file a chunk if `max_file_size` is small.

    Several processes may write different chunks of the same arrays: databases into directories of their own, which `merge` then puts
    together, and files into the same directory, at the same time.

    Args:
      directory: where to; made if it is not there.
      entries: what.
      settings: how.
      groups: the same in groups that share no data files; see `Snapshot.groups`.

    Raises:
      OSError: with errno.
      TimeoutError: after `settings.timeout_secs`.
      BaseException: whatever the source of a piece raised.
    """
    stores.make_directory(directory)
    deadline = Deadline(settings.timeout_secs, f"Writing {directory}")
    if stores.is_bucket(directory) or not layout.uses_ocdbt(settings) or settings.compression is not None:
        # TensorStore begins a new data file with every transaction. An array without elements is in no group.
        for group in (entries,) if groups is None else (*groups, _without_pieces(entries)):
            tensorstore_writer.write(directory, group, settings, deadline)
        if stores.is_bucket(directory):
            return
        if not layout.uses_ocdbt(settings) or os.path.exists(os.path.join(directory, OCDBT_MANIFEST)):
            return
        entries, groups = (), None  # TensorStore makes no database of nothing.
    database = Database(
        directory,
        layout.target_data_file_size(settings),
        settings.max_file_size,
        settings.memory_limit_bytes,
        deadline,
    )
    database.write(_values(entries, settings) if groups is None else _grouped_values(entries, groups, settings))


def merge(directory: str, parts: Sequence[str], timeout_secs: float = 1200.0) -> None:
    """Makes one database out of those in subdirectories. It refers to their data files, which stay where they are.

    Args:
      directory: where the new database is made, and the parts are.
      parts: names of the subdirectories, such as ``ocdbt.process_0``. Where several hold a key, the first wins.
      timeout_secs: bound for everything.

    Raises:
      OSError: with errno; ENOENT if a part is missing.
      CorruptCheckpointError: a part is damaged.
      TimeoutError: after `timeout_secs`.
    """
    deadline = Deadline(timeout_secs, f"Merging {directory}")
    if stores.is_bucket(directory):
        tensorstore_writer.merge(directory, parts, deadline)
        return
    merged: dict[bytes, Value] = {}
    try:
        for part in parts:
            for key, value in Index(Inside(os.path.join(directory, part)), deadline.left).entries():
                if isinstance(value, Place):
                    value = value._replace(file=f"{part}/{value.file}")
                merged.setdefault(key, Value(key, value))
    except UnknownFormatError:
        tensorstore_writer.merge(directory, parts, deadline)
        return
    except DamagedError as error:
        raise faults.reading(error, os.path.join(directory, part), directory) from error
    Database(directory, WriteSettings().target_data_file_size, None, 0, deadline).write(iter(merged.values()))


def _without_pieces(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if isinstance(entry.content, ArrayContent) and 0 in entry.content.shape]


def _grouped_values(
    entries: Iterable[Entry], groups: Sequence[Sequence[Entry]], settings: WriteSettings
) -> Iterator[Chunk | Value]:
    """Yields what the database holds, the chunks group by group."""
    yield from (value for value in _values(_without_pieces(entries), settings))
    described: set[str] = set()
    for number, group in enumerate(groups):
        for entry in group:
            if 0 not in entry.content.shape:  # type: ignore[union-attr]
                yield from _values((entry,), settings, group=number, is_described=entry.param_name in described)
                described.add(entry.param_name)


def _values(
    entries: Iterable[Entry], settings: WriteSettings, *, group: int | None = None, is_described: bool = False
) -> Iterator[Chunk | Value]:
    """Yields what the database holds: of every array its zarr.json (unless `is_described`), and its chunks."""
    for entry in entries:
        content = entry.content
        if not isinstance(content, ArrayContent):
            continue
        path = layout.array_path(entry.param_name)
        chunks = layout.chunks_of(content, settings)
        if not is_described:
            yield Value((path + "zarr.json").encode(), layout.metadata_json(content.shape, content.dtype, chunks))
        if 0 in content.shape:
            continue
        for piece in content.pieces:
            for index, start, shape in layout.chunks_in(piece.start, piece.shape, chunks, content.shape):
                load = functools.partial(_load, entry, piece, start, shape, chunks, content.dtype)
                nbytes = math.prod(chunks) * content.dtype.itemsize
                key = path + layout.chunk_key(index)
                if group is None and not piece.is_remote and nbytes + layout.CHECKSUM_BYTES <= INLINE_BYTES:
                    yield Value(key.encode(), checksum.sealed(padded(piece.fetch(start, shape), chunks).tobytes()))
                else:
                    yield Chunk(key, nbytes, piece.is_remote, load, group)


def _load(
    entry: Entry,
    piece: Piece,
    start: tuple[int, ...],
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: np.dtype[np.generic],
) -> np.ndarray | Iterator[np.ndarray]:
    """Returns a chunk, contiguous, or its bytes in blocks; one that reaches over the edge of the array is filled up with zeros."""
    data = piece.stream(start, shape)
    if isinstance(data, Blocks):
        if data.shape == chunk and data.dtype == dtype:
            return data.blocks
        data = data.whole()
    if data.shape != shape or data.dtype != dtype:
        raise ValueError(f"{entry.name}: expected data of shape {shape} and {dtype}, got {data.shape} and {data.dtype}")
    return padded(data, chunk)
