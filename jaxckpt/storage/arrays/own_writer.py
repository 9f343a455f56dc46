"""Writes arrays into an OCDBT database with jaxckpt's own code. It writes local, uncompressed databases; `writer` chooses when."""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.blocks import blocks, scratch
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.documents import DamagedError
from jaxckpt._lib.giving_way import GivingWay
from jaxckpt._lib.quiet_gc import quiet_gc
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
# So many values that are stored in the index are made at once.
_LIST = 4096
# A chunk of a piece: its key relative to the array, its start, and its shape.
_ChunkOfPiece: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...]]
# A NamedTuple's own constructor takes twice as long, and thousands of leaves need several.
_new_value = tuple.__new__


def write(
    directory: str,
    entries: Sequence[Entry],
    groups: Sequence[Sequence[Entry]] | None,
    settings: WriteSettings,
    deadline: Deadline,
    transfer: Transfer,
    parts: Callable[[], Sequence[str]] | None = None,
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
        None if there are none.
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
    own = _in_lists(_values(entries, settings) if groups is None else _grouped_values(entries, groups, settings))
    database.write(own if parts is None else _with_parts(own, directory, parts, deadline))


def _in_lists(values: Iterator[Chunk | Value]) -> Iterator[Chunk | list[Value]]:
    """Yields the chunks among values one by one, and the others in lists.

    There are thousands of the others, and no garbage among them, so the cyclic collector pauses while a list is made.
    """
    chunk: Chunk | None = None
    is_over = False
    while not is_over:
        batch: list[Value] = []
        with quiet_gc():
            for value in itertools.islice(values, _LIST):
                if isinstance(value, Chunk):
                    chunk = value
                    break
                batch.append(value)
            else:
                is_over = len(batch) < _LIST
        if batch:
            yield batch
        if chunk is not None:
            yield chunk
            chunk = None


def _with_parts(
    own: Iterable[Chunk | list[Value]], directory: str, parts: Callable[[], Sequence[str]], deadline: Deadline
) -> Iterator[Chunk | list[Value]]:
    """Yields values, and then those of databases in subdirectories.

    Args:
      own: the values, as `_in_lists` yields them.
      directory: directory of the database.
      parts: as for `write`, not None.
      deadline: when the write gives up.
    """
    # Processes that write parts of one array all describe it.
    described = set()
    for value in own:
        if isinstance(value, list):
            described.update([key for key, _ in value])
        yield value
    yield [value for key, value in _merged(directory, parts(), deadline).items() if key not in described]


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
    values = list(_merged(directory, parts, deadline).values())
    Database(directory, WriteSettings().target_data_file_size, None, 0, deadline).write(iter([values]))


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
    forms: dict[tuple[Any, ...], _Form] = {}
    for entry in entries:
        content = entry.content
        if not isinstance(content, ArrayContent):
            continue
        kind = content.shape, content.dtype, content.write_shape, content.chunk_byte_size
        form = forms.get(kind)
        if form is None:
            form = forms[kind] = _form(content, settings)
        path = layout.array_path(entry.param_name)
        chunks, nbytes = form.chunks, form.nbytes
        for piece in content.pieces if form.has_elements else ():
            is_inline = group is None and form.fits_index and not piece.is_remote
            for key, start, shape in form.chunks_of(piece):
                if is_inline:
                    data = padded(piece.fetch(start, shape), chunks)
                    yield _new_value(Value, ((path + key).encode(), checksum.sealed(data.tobytes())))
                else:
                    load = functools.partial(_load, entry, piece, start, shape, chunks, content.dtype)
                    yield Chunk(path + key, nbytes, piece.is_remote, load, group)
        # After the chunks, as in the order of the keys: then there is little to sort.
        if not is_described:
            yield _new_value(Value, ((path + "zarr.json").encode(), form.metadata))


class _Form(NamedTuple):
    """What all arrays of one shape, dtype and division into pieces have in common. It is worked out once for thousands of leaves.

    Attributes:
      shape: shape of the arrays.
      chunks: shape of their chunks.
      nbytes: size of a chunk in bytes.
      metadata: their zarr.json.
      has_elements: whether they have any.
      fits_index: whether their chunks are small enough to be stored in the index.
      only: if an array is a single chunk: its key relative to the array, its start and its shape; otherwise None.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    nbytes: int
    metadata: bytes
    has_elements: bool
    fits_index: bool
    only: list[_ChunkOfPiece] | None

    def chunks_of(self, piece: Piece) -> Iterable[_ChunkOfPiece]:
        """Returns the chunks of a piece: their keys relative to the array, their starts and their shapes."""
        if self.only is not None and piece.shape == self.shape:
            return self.only
        found = layout.chunks_in(piece.start, piece.shape, self.chunks, self.shape)
        return ((layout.chunk_key(index), start, shape) for index, start, shape in found)


def _form(content: ArrayContent, settings: WriteSettings) -> _Form:
    shape = content.shape
    chunks = layout.chunks_of(content, settings)
    nbytes = math.prod(chunks) * content.dtype.itemsize
    first = (0,) * len(shape)
    return _Form(
        shape,
        chunks,
        nbytes,
        layout.metadata_json(shape, content.dtype, chunks),
        0 not in shape,
        nbytes + layout.CHECKSUM_BYTES <= INLINE_BYTES,
        [(layout.chunk_key(first), first, shape)] if chunks == shape else None,
    )


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
