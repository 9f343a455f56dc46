"""Reads arrays through TensorStore: all arrays in buckets, and those that the own code cannot decode."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxckpt._lib import bounds
from jaxckpt._lib.boxes import Slices, part_of
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.arrays import chunks, kvstore
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.tree_metadata import StoredTree


class Request(NamedTuple):
    """A box to read.

    Attributes:
      position: index of its array in the list of results.
      name: Orbax's name of the array.
      info: metadata of the array.
      box: the wanted box; None for the whole array.
    """

    position: int
    name: str
    info: ArrayInfo
    box: Slices | None


class TensorStoreReader:
    """Reads the arrays of one checkpoint. TensorStore does not check sizes, so the caller first calls `plausible.check`."""

    def __init__(
        self, directory: str, tree: StoredTree, fault: Callable[[BaseException, str | None], Exception]
    ) -> None:
        """Does not open the arrays yet.

        Args:
          directory: directory of the tree.
          tree: tree metadata of the checkpoint.
          fault: returns the exception to raise for an error. Its second argument is Orbax's name of the leaf that was read, or None if the
            error is about the directory.
        """
        self._directory = directory
        self._tree = tree
        self._fault = fault
        self._is_ocdbt = kvstore.is_ocdbt(directory)
        self._context = kvstore.context()
        self._kvstore: Any = None

    def contents(self, names: Sequence[str], file: str, deadline: Deadline) -> Iterator[bytes | None]:
        """Reads one file of each of several arrays, concurrently, and yields their contents; None for a file that is missing.

        Args:
          names: Orbax's names of the arrays.
          file: name of the file.
          deadline: when the reads give up.
        """
        store = self._store(deadline)
        pending = [(name, store.read(f"{layout.array_path(name)}{file}")) for name in names]
        for name, read in pending:
            result = self._wait(read, name, deadline)
            yield result.value if result.state == "value" else None

    def read(self, requests: Sequence[Request], out: list[Any], deadline: Deadline) -> None:
        """Reads boxes concurrently.

        Args:
          requests: the boxes.
          out: list of results, in which the arrays are put.
          deadline: when the reads give up.

        Raises:
          Exception: the exception that `fault` returned.
        """
        small, large = [], []
        for request in requests:
            info = request.info
            if info.chunk_shape == info.shape and info.nbytes <= layout.SMALL_BYTES and self._tree.complete_chunks:
                key = layout.array_path(request.name) + layout.chunk_key((0,) * len(info.shape))
                small.append((request, self._store(deadline).read(key)))
            elif len(info.shape) > bounds.TENSORSTORE_AXES:
                what = (
                    f"it has {len(info.shape)} axes, but arrays stored like this have at most {bounds.TENSORSTORE_AXES}"
                )
                raise self._fault(DamagedError(what), request.name)
            else:
                large.append(request)
        opening = {name: self._open(name) for name in dict.fromkeys(request.name for request in large)}
        reading = []
        for request in large:
            array = self._wait(opening[request.name], request.name, deadline)
            if tuple(array.shape) != request.info.shape:
                raise self._fault(DamagedError("its metadata has changed"), request.name)
            reading.append((request, (array if request.box is None else array[request.box]).read()))
        for request, future in small:
            value = self._wait(future, request.name, deadline)
            out[request.position] = part_of(self._decoded(request, value), request.box)
        for request, future in reading:
            out[request.position] = self._wait(future, request.name, deadline)

    def _decoded(self, request: Request, result: Any) -> np.ndarray:
        try:
            if result.state != "value":
                raise DamagedError("its data is missing")
            info = request.info
            return chunks.decode(result.value, info.dtype, info.shape, info.is_compressed)
        except DamagedError as error:
            raise self._fault(error, request.name) from error

    def _store(self, deadline: Deadline) -> Any:
        import tensorstore as ts

        if self._kvstore is None:
            try:
                self._kvstore = deadline.wait(ts.KvStore.open(kvstore.existing(self._directory), context=self._context))
            except Exception as error:
                raise self._fault(error, None) from error
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

    def _wait(self, future: Any, name: str, deadline: Deadline) -> Any:
        try:
            return deadline.wait(future)
        except Exception as error:
            raise self._fault(error, name) from error
