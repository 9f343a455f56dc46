"""The arrays of an existing checkpoint. What jaxckpt wrote is read from its data files directly; the rest by TensorStore."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib import bounds
from jaxckpt._lib.aligned import aligned_empty
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.documents import DamagedError, damage
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import faults
from jaxckpt.storage.arrays import chunks, claimed, kvstore, zarr_metadata
from jaxckpt.storage.arrays.chunks import Box, Read, ReadError
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo as ArrayInfo
from jaxckpt.storage.item import layout, tree_metadata
from jaxckpt.storage.ocdbt.index import Index
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST, Place, UnknownFormatError
from jaxckpt.storage.stores.inside import Inside


class StoredArrays:
    """Reads the arrays of one checkpoint."""

    def __init__(
        self,
        path: str,
        inside: Inside,
        tree: tree_metadata.StoredTree,
        timeout_secs: float,
        *,
        has_targets: bool,
        known: Mapping[str, bytes],
    ) -> None:
        """Reads nothing yet.

        Args:
          path: of the checkpoint, for messages.
          inside: the directory of its tree.
          tree: its tree metadata.
          timeout_secs: bound for every call.
          has_targets: nothing is read but what goes into an array of its shape, which is there already.
          known: content of files that have been read, and checked, already.
        """
        self._path = path
        self._inside = inside
        self._known = known
        self._directory = inside.directory
        self._tree = tree
        self._names = {leaf.param_name: leaf.name for leaf in tree.leaves}
        # Leaves with a say in what their arrays can be. A target of bytes has no shape.
        self._special = {leaf.param_name: leaf for leaf in tree.leaves if leaf.kind == "bytes" or leaf.key_impl}
        # Names that are the beginning of others: a key of plain Orbax may hold a slash.
        self._parents: set[str] = set()
        for name in self._names:
            while "/" in name and (name := name.rpartition("/")[0]) not in self._parents:
                self._parents.add(name)
        self._has_targets = has_targets
        self._stored: dict[str, claimed.Stored] = {}
        self._timeout_secs = timeout_secs
        self._begin()
        self._context = kvstore.context()
        self._kvstore: Any = None
        self._index: Index | None = None
        self._index_problem: tuple[str, str] | None = None
        self._is_ocdbt: bool | None = None
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
        if wanted:
            self._parse_all(wanted, self._metadata(wanted))
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
            elif index is None or not self._is_direct(info):
                rest.append((position, name, box))
            else:
                try:
                    out[position] = _plan(index, name, info, box, reads, None if into is None else into[position])
                except (DamagedError, OSError, MemoryError) as error:
                    raise self._fault(error, name) from error
        try:
            chunks.run(self._inside, reads, self._deadline)
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
        if index is None or 0 in info.shape or not self._is_direct(info):
            return None
        reads: list[Read] = []
        try:
            array = _plan(index, name, info, box, reads, None)
            # Nothing is read into the array: it costs no memory.
            if len(reads) == 1 and reads[0].target.shape == array.shape and chunks.is_streamable(reads[0]):
                return ArrayStream(self, name, chunks.ChunkStream(self._inside, reads[0]))
        except (DamagedError, OSError) as error:
            raise self._fault(error, name) from error
        return None

    def _is_direct(self, info: ArrayInfo) -> bool:
        """Whether the chunks of an array of the database are read from its data files, and not by TensorStore."""
        return info.chunk_shape is not None and self._tree.complete_chunks and self._inside.is_local

    def _open_index(self) -> Index | None:
        """Returns the index of the database, or None if every chunk is a file of its own."""
        if self._index_problem is not None:
            # Looked at once for all leaves: that may have taken a second.
            raise CorruptCheckpointError.at(*self._index_problem)
        if self._is_ocdbt is None:
            is_ocdbt = kvstore.is_ocdbt(self._directory)
            where = os.path.join(self._directory, OCDBT_MANIFEST)
            if is_ocdbt:
                try:
                    self._index = Index(self._inside, self._deadline.left)
                except UnknownFormatError as error:
                    # TensorStore might read it, but ends the process on some databases.
                    what = f"this database is of a form that neither jaxckpt nor Orbax writes ({error})."
                    self._index_problem = (where, what)
                    raise CorruptCheckpointError.at(where, what) from error
                except (DamagedError, OSError) as error:
                    fault = faults.reading(error, where, self._path)
                    if isinstance(fault, CorruptCheckpointError) and fault.where is not None and fault.what is not None:
                        self._index_problem = (fault.where, fault.what)
                    raise fault from error
            self._is_ocdbt = is_ocdbt
        return self._index

    def _metadata(self, names: Sequence[str]) -> Iterable[bytes | None]:
        """Yields the zarr.json (or .zarray) of arrays, None for one that is missing."""
        index = self._open_index()
        file = "zarr.json" if self._tree.use_zarr3 else ".zarray"
        if index is None and not self._inside.is_local:
            store = self._store()
            pending = [(name, store.read(f"{layout.array_path(name)}{file}")) for name in names]
            for name, read in pending:
                result = self._wait(read, name)
                yield result.value if result.state == "value" else None
            return
        for name in names:
            try:
                if index is None:
                    yield self._read_file(f"{layout.array_path(name)}{file}")
                    continue
                found = index.get(f"{layout.array_path(name)}{file}")
                if isinstance(found, Place):
                    if found.length > bounds.ARRAY_METADATA_BYTES:
                        raise DamagedError(f"its {file} has {found.length} bytes")
                    found = self._inside.read_range(*found)
                yield found
            except (DamagedError, OSError) as error:
                raise self._fault(error, name) from error

    def _read_file(self, name: str) -> bytes | None:
        try:
            return self._known.get(name) or self._inside.read(name, bounds.ARRAY_METADATA_BYTES)
        except FileNotFoundError:
            return None

    def _parse_all(self, names: Sequence[str], metadata: Iterable[bytes | None]) -> None:
        parse: Callable[[bytes], ArrayInfo] = (
            zarr_metadata.parse_zarr3 if self._tree.use_zarr3 else zarr_metadata.parse_zarr2
        )
        parsed: dict[bytes, ArrayInfo] = {}
        for name, content in zip(names, metadata, strict=True):
            if content is None:
                raise CorruptCheckpointError.at(
                    self._names[name],
                    f"the checkpoint {self._path} is damaged: this array is missing. Restore another checkpoint.",
                )
            info = parsed.get(content)
            if info is None:
                with damage(self._names[name], f"the metadata of this array in {self._path}"):
                    info = parsed[content] = parse(content)
            if name in self._special:
                with damage(self._names[name], f"the metadata of this array in {self._path}"):
                    claimed.check_kind(self._special[name], info)
            self._infos[name] = info

    def _read_with_tensorstore(self, requests: Sequence[tuple[int, str, Box | None]], out: list[Any]) -> None:
        small = []
        large = []
        absent = claimed.Absent()
        for position, name, box in requests:
            info = self._infos[name]
            self._check_claim(name, box, absent)
            if info.chunk_shape == info.shape and info.nbytes <= layout.SMALL_BYTES and self._tree.complete_chunks:
                key = layout.array_path(name) + layout.chunk_key((0,) * len(info.shape))
                small.append((position, name, box, self._store().read(key)))
            else:
                if len(info.shape) > bounds.TENSORSTORE_AXES:
                    what = f"it has {len(info.shape)} axes, and what has more than {bounds.TENSORSTORE_AXES} is not stored like this"
                    raise self._fault(DamagedError(what), name)
                large.append((position, name, box))
        opening = {name: self._open(name) for name in dict.fromkeys(name for _, name, _ in large)}
        reading = []
        for position, name, box in large:
            array = self._wait(opening[name], name)
            if tuple(array.shape) != self._infos[name].shape:
                raise self._fault(DamagedError("its metadata has changed"), name)
            reading.append((position, name, (array if box is None else array[box]).read()))
        for position, name, box, future in small:
            out[position] = self._decoded(name, self._wait(future, name))[box or ()]
        for position, name, future in reading:
            out[position] = self._wait(future, name)

    def _check_claim(self, name: str, box: Box | None, absent: claimed.Absent) -> None:
        """Makes sure that TensorStore can read a box: that it is given nothing which the bytes on disk do not justify."""
        info, index = self._infos[name], self._open_index()
        try:
            if name not in self._stored and (index is not None or self._inside.is_local):
                folder = layout.array_path(name)
                stored = self._inside.stored(folder) if index is None else _lengths(index, folder)
                # What lies below it may be another array, with larger chunks.
                self._stored[name] = stored._replace(largest=0) if name in self._parents else stored
            is_bounded = not self._has_targets or name in self._special
            is_complete = self._tree.complete_chunks
            claimed.check(info, box, self._stored.get(name), absent if is_bounded else None, is_complete=is_complete)
        except (DamagedError, OSError, MemoryError) as error:
            raise self._fault(error, name) from error

    def _decoded(self, name: str, result: Any) -> np.ndarray:
        info = self._infos[name]
        try:
            if result.state != "value":
                raise DamagedError("its data is missing")
            return chunks.decode(result.value, info.dtype, info.shape)
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

        store = (
            {**kvstore.existing(self._directory), "path": layout.array_path(name)}
            if self._is_ocdbt
            else kvstore.base(os.path.join(self._directory, name))
        )
        spec = {
            "driver": "zarr3" if self._tree.use_zarr3 else "zarr",
            "kvstore": store,
            "fill_missing_data_reads": not self._tree.complete_chunks,
        }
        try:
            return ts.open(spec, open=True, read=True, context=self._context)
        except ValueError as error:
            raise self._fault(error, name) from error

    def _wait(self, future: Any, name: str) -> Any:
        try:
            return self._deadline.wait(future)
        except Exception as error:
            raise self._fault(error, name) from error

    def _fault(self, error: BaseException, name: str) -> Exception:
        return faults.reading(error, self._names[name], self._path)


class ArrayStream:
    """A box of an array, block by block."""

    def __init__(self, arrays: StoredArrays, name: str, chunk: chunks.ChunkStream) -> None:
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


def _lengths(index: Index, folder: str) -> claimed.Stored:
    lengths = index.lengths(folder)
    return claimed.Stored(len(lengths), sum(lengths), max(lengths, default=0))


def _plan(
    index: Index, name: str, info: ArrayInfo, box: Box | None, reads: list[Read], target: np.ndarray | None
) -> np.ndarray:
    """Returns an array for a box, and adds what has to be read to fill it. It is `target` where there is anything to read."""
    chunk = info.chunk_shape
    assert chunk is not None
    if chunk == info.shape:
        found = index.get(layout.array_path(name) + layout.chunk_key((0,) * len(chunk)))
        if isinstance(found, bytes):  # Thousands of small arrays: nothing but this is done for one.
            whole = chunks.decode(found, info.dtype, chunk)
            return whole if box is None else whole[box]
    spans = [(0, extent) for extent in info.shape]
    if box is not None:
        spans = [part.indices(extent)[:2] for part, extent in zip(box, info.shape, strict=True)]
    shape = tuple(max(0, stop - start) for start, stop in spans)
    if target is None and info.nbytes > index.value_bytes:
        raise DamagedError(f"it claims {info.nbytes} bytes, but the checkpoint holds {index.value_bytes}")
    array = aligned_empty(shape, info.dtype) if target is None else target
    if array.size:
        starts = [start for start, _ in spans]
        reads.extend(chunks.plan(name, index, array, starts, info.shape, chunk))
    return array
