"""Reads the arrays of an existing checkpoint. The own code reads what jaxckpt and Orbax write on a disk; TensorStore reads the rest."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib import bounds
from jaxckpt._lib.boxes import Slices
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.documents import DamagedError, damage
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import faults
from jaxckpt.storage.arrays import chunks, engine, inline, kvstore, plausible, pread, zarr_metadata
from jaxckpt.storage.arrays.chunks import Reads
from jaxckpt.storage.arrays.places import InDatabase, InFiles, Places
from jaxckpt.storage.arrays.stream import ArrayStream
from jaxckpt.storage.arrays.tensorstore_reader import Request, TensorStoreReader
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo as ArrayInfo
from jaxckpt.storage.item import layout, notes, tree_metadata
from jaxckpt.storage.ocdbt.index import Index
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST, UnknownFormatError
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
        """Does not read yet.

        Args:
          path: path of the checkpoint, for messages.
          inside: the files of the directory of its tree.
          tree: its tree metadata.
          timeout_secs: time limit of every call, in seconds.
          has_targets: whether arrays are only read into existing arrays of their shapes.
          known: content of the files that have already been read and checked.
        """
        self._path = path
        self._inside = inside
        self._known = known
        self._leaves = tree.by_name
        self._directory = inside.directory
        self._tree = tree
        # Leaves whose arrays must fit their kind. (Targets of bytes have no shape to compare with.)
        checked = notes.checked()
        self._special = {leaf.param_name: leaf for leaf in tree.leaves if leaf.note in checked or leaf.key_impl}
        # Leaf names that contain other leaves, as directories: a key of plain Orbax may contain a slash.
        self._parents: set[str] = set()
        for name in self._leaves:
            while "/" in name and (name := name.rpartition("/")[0]) not in self._parents:
                self._parents.add(name)
        self._has_targets = has_targets
        self._stored: dict[str, plausible.Stored] = {}
        self._timeout_secs = timeout_secs
        self._begin()
        self._is_own = engine.is_own()
        self._places: Places | None = None
        self._are_places_known = False
        self._places_problem: tuple[str, str] | None = None
        self._tensorstore: TensorStoreReader | None = None
        self._infos: dict[str, ArrayInfo] = {}
        self._describing = threading.Lock()
        # Arrays of one shape and dtype have the same metadata, byte for byte.
        self._parsed: dict[bytes, ArrayInfo] = {}

    def _begin(self) -> None:
        """Starts the deadline of one call. Every call has the whole time, because a reader may stay open for hours."""
        self._deadline = Deadline(self._timeout_secs, f"Reading {self._path}")

    def infos(self, names: Sequence[str]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of arrays, by Orbax's name.

        Args:
          names: Orbax's names of the arrays.

        Raises:
          CorruptCheckpointError: the metadata of an array is missing or damaged; names the leaf.
          OSError: the checkpoint cannot be read.
          TimeoutError: after the timeout.
        """
        if any(name not in self._infos for name in names):
            # The threads that answer other processes ask for the same metadata as this process does, at the same time. It is read once.
            with self._describing:
                wanted = [name for name in names if name not in self._infos]
                if wanted:
                    self._begin()
                    self._parse_all(wanted, self._metadata(wanted))
        return {name: self._infos[name] for name in names}

    def known(self, name: str) -> ArrayInfo | None:
        """Returns shape and dtype of an array if `infos` has returned them before; otherwise None."""
        return self._infos.get(name)

    def read(
        self, requests: Sequence[tuple[str, Slices | None]], into: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Reads arrays, or boxes of them. `infos` must have been called for them before.

        Args:
          requests: for each read: Orbax's name of the array, and the box, or None for the whole array.
          into: arrays to fill, one for each request; None for new arrays.

        Returns:
          The arrays, in the order of the requests. New ones may be read-only.

        Raises:
          CorruptCheckpointError: an array is damaged; names the leaf.
          OSError: the checkpoint cannot be read.
          TimeoutError: after the timeout.
        """
        self._begin()
        out: list[Any] = [None] * len(requests)
        reads = Reads()
        rest: list[Request] = []
        absent = plausible.Absent()
        places, is_complete = self._open(), self._tree.complete_chunks
        if places is not None and is_complete and self._is_own and self._inside.is_local:
            for position, array in inline.decoded(places, requests, self._infos).items():
                out[position] = array
        for position, (name, box) in enumerate(requests):
            if out[position] is not None:
                continue
            info = self._infos[name]
            if 0 in info.shape:
                out[position] = np.empty(info.shape, info.dtype)[box or ()]
            elif places is None or not self._is_direct(info):
                rest.append(Request(position, name, info, box))
            else:
                if not is_complete:
                    self._check_plausible(Request(position, name, info, box), absent)
                target = None if into is None else into[position]
                try:
                    out[position] = chunks.plan(places, name, info, box, reads, target, is_complete=is_complete)
                except (DamagedError, OSError, MemoryError) as error:
                    raise self._fault(error, name) from error
        try:
            pread.run(self._inside, reads.in_file_order(), self._deadline)
        except pread.ReadError as error:
            cause = error.__cause__
            assert cause is not None
            raise self._fault(cause, error.owner) from cause
        if rest:
            for request in rest:
                self._check_plausible(request, absent)
            self._by_tensorstore().read(rest, out, self._deadline)
        if into is None:
            return out
        for array, target in zip(out, into, strict=True):
            if array is not target:
                target[...] = array
        return list(into)

    def stream(self, name: str, box: Slices) -> ArrayStream | None:
        """Returns an object that reads a box of an array block by block; None if the box must be read as a whole.

        Args:
          name: Orbax's name of the array. `infos` must have been called for it before.
          box: the wanted box.

        Raises:
          CorruptCheckpointError: the array is damaged; names the leaf.
          OSError: the checkpoint cannot be read.
        """
        self._begin()
        info = self._infos[name]
        places = self._open()
        if places is None or 0 in info.shape or not self._is_direct(info) or not self._tree.complete_chunks:
            return None
        plan = Reads()
        try:
            array = chunks.plan(places, name, info, box, plan, None)
            reads = plan.in_file_order()
            # The array is never filled, so it takes no memory.
            if len(reads) == 1:
                (part,) = reads[0].parts
                if part.target.shape == array.shape and part.is_beginning_of(reads[0].shape):
                    return ArrayStream(self._fault, name, pread.ChunkStream(self._inside, reads[0]))
        except (DamagedError, OSError, MemoryError) as error:
            raise self._fault(error, name) from error
        return None

    def _is_direct(self, info: ArrayInfo) -> bool:
        """Whether the own code reads the chunks of an array from their files."""
        if not self._is_own or info.chunk_shape is None or not self._inside.is_local:
            return False
        return self._tree.complete_chunks or (info.encoding.is_zero_absent and not info.encoding.is_sharded)

    def _open(self) -> Places | None:
        """Returns the places of the values of the directory; None if only TensorStore can find them."""
        if self._places_problem is not None:
            # The index is read once, not again for every leaf: that may take a second.
            raise CorruptCheckpointError.at(*self._places_problem)
        if not self._are_places_known:
            if not kvstore.is_ocdbt(self._directory):
                self._places = InFiles(self._inside, self._known) if self._inside.is_local else None
            elif self._is_own:
                self._places = InDatabase(self._inside, self._read_index())
            self._are_places_known = True
        return self._places

    def _read_index(self) -> Index:
        where = os.path.join(self._directory, OCDBT_MANIFEST)
        try:
            return Index(self._inside, self._deadline.left)
        except UnknownFormatError as error:
            # TensorStore might read it, but some databases make it end the process.
            what = f"this database has a format that neither jaxckpt nor Orbax writes ({error})."
            self._places_problem = (where, what)
            raise CorruptCheckpointError.at(where, what) from error
        except (DamagedError, OSError) as error:
            fault = faults.reading(error, where, self._path)
            if isinstance(fault, CorruptCheckpointError) and fault.where is not None and fault.what is not None:
                self._places_problem = (fault.where, fault.what)
            raise fault from error

    def _metadata(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Yields the zarr.json (or .zarray) of each array; None if it is missing."""
        places = self._open()
        file = "zarr.json" if self._tree.use_zarr3 else ".zarray"
        if places is None:
            yield from self._by_tensorstore().contents(names, file, self._deadline)
            return
        found = places.contents([path + file for path in layout.array_paths(names)], bounds.ARRAY_METADATA_BYTES)
        for name in names:
            try:
                yield next(found)
            except (DamagedError, OSError) as error:
                raise self._fault(error, name) from error

    def _parse_all(self, names: Sequence[str], metadata: Iterable[bytes | None]) -> None:
        parse: Callable[[bytes], ArrayInfo] = (
            zarr_metadata.parse_zarr3 if self._tree.use_zarr3 else zarr_metadata.parse_zarr2
        )
        parsed, special = self._parsed, self._special
        for name, content in zip(names, metadata, strict=True):
            if content is None:
                raise CorruptCheckpointError.at(
                    self._name_of(name),
                    f"the checkpoint {self._path} is damaged: this array is missing. Restore another checkpoint.",
                )
            info = parsed.get(content)
            if info is None or name in special:
                with damage(self._name_of(name), f"the metadata of this array in {self._path}"):
                    if info is None:
                        info = parsed[content] = parse(content)
                    if name in special:
                        plausible.check_note(special[name], info)
            self._infos[name] = info

    def _check_plausible(self, request: Request, absent: plausible.Absent) -> None:
        """Makes sure that the bytes on disk justify a read that TensorStore does, or that may fill in absent chunks. See `plausible`."""
        name, places = request.name, self._open()
        try:
            if name not in self._stored and places is not None:
                stored = places.stored(layout.array_path(name))
                # The files below its directory may belong to another array, with larger chunks, or to the checkpoint.
                is_shared = not name or name in self._parents
                self._stored[name] = stored._replace(largest=0) if is_shared else stored
            plausible.check(
                request.info,
                request.box,
                self._stored.get(name),
                absent if not self._has_targets or name in self._special else None,
                is_complete=self._tree.complete_chunks,
            )
        except (DamagedError, OSError, MemoryError) as error:
            raise self._fault(error, name) from error

    def _by_tensorstore(self) -> TensorStoreReader:
        if self._tensorstore is None:
            self._tensorstore = TensorStoreReader(self._directory, self._tree, self._fault)
        return self._tensorstore

    def _fault(self, error: BaseException, name: str | None) -> Exception:
        return faults.reading(error, self._directory if name is None else self._name_of(name), self._path)

    def _name_of(self, param_name: str) -> str:
        """Returns the name of the leaf that Orbax calls `param_name`, for messages."""
        return self._leaves[param_name].name
