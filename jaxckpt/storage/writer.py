"""Entries → the key-value store of one directory. Runs on the thread that writes; blocks until everything is on disk.

Small arrays are encoded here and go straight into the store; large ones through TensorStore's zarr driver, which checksums and writes
chunks in parallel without the GIL and, uncompressed, without copying them.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxckpt.storage import kvstore, layout, tree_metadata
from jaxckpt.storage.content import ArrayContent, Entry, Piece, Snapshot
from jaxckpt.storage.deadline import Deadline
from jaxckpt.storage.settings import WriteSettings


def write(directory: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes a snapshot into an existing, empty directory as an Orbax PyTree item: arrays, strings, tree metadata.

    Args:
      directory: where to.
      snapshot: what.
      settings: how.

    Raises:
      OSError: with errno, e.g. ENOSPC.
      TimeoutError: after `settings.timeout_secs`.
    """
    write_arrays(directory, snapshot.entries, settings)
    tree_metadata.write(
        directory, snapshot, use_ocdbt=layout.uses_ocdbt(settings), chunk_limit=layout.largest_chunk(settings)
    )


def write_arrays(directory: str, entries: Iterable[Entry], settings: WriteSettings) -> None:
    """Writes the arrays of entries, as far as they have pieces, into an existing directory.

    Raises:
      As `write`.
    """
    deadline = Deadline(settings.timeout_secs, f"Writing {directory}")
    _ArrayWriter(directory, settings, deadline).write(entries)


def merge(directory: str, parts: Sequence[str]) -> None:
    """Makes one database out of those that several processes wrote, whose data files stay where they are.

    Args:
      directory: where the database is made.
      parts: names of the directories below it that hold a database each.
    """
    import tensorstore as ts

    context = kvstore.context()
    parent = ts.KvStore.open(kvstore.ocdbt(directory, 2 << 30), context=context).result()
    transaction = ts.Transaction(atomic=True)
    copies = []
    for part in parts:
        child = ts.KvStore.open(kvstore.existing(os.path.join(directory, part)), context=context).result()
        copies.append(child.experimental_copy_range_to(parent.with_transaction(transaction)))
    for copy in copies:
        copy.result()
    transaction.commit_async().result()


class _ArrayWriter:
    """Writes arrays in batches, each one transaction, so that no more than the memory limit is held at a time."""

    def __init__(self, directory: str, settings: WriteSettings, deadline: Deadline) -> None:
        self._directory = directory
        self._settings = settings
        self._deadline = deadline
        self._context = kvstore.context()
        self._ocdbt = layout.uses_ocdbt(settings)
        self._limit = layout.largest_chunk(settings)
        self._spec = (
            kvstore.ocdbt(directory, layout.target_data_file_size(settings)) if self._ocdbt else kvstore.base(directory)
        )

    def write(self, entries: Iterable[Entry]) -> None:
        import tensorstore as ts

        store = self._deadline.wait(ts.KvStore.open(self._spec, context=self._context))
        for batch in _batches(entries, self._settings.memory_limit_bytes):
            self._write_batch(store, batch)

    def _write_batch(self, store: Any, batch: list[tuple[Entry, ArrayContent, list[Piece]]]) -> None:
        import tensorstore as ts

        # Without a transaction every key would rewrite the path to the root of OCDBT's B-tree. Plain files need none.
        transaction = ts.Transaction(atomic=False) if self._ocdbt else None
        if transaction is not None:
            store = store.with_transaction(transaction)
        pending: list[Any] = []
        large = []
        for entry, content, pieces in batch:
            if content.nbytes <= min(layout.SMALL_BYTES, self._limit):
                _write_small(store, entry.param_name, content, pieces, pending)
            else:
                large.append((self._open(entry.param_name, content, transaction), pieces))
        for opening, pieces in large:
            array = self._deadline.wait(opening)
            for piece in pieces:
                for start, shape in _boxes(
                    piece, array.chunk_layout.write_chunk.shape if callable(piece.source) else piece.shape
                ):
                    box = tuple(slice(first, first + extent) for first, extent in zip(start, shape, strict=True))
                    written = array[box].write(piece.fetch(start, shape), can_reference_source_data_indefinitely=True)
                    pending.append(written.copy if transaction is not None else written.commit)
        for future in pending:
            self._deadline.wait(future)
        if transaction is not None:
            self._deadline.wait(transaction.commit_async())

    def _open(self, name: str, content: ArrayContent, transaction: Any) -> Any:
        import tensorstore as ts

        chunks = layout.chunk_shape(content.shape, content.write_shape, content.dtype.itemsize, self._limit)
        spec = {
            "driver": "zarr3",
            "kvstore": {**self._spec, "path": layout.array_path(name)}
            if self._ocdbt
            else kvstore.base(os.path.join(self._directory, name)),
            "metadata": layout.metadata(content.shape, content.dtype, chunks, layout.compression(self._settings)),
            "store_data_equal_to_fill_value": True,
        }
        return ts.open(spec, create=True, open=True, context=self._context, transaction=transaction)


def _batches(entries: Iterable[Entry], limit: int) -> Iterator[list[tuple[Entry, ArrayContent, list[Piece]]]]:
    """Groups pieces, in order, so that a batch holds at most `limit` bytes (or one piece)."""
    batch: list[tuple[Entry, ArrayContent, list[Piece]]] = []
    held = 0
    for entry in entries:
        content = entry.content
        if not isinstance(content, ArrayContent):
            continue
        batch.append((entry, content, []))
        for piece in content.pieces:
            nbytes = math.prod(piece.shape) * content.dtype.itemsize
            if held and held + nbytes > limit:
                yield batch
                batch, held = [(entry, content, [])], 0
            batch[-1][2].append(piece)
            held += nbytes
    yield batch


def _write_small(store: Any, name: str, content: ArrayContent, pieces: list[Piece], pending: list[Any]) -> None:
    """Puts an array whose pieces are its chunks into the store, encoded by hand."""
    import google_crc32c

    pending.append(
        store.write(
            f"{layout.array_path(name)}zarr.json",
            layout.metadata_json(content.shape, content.dtype, content.write_shape),
        )
    )
    if 0 in content.shape:
        return
    for piece in pieces:
        data = np.ascontiguousarray(piece.fetch(piece.start, piece.shape)).tobytes()
        index = tuple(start // extent for start, extent in zip(piece.start, content.write_shape, strict=True))
        pending.append(
            store.write(
                layout.array_path(name) + layout.chunk_key(index),
                data + google_crc32c.value(data).to_bytes(4, "little"),
            )
        )


def _boxes(piece: Piece, extents: Iterable[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yields start and shape of the parts of a piece."""
    ranges = [
        range(start, start + extent, max(1, step))
        for start, extent, step in zip(piece.start, piece.shape, extents, strict=True)
    ]
    for start in itertools.product(*ranges):
        yield start, tuple(min(step.step, step.stop - first) for first, step in zip(start, ranges, strict=True))
