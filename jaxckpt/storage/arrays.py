"""The arrays of an existing checkpoint. What jaxckpt wrote is read from its data files directly; the rest by TensorStore."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import faults, files, kvstore, layout, ocdbt_chunks, tree_metadata
from jaxckpt.storage.aligned import aligned_empty
from jaxckpt.storage.deadline import Deadline
from jaxckpt.storage.ocdbt_chunks import Box, Read, ReadError
from jaxckpt.storage.ocdbt_format import DamagedError, Place, UnknownFormatError
from jaxckpt.storage.ocdbt_index import Index, read_place


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """What the store says of an array.

    Attributes:
      shape, dtype: of the array.
      chunk_shape: extents of its chunks, or None for formats that only TensorStore decodes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_shape: tuple[int, ...] | None

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class StoredArrays:
    """Reads the arrays of one checkpoint."""

    def __init__(self, path: str, directory: str, tree: tree_metadata.StoredTree, timeout_secs: float) -> None:
        """Reads nothing yet.

        Args:
          path: of the checkpoint, for messages.
          directory: of its tree.
          tree: its tree metadata.
          timeout_secs: bound for every call.
        """
        self._path = path
        self._directory = directory
        self._tree = tree
        self._timeout_secs = timeout_secs
        self._begin()
        self._names = {leaf.param_name: leaf.name for leaf in tree.leaves}
        self._context = kvstore.context()
        self._kvstore: Any = None
        self._index: Index | None = None
        self._index_read = False
        self._infos: dict[str, ArrayInfo] = {}

    def _begin(self) -> None:
        """Every call has the whole time: a reader may stay open for hours."""
        self._deadline = Deadline(self._timeout_secs, f"Reading {self._path}")

    def infos(self, names: Sequence[str]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of arrays, by Orbax's name.

        Raises:
          CorruptCheckpointError: naming the leaf.
          OSError: the checkpoint cannot be read.
          TimeoutError: after the timeout.
        """
        self._begin()
        wanted = [name for name in names if name not in self._infos]
        if wanted and self._tree.use_zarr3:
            self._parse_all(wanted, self._metadata(wanted))
        elif wanted:
            opened = [(name, self._open(name)) for name in wanted]
            for name, opening in opened:
                array = self._wait(opening, name)
                self._infos[name] = ArrayInfo(tuple(array.shape), np.dtype(array.dtype.numpy_dtype), None)
        return {name: self._infos[name] for name in names}

    def read(
        self, requests: Sequence[tuple[str, Box | None]], into: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Reads arrays, or boxes of them.

        Args:
          requests: Orbax's name of a leaf (of which `infos` was asked before), and the box, or None for the whole array.
          into: arrays that are filled, one for each request; None for new ones.

        Returns:
          The arrays, in order. New ones may be read-only.

        Raises:
          CorruptCheckpointError: naming the leaf.
          OSError: the checkpoint cannot be read.
          TimeoutError: after the timeout.
        """
        self._begin()
        out: list[Any] = [None] * len(requests)
        reads: list[Read] = []
        rest: list[tuple[int, str, Box | None]] = []
        index = self._open_index()
        for position, (name, box) in enumerate(requests):
            info = self._infos[name]
            if 0 in info.shape:
                out[position] = np.empty(info.shape, info.dtype)[box or ()]
            elif index is None or info.chunk_shape is None or not self._tree.complete_chunks:
                rest.append((position, name, box))
            else:
                try:
                    out[position] = _plan(index, name, info, box, reads, None if into is None else into[position])
                except (DamagedError, OSError) as error:
                    raise self._fault(error, name) from error
        try:
            ocdbt_chunks.run(self._directory, reads, self._deadline)
        except ReadError as error:
            cause = error.__cause__
            assert cause is not None
            raise self._fault(cause, error.owner) from cause
        self._read_with_tensorstore(rest, out)
        if into is None:
            return out
        for array, target in zip(out, into, strict=True):
            if array is not target:
                target[...] = array
        return list(into)

    def stream(self, name: str, box: Box) -> "ArrayStream | None":
        """Returns what reads a box of an array block by block; None if it has to be read as a whole.

        Args:
          name: Orbax's name of a leaf (of which `infos` was asked before).
          box: of the array.

        Raises:
          CorruptCheckpointError: naming the leaf.
          OSError: the checkpoint cannot be read.
        """
        self._begin()
        info = self._infos[name]
        index = self._open_index()
        if index is None or info.chunk_shape is None or 0 in info.shape or not self._tree.complete_chunks:
            return None
        reads: list[Read] = []
        try:
            array = _plan(index, name, info, box, reads, None)
            # Nothing is read into the array: it costs no memory.
            if len(reads) == 1 and reads[0].target.shape == array.shape and ocdbt_chunks.is_streamable(reads[0]):
                return ArrayStream(self, name, ocdbt_chunks.ChunkStream(self._directory, reads[0]))
        except (DamagedError, OSError) as error:
            raise self._fault(error, name) from error
        return None

    def _open_index(self) -> Index | None:
        """Returns the index of the database, or None if the checkpoint has none that is read here."""
        if self._index_read:
            return self._index
        if self._tree.use_zarr3 and not files.is_bucket(self._directory) and kvstore.is_ocdbt(self._directory):
            try:
                self._index = Index(self._directory, self._deadline)
            except UnknownFormatError:
                pass
            except (DamagedError, OSError) as error:
                where = os.path.join(self._directory, kvstore.OCDBT_MANIFEST)
                raise faults.reading(error, where, self._path) from error
        self._index_read = True
        return self._index

    def _metadata(self, names: Sequence[str]) -> Iterable[bytes | None]:
        """Yields the zarr.json of arrays, None for one that is missing."""
        index = self._open_index()
        if index is None:
            store = self._store()
            reads = [(name, store.read(f"{layout.array_path(name)}zarr.json")) for name in names]
            for name, read in reads:
                result = self._wait(read, name)
                yield result.value if result.state == "value" else None
            return
        for name in names:
            try:
                found = index.get(f"{layout.array_path(name)}zarr.json")
                yield read_place(self._directory, found) if isinstance(found, Place) else found
            except (DamagedError, OSError) as error:
                raise self._fault(error, name) from error

    def _parse_all(self, names: Sequence[str], metadata: Iterable[bytes | None]) -> None:
        parsed: dict[bytes, ArrayInfo] = {}
        for name, content in zip(names, metadata, strict=True):
            if content is None:
                raise CorruptCheckpointError.at(
                    self._names[name],
                    f"the checkpoint {self._path} is damaged: this array is missing. Restore another checkpoint.",
                )
            info = parsed.get(content)
            if info is None:
                try:
                    info = parsed[content] = _parse(content)
                except (ValueError, KeyError, TypeError) as error:
                    raise CorruptCheckpointError.at(
                        self._names[name],
                        f"the checkpoint {self._path} is damaged: its zarr.json is unreadable ({error}).",
                    ) from error
            self._infos[name] = info

    def _read_with_tensorstore(self, requests: Sequence[tuple[int, str, Box | None]], out: list[Any]) -> None:
        small = []
        large = []
        for position, name, box in requests:
            info = self._infos[name]
            if info.chunk_shape == info.shape and info.nbytes <= layout.SMALL_BYTES and self._tree.complete_chunks:
                key = layout.array_path(name) + layout.chunk_key((0,) * len(info.shape))
                small.append((position, name, box, self._store().read(key)))
            else:
                large.append((position, name, box))
        opening = {name: self._open(name) for name in dict.fromkeys(name for _, name, _ in large)}
        reading = []
        for position, name, box in large:
            array = self._wait(opening[name], name)
            reading.append((position, name, (array if box is None else array[box]).read()))
        for position, name, box, future in small:
            out[position] = self._decoded(name, self._wait(future, name))[box or ()]
        for position, name, future in reading:
            out[position] = self._wait(future, name)

    def _decoded(self, name: str, result: Any) -> np.ndarray:
        info = self._infos[name]
        try:
            if result.state != "value":
                raise DamagedError("its data is missing")
            return ocdbt_chunks.decode(result.value, info.dtype, info.shape)
        except DamagedError as error:
            raise self._fault(error, name) from error

    def _store(self) -> Any:
        import tensorstore as ts

        if self._kvstore is None:
            try:
                self._kvstore = self._deadline.wait(
                    ts.KvStore.open(kvstore.existing(self._directory), context=self._context)
                )
            except Exception as error:
                raise faults.reading(error, self._directory, self._path) from error
        return self._kvstore

    def _open(self, name: str) -> Any:
        import tensorstore as ts

        store = kvstore.existing(self._directory)
        store = (
            {**store, "path": layout.array_path(name)}
            if store["driver"] == "ocdbt"
            else kvstore.base(os.path.join(self._directory, name))
        )
        spec = {
            "driver": "zarr3" if self._tree.use_zarr3 else "zarr",
            "kvstore": store,
            "fill_missing_data_reads": not self._tree.complete_chunks,
        }
        return ts.open(spec, open=True, read=True, context=self._context)

    def _wait(self, future: Any, name: str) -> Any:
        try:
            return self._deadline.wait(future)
        except Exception as error:
            raise self._fault(error, name) from error

    def _fault(self, error: BaseException, name: str) -> Exception:
        return faults.reading(error, self._names[name], self._path)


class ArrayStream:
    """A box of an array, block by block."""

    def __init__(self, arrays: StoredArrays, name: str, chunk: ocdbt_chunks.ChunkStream) -> None:
        self.nbytes = chunk.nbytes
        self._arrays, self._name, self._chunk = arrays, name, chunk

    def fill(self, target: np.ndarray) -> None:
        """Fills an array of uint8 with the next bytes. Until all have been read, nothing is known to be right.

        Raises:
          CorruptCheckpointError: naming the leaf.
          OSError: the checkpoint cannot be read.
        """
        try:
            self._chunk.fill(target)
        except (DamagedError, OSError) as error:
            raise self._arrays._fault(error, self._name) from error


def _plan(
    index: Index, name: str, info: ArrayInfo, box: Box | None, reads: list[Read], target: np.ndarray | None
) -> np.ndarray:
    """Returns an array for a box, and adds what has to be read to fill it. It is `target` where there is anything to read."""
    chunk = info.chunk_shape
    assert chunk is not None
    if chunk == info.shape:
        found = index.get(layout.array_path(name) + layout.chunk_key((0,) * len(chunk)))
        if isinstance(found, bytes):  # Thousands of small arrays: nothing but this is done for one.
            whole = ocdbt_chunks.decode(found, info.dtype, chunk)
            return whole if box is None else whole[box]
    bounds = [(0, extent) for extent in info.shape]
    if box is not None:
        bounds = [part.indices(extent)[:2] for part, extent in zip(box, info.shape, strict=True)]
    shape = tuple(max(0, stop - start) for start, stop in bounds)
    array = aligned_empty(shape, info.dtype) if target is None else target
    if array.size:
        starts = [start for start, _ in bounds]
        reads.extend(ocdbt_chunks.plan(name, index, array, starts, info.shape, chunk))
    return array


def _parse(content: bytes) -> ArrayInfo:
    import tensorstore as ts

    document = json.loads(content)
    shape = tuple(int(extent) for extent in document["shape"])
    dtype = np.dtype(ts.dtype(document["data_type"]).numpy_dtype)
    # Only what jaxckpt itself writes is decoded here; for the rest there is TensorStore.
    ours = document["codecs"] == layout.codecs(dtype) and document["chunk_key_encoding"] == {"name": "default"}
    chunks = tuple(document["chunk_grid"]["configuration"]["chunk_shape"]) if ours else None
    return ArrayInfo(shape, dtype, chunks)
