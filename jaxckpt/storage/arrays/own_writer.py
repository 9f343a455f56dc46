"""Writes arrays into an OCDBT database with jaxckpt's own code. It writes local, uncompressed databases; `writer` chooses when."""

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.blocks import blocks, scratch
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.documents import DamagedError
from jaxckpt._lib.giving_way import GivingWay
from jaxckpt._lib.transfer import Transfer
from jaxckpt.storage import faults
from jaxckpt.storage.arrays.database import Chunk, Database
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.content import ArrayContent, Blocks, Entry, Piece, padded
from jaxckpt.storage.ocdbt.encode import INLINE_BYTES
from jaxckpt.storage.ocdbt.index import Index
from jaxckpt.storage.ocdbt.model import Entry as Value
from jaxckpt.storage.ocdbt.model import Place
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.stores.inside import Inside

# What is copied is checksummed and written while it is in the cache that each core has for itself.
_COPY_BYTES = 256 << 10
# An asynchronous save gives way to the program for this part of its time limit. It must not fail because other threads are always busy.
_GIVING_WAY = 0.1


def write(
    directory: str,
    entries: Sequence[Entry],
    groups: Sequence[Sequence[Entry]] | None,
    settings: WriteSettings,
    deadline: Deadline,
    transfer: Transfer,
    parts: Callable[[], Sequence[str]] = tuple,
    part: str = "",
) -> None:
    """Writes the arrays among `entries` as a new database.

    Args:
      directory: directory of the database, which exists.
      entries: the leaves. Those that are not arrays are left out.
      groups: the array entries in groups that share no data files; see `Snapshot.groups`.
      settings: how to write them.
      deadline: when the write gives up.
      transfer: counts the bytes.
      parts: called after the last entry; returns the names of subdirectories with databases whose values become values of this one.
      part: as for `Database`.

    Raises:
      UnknownFormatError: a part has a format that only TensorStore reads.
      CorruptCheckpointError: a part is damaged.
      OSError: with errno.
      TimeoutError: after the deadline.
      BaseException: the error that the source of a piece raised.
    """
    database = Database(
        directory,
        layout.target_data_file_size(settings),
        settings.max_file_size,
        settings.memory_limit_bytes,
        deadline,
        transfer,
        GivingWay(_GIVING_WAY * settings.timeout_secs) if settings.asynchronous else None,
        part,
    )
    own = _values(entries, settings) if groups is None else _grouped_values(entries, groups, settings)
    database.write(_with_parts(own, directory, parts, deadline))


def _with_parts(
    own: Iterable[Chunk | Value], directory: str, parts: Callable[[], Sequence[str]], deadline: Deadline
) -> Iterator[Chunk | Value]:
    """Yields values, and then those of databases in subdirectories.

    Args:
      own: the values.
      directory: directory of the database.
      parts: as for `write`.
      deadline: when the write gives up.
    """
    # Processes that write parts of one array all describe it.
    described = set()
    for value in own:
        if isinstance(value, Value):
            described.add(value.key)
        yield value
    yield from (value for key, value in _merged(directory, parts(), deadline).items() if key not in described)


def merge(directory: str, parts: Sequence[str], deadline: Deadline) -> None:
    """Merges databases. See `writer.merge`.

    Args:
      directory: directory of the new database and of the parts.
      parts: names of the subdirectories with the databases to merge.
      deadline: when the merge gives up.

    Raises:
      UnknownFormatError: a part has a format that only TensorStore reads.
      CorruptCheckpointError: a part is damaged.
      OSError: with errno.
      TimeoutError: after the deadline.
    """
    values = iter(_merged(directory, parts, deadline).values())
    Database(directory, WriteSettings().target_data_file_size, None, 0, deadline).write(values)


def _merged(directory: str, parts: Sequence[str], deadline: Deadline) -> dict[bytes, Value]:
    """Returns the values of databases in subdirectories, by their keys. If several hold a key, the first one wins."""
    merged: dict[bytes, Value] = {}
    for part in parts:
        try:
            for key, value in Index(Inside(os.path.join(directory, part)), deadline.left).entries():
                if isinstance(value, Place):
                    value = value._replace(file=f"{part}/{value.file}")
                merged.setdefault(key, Value(key, value))
        except DamagedError as error:
            raise faults.reading(error, os.path.join(directory, part), directory) from error
    return merged


def without_pieces(entries: Iterable[Entry]) -> list[Entry]:
    """Returns the entries of arrays without elements."""
    return [entry for entry in entries if isinstance(entry.content, ArrayContent) and 0 in entry.content.shape]


def _grouped_values(
    entries: Iterable[Entry], groups: Sequence[Sequence[Entry]], settings: WriteSettings
) -> Iterator[Chunk | Value]:
    """Yields the values of the database, with the chunks group by group."""
    yield from (value for value in _values(without_pieces(entries), settings))
    described: set[str] = set()
    for number, group in enumerate(groups):
        for entry in group:
            if 0 not in entry.content.shape:  # type: ignore[union-attr]
                yield from _values((entry,), settings, group=number, is_described=entry.param_name in described)
                described.add(entry.param_name)


def _values(
    entries: Iterable[Entry], settings: WriteSettings, *, group: int | None = None, is_described: bool = False
) -> Iterator[Chunk | Value]:
    """Yields the values of the database: for every array its zarr.json (unless `is_described`) and its chunks."""
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
    """Returns a chunk, contiguous, or its bytes in blocks. Outside of the array, a chunk at its edge is filled with zeros."""
    data = piece.stream(start, shape)
    if isinstance(data, Blocks):
        if data.shape == chunk and data.dtype == dtype:
            return data.blocks
        data = data.whole()
    if data.shape != shape or data.dtype != dtype:
        raise ValueError(f"{entry.name}: expected data of shape {shape} and {dtype}, got {data.shape} and {data.dtype}")
    if data.shape == chunk and data.flags.c_contiguous:
        return data
    return _copied(data, chunk)


def _copied(data: np.ndarray, chunk: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields the bytes of a chunk whose data is not contiguous, or does not fill it. Each block is valid until the next one is asked for.

    Args:
      data: the elements of the chunk that are in the array.
      chunk: shape of the chunk. Elements outside of the array are zeros.
    """
    itemsize = data.dtype.itemsize
    for block in blocks(chunk, itemsize, _COPY_BYTES):
        shape = tuple([span.stop - span.start for span in block])
        memory = scratch(math.prod(shape) * itemsize)
        array = memory.view(data.dtype).reshape(shape)
        found = data[block]
        if found.shape == shape:
            array[...] = found
        else:
            array[...] = 0
            array[tuple([slice(0, extent) for extent in found.shape])] = found
        yield memory
