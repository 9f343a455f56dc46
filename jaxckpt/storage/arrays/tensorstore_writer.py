"""Writes arrays through TensorStore: all arrays in buckets, compressed arrays, and arrays whose chunks are files of their own."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.threads import Threads
from jaxckpt._lib.transfer import Transfer
from jaxckpt.storage import faults, stores
from jaxckpt.storage.arrays import kvstore
from jaxckpt.storage.arrays.database import REMOTE_CHUNKS
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.content import ArrayContent, Entry, Piece, padded
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST
from jaxckpt.storage.settings import WriteSettings


class _Part(NamedTuple):
    """A part of an array that is written in one step: a whole piece, or one chunk if the piece is remote."""

    entry: Entry
    content: ArrayContent
    piece: Piece
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.content.dtype.itemsize


def write(
    directory: str, entries: Iterable[Entry], settings: WriteSettings, deadline: Deadline, transfer: Transfer
) -> None:
    """Writes the arrays among `entries` in batches, so that the memory limit holds.

    Args:
      directory: directory of the item, which exists.
      entries: the leaves. Those that are not arrays are left out.
      settings: how to write them.
      deadline: when the write gives up.
      transfer: counts the bytes.

    Raises:
      OSError: with errno.
      ValueError: TensorStore's error for a failed write.
      TimeoutError: after the deadline.
      BaseException: the error that the source of a piece raised.
    """
    writer = _ArrayWriter(directory, settings, deadline)
    for metadata, boxes in _batches(entries, settings):
        writer.write(metadata, boxes)
        transfer.add(sum(box.nbytes for box in boxes))


def write_nothing(directory: str, settings: WriteSettings, deadline: Deadline) -> None:
    """Makes a database without keys.

    Args:
      directory: directory of the database, which exists.
      settings: how to write it.
      deadline: when the write gives up.

    Raises:
      ValueError: TensorStore's error for a failed write.
      TimeoutError: after the deadline.
    """
    import tensorstore as ts

    spec = kvstore.ocdbt(directory, layout.target_data_file_size(settings))
    store = deadline.wait(ts.KvStore.open(spec, context=kvstore.context()))
    # TensorStore writes the manifest with the first key.
    deadline.wait(store.write("nothing", b""))
    deadline.wait(store.write("nothing", None))


def merge(directory: str, parts: Sequence[str], deadline: Deadline) -> None:
    """Merges databases. See `jaxckpt.storage.arrays.writer.merge`.

    Args:
      directory: directory of the new database and of the parts.
      parts: names of the subdirectories with the databases to merge.
      deadline: when the merge gives up.

    Raises:
      OSError: with errno; ENOENT if a part is missing.
      CorruptCheckpointError: a part is damaged.
      TimeoutError: after the deadline.
    """
    import tensorstore as ts

    if stores.is_local(directory):
        for part in parts:
            # TensorStore takes a directory without a manifest for a directory of plain files, so a missing manifest must raise here.
            os.stat(os.path.join(directory, part, OCDBT_MANIFEST))
    context = kvstore.context()
    spec = kvstore.ocdbt(directory, WriteSettings().target_data_file_size)
    transaction = ts.Transaction(atomic=True)
    merged = deadline.wait(ts.KvStore.open(spec, context=context)).with_transaction(transaction)
    # If several parts hold a key, the last copied part wins. That must be the first one of `parts`.
    for part in reversed(parts):
        where = os.path.join(directory, part)
        try:
            store = deadline.wait(ts.KvStore.open(kvstore.existing(where), context=context))
            deadline.wait(store.experimental_copy_range_to(merged))
        except ValueError as error:
            raise faults.reading(error, where, directory) from error
    deadline.wait(transaction.commit_async())


class _ArrayWriter:
    def __init__(self, directory: str, settings: WriteSettings, deadline: Deadline) -> None:
        import tensorstore as ts

        self._directory = directory
        self._settings = settings
        self._deadline = deadline
        self._context = kvstore.context()
        self._ocdbt = layout.uses_ocdbt(settings)
        self._spec = (
            kvstore.ocdbt(directory, layout.target_data_file_size(settings)) if self._ocdbt else kvstore.base(directory)
        )
        self._store = deadline.wait(ts.KvStore.open(self._spec, context=self._context))

    def write(self, arrays: Sequence[tuple[Entry, ArrayContent]], boxes: Sequence[_Part]) -> None:
        """Writes one batch.

        Args:
          arrays: the arrays whose metadata are written.
          boxes: the parts of arrays that are written.
        """
        import tensorstore as ts

        fetched = self._fetch(boxes)
        # Without a transaction, every key would rewrite the path to the root of OCDBT's B-tree. Plain files do not need one.
        transaction = ts.Transaction(atomic=False) if self._ocdbt else None
        store = self._store if transaction is None else self._store.with_transaction(transaction)
        pending: list[Any] = []
        try:
            self._start(arrays, boxes, fetched, store, transaction, pending)
            for future in pending:
                self._deadline.wait(future)
            if transaction is not None:
                self._deadline.wait(transaction.commit_async())
        except BaseException:
            if transaction is not None:
                transaction.abort()
            # The caller will remove the files, so wait for the writes that may still make some.
            for future in pending:
                with contextlib.suppress(Exception):
                    self._deadline.wait(future)
            raise

    def _start(
        self,
        arrays: Sequence[tuple[Entry, ArrayContent]],
        boxes: Sequence[_Part],
        fetched: Sequence[np.ndarray],
        store: Any,
        transaction: Any,
        pending: list[Any],
    ) -> None:
        """Starts the writes of a batch, and adds their futures to `pending`. `fetched` has the data of `boxes`."""
        opening: dict[str, Any] = {}
        for entry, content in arrays:
            if self._is_small(content):
                text = layout.metadata_json(content.shape, content.dtype, content.write_shape)
                pending.append(store.write(f"{layout.array_path(entry.param_name)}zarr.json", text))
            else:
                opening[entry.param_name] = self._open(entry.param_name, content, transaction)
                pending.append(opening[entry.param_name])
        for box, array in zip(boxes, fetched, strict=True):
            name = box.entry.param_name
            if self._is_small(box.content):
                index = tuple(start // extent for start, extent in zip(box.start, box.content.write_shape, strict=True))
                data = checksum.sealed(padded(array, box.content.write_shape).tobytes())
                pending.append(store.write(layout.array_path(name) + layout.chunk_key(index), data))
                continue
            if name not in opening:
                opening[name] = self._open(name, box.content, transaction)
                pending.append(opening[name])
            target = self._deadline.wait(opening[name])[
                tuple(slice(start, start + extent) for start, extent in zip(box.start, box.shape, strict=True))
            ]
            written = target.write(array, can_reference_source_data_indefinitely=True)
            pending.append(written.copy if transaction is not None else written.commit)

    def _is_small(self, content: ArrayContent) -> bool:
        return content.nbytes <= min(layout.SMALL_BYTES, layout.largest_chunk(self._settings))

    def _fetch(self, boxes: Sequence[_Part]) -> list[np.ndarray]:
        """Returns the data of boxes. Fetches remote pieces concurrently."""
        found: dict[int, np.ndarray] = {}
        waiting = [position for position, box in enumerate(boxes) if box.piece.is_remote]
        pending = iter(waiting)

        def work() -> None:
            while not threads.stopped and (position := next(pending, None)) is not None:
                found[position] = boxes[position].piece.fetch(boxes[position].start, boxes[position].shape)

        if waiting:
            threads = Threads(self._deadline, f"Fetching for {self._directory}")
            threads.at_least(len(waiting), work)
            threads.join()
        return [
            found[position] if position in found else box.piece.fetch(box.start, box.shape)
            for position, box in enumerate(boxes)
        ]

    def _open(self, name: str, content: ArrayContent, transaction: Any) -> Any:
        import tensorstore as ts

        spec = {
            "driver": "zarr3",
            "kvstore": {**self._spec, "path": layout.array_path(name)}
            if self._ocdbt
            else kvstore.base(os.path.join(self._directory, name)),
            "metadata": layout.metadata(
                content.shape,
                content.dtype,
                layout.chunks_of(content, self._settings),
                layout.compression(self._settings),
            ),
            "store_data_equal_to_fill_value": True,
        }
        return ts.open(spec, create=True, open=True, context=self._context, transaction=transaction)


def _boxes(entry: Entry, content: ArrayContent, settings: WriteSettings) -> Iterator[_Part]:
    if 0 in content.shape:
        return
    chunks = layout.chunks_of(content, settings)
    for piece in content.pieces:
        # A small array is written chunk by chunk.
        if not piece.is_remote and (chunks != content.write_shape or piece.shape == chunks):
            yield _Part(entry, content, piece, piece.start, piece.shape)
            continue
        for _, start, shape in layout.chunks_in(piece.start, piece.shape, chunks, content.shape):
            yield _Part(entry, content, piece, start, shape)


def _batches(
    entries: Iterable[Entry], settings: WriteSettings
) -> Iterator[tuple[list[tuple[Entry, ArrayContent]], list[_Part]]]:
    """Groups boxes, in order, into batches with at most `settings.memory_limit_bytes` (or one box), and at most a few remote boxes.

    Yields:
      For each batch: the arrays whose first box may be in it, and its boxes.
    """
    arrays: list[tuple[Entry, ArrayContent]] = []
    boxes: list[_Part] = []
    held = remote = 0
    for entry in entries:
        content = entry.content
        if not isinstance(content, ArrayContent):
            continue
        arrays.append((entry, content))
        for box in _boxes(entry, content, settings):
            if boxes and (
                held + box.nbytes > settings.memory_limit_bytes or remote + box.piece.is_remote > REMOTE_CHUNKS
            ):
                yield arrays, boxes
                arrays, boxes, held, remote = [], [], 0, 0
            boxes.append(box)
            held += box.nbytes
            remote += box.piece.is_remote
    yield arrays, boxes
