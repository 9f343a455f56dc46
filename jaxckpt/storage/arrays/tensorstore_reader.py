"""Reads arrays through TensorStore: all arrays in buckets, and those that the own code cannot decode."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxckpt._lib import bounds
from jaxckpt._lib.aligned import aligned_empty
from jaxckpt._lib.boxes import Slices, part_of, spans_of
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.arrays import cells, chunks, counts, kvstore
from jaxckpt.storage.arrays.cells import Spans
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.tree_metadata import StoredTree

# Chunks that several boxes want are read in cells of so many bytes (or one chunk), at most so many bytes at once.
_CELL_BYTES = 16 << 20
_WINDOW_BYTES = 64 << 20


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
        """Reads boxes concurrently. A chunk that several boxes want is read once.

        Args:
          requests: the boxes.
          out: list of results, in which the arrays are put.
          deadline: when the reads give up.

        Raises:
          Exception: the exception that `fault` returned.
        """
        small: dict[str, list[Request]] = {}
        large: dict[str, list[Request]] = {}
        for request in requests:
            info = request.info
            if self._is_one_value(info):
                small.setdefault(request.name, []).append(request)
            elif len(info.shape) > bounds.TENSORSTORE_AXES:
                what = (
                    f"it has {len(info.shape)} axes, but arrays stored like this have at most {bounds.TENSORSTORE_AXES}"
                )
                raise self._fault(DamagedError(what), request.name)
            else:
                large.setdefault(request.name, []).append(request)
        values = [(same, self._store(deadline).read(_only_key(same[0]))) for same in small.values()]
        opening = {name: self._open(name) for name in large}
        alone: list[tuple[Request, Any]] = []
        shared: list[tuple[list[Request], list[Spans], Any]] = []
        for name, same in large.items():
            array = self._wait(opening[name], name, deadline)
            if tuple(array.shape) != same[0].info.shape:
                raise self._fault(DamagedError("its metadata has changed"), name)
            grid = same[0].info.grid
            boxes: list[Spans] = [spans_of(request.box, request.info.shape) for request in same]
            if len(same) > 1 and grid is not None and _are_filled(boxes) and cells.are_shared(boxes, grid):
                shared.append((same, boxes, array))
            else:
                alone += [(request, (array if request.box is None else array[request.box]).read()) for request in same]
        for same, future in values:
            decoded = self._decoded(same[0], self._wait(future, same[0].name, deadline))
            counts.add(1, decoded.nbytes)
            for request in same:
                out[request.position] = part_of(decoded, request.box)
        for request, future in alone:
            out[request.position] = self._wait(future, request.name, deadline)
            counts.add(_number_of_chunks(request), out[request.position].nbytes)
        for same, wanted, array in shared:
            self._read_shared(same, wanted, array, out, deadline)

    def _is_one_value(self, info: ArrayInfo) -> bool:
        """Whether an array is one small value, which the own code decodes: opening an array of TensorStore takes longer."""
        is_small = info.chunk_shape == info.shape and info.nbytes <= layout.SMALL_BYTES
        return is_small and not info.encoding.is_sharded and self._tree.complete_chunks

    def _read_shared(
        self, requests: Sequence[Request], boxes: Sequence[Spans], array: Any, out: list[Any], deadline: Deadline
    ) -> None:
        """Reads boxes of one array of which some want the same chunks.

        Args:
          requests: the boxes.
          boxes: the same boxes: first index and end along each axis.
          array: the open array.
          out: list of results, in which the arrays are put.
          deadline: when the reads give up.
        """
        info, name = requests[0].info, requests[0].name
        assert info.grid is not None
        filled = [aligned_empty(tuple([stop - start for start, stop in spans]), info.dtype) for spans in boxes]
        pending: deque[tuple[cells.Cell, Any]] = deque()
        held = 0

        def finish_first() -> int:
            cell, future = pending.popleft()
            found = self._wait(future, name, deadline)
            for number, inside, there in cell.wanted:
                part_of(filled[number], there)[...] = part_of(found, inside)
            counts.add(cell.chunks, found.nbytes)
            nbytes: int = found.nbytes
            return nbytes

        for cell in cells.cells(boxes, info.grid, info.dtype.itemsize, _CELL_BYTES):
            nbytes = math.prod(part.stop - part.start for part in cell.region) * info.dtype.itemsize
            while pending and held + nbytes > _WINDOW_BYTES:
                held -= finish_first()
            pending.append((cell, array[cell.region].read()))
            held += nbytes
        while pending:
            finish_first()
        for request, result in zip(requests, filled, strict=True):
            out[request.position] = result

    def _decoded(self, request: Request, result: Any) -> np.ndarray:
        try:
            if result.state != "value":
                raise DamagedError("its data is missing")
            info = request.info
            return chunks.decode(result.value, info.dtype, info.shape, info.encoding)
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


def _only_key(request: Request) -> str:
    return layout.array_path(request.name) + request.info.encoding.keys.of((0,) * len(request.info.shape))


def _are_filled(boxes: Sequence[Spans]) -> bool:
    return all(start < stop for spans in boxes for start, stop in spans)


def _number_of_chunks(request: Request) -> int:
    info = request.info
    spans = spans_of(request.box, info.shape)
    return math.prod(-(-stop // cut) - start // cut for (start, stop), cut in zip(spans, info.grid or (), strict=False))
