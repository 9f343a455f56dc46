"""An existing checkpoint, open for reading: any Orbax checkpoint, whoever wrote it, on however many devices.

Opening reads the tree metadata only. What jaxckpt wrote is verified as it is read: metadata files against their digests, every chunk
against its checksum.
"""

import errno
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.storage import claims, committed, digests, faults, files, kvstore, layout, temporary, tree_metadata
from jaxckpt.storage.deadline import Deadline

Box = tuple[slice, ...]


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


class StoredCheckpoint:
    """A checkpoint directory, open for reading.

    Attributes:
      path: of the checkpoint.
      tree: its tree metadata.
      digests: of its files, or None if plain Orbax wrote it.
    """

    def __init__(self, path: str, timeout_secs: float = 1200.0, *, check_data: bool = True) -> None:
        """Opens the checkpoint at `path`.

        Args:
          path: of the checkpoint.
          timeout_secs: bound for every call.
          check_data: make sure, once data has been read, that no data file was exchanged for another.

        Raises:
          FileNotFoundError: nothing is there.
          CheckpointError: something is there, but not a checkpoint.
          CorruptCheckpointError: its metadata is damaged.
          OSError: it cannot be read.
        """
        self.path = path
        kvstore.check_path(files.absolute(path))
        self._timeout_secs = timeout_secs
        self._data_unchecked = check_data
        self._begin()
        self._directory = self._item_directory()
        self._is_ours = False
        self.digests: dict[str, list[Any]] | None = None
        text = self._read_file(tree_metadata.FILE)
        self.tree = tree_metadata.read(self._directory, text.decode("utf-8", "replace"))
        if self.tree.by_jaxckpt is not None or files.is_file(os.path.join(self._directory, digests.FILE)):
            self.digests = digests.read(self._directory)
            digests.check(self._directory, tree_metadata.FILE, text, self.digests)
            self._check_small_files()
        self._names = {leaf.param_name: leaf.name for leaf in self.tree.leaves}
        self._strings = self._read_strings()
        self._context = kvstore.context()
        self._kvstore: Any = None
        self._infos: dict[str, ArrayInfo] = {}

    def _begin(self) -> None:
        """Every call has the whole time: a reader may stay open for hours."""
        self._deadline = Deadline(self._timeout_secs, f"Reading {self.path}")

    def _item_directory(self) -> str:
        path = self.path
        if not self._is_there():
            raise FileNotFoundError(
                errno.ENOENT,
                "No checkpoint there; save() makes, and returns, a path with a number at its end, such as '-1': give that",
                path,
            )
        if files.is_directory(path):
            files.names(path)  # A directory that may not be read is an OSError, not a missing checkpoint.
        found = committed.item_directory(path)
        if found is not None:
            return found
        if files.is_directory(path) and committed.is_checkpoint(path):
            raise CorruptCheckpointError(
                f"{os.path.join(path, tree_metadata.FILE)}: this file of the checkpoint is missing. Restore another checkpoint."
            )
        if files.is_bucket(path) and not committed.is_checkpoint(path):
            raise CheckpointError(f"{path} is not a committed Orbax checkpoint: it has no commit_success.txt.")
        raise CheckpointError(f"{path} is not an Orbax checkpoint: it has no {tree_metadata.FILE}.")

    def _is_there(self) -> bool:
        """Whether anything is at the path. In a bucket, what a save or a deletion is (or was) at work on does not count."""
        path = self.path
        if not files.is_bucket(path):
            return files.exists(path) or temporary.recover_missing(path)
        return committed.is_checkpoint(path) or (files.exists(path) and claims.read(path) is None)

    def _read_file(self, name: str) -> bytes:
        path = os.path.join(self._directory, name)
        try:
            return files.read(path)
        except OSError as error:
            fault = faults.reading(error, path, self.path)
            raise fault from (None if fault is error else error)

    def _check_small_files(self) -> None:
        """Checks the metadata files that a read relies on, and the presence of all files."""
        assert self.digests is not None
        ocdbt = kvstore.OCDBT_MANIFEST in self.digests
        for name in self.digests:
            if (
                name in (tree_metadata.STRINGS, kvstore.OCDBT_MANIFEST)
                or name.startswith(tree_metadata.ARRAY_METADATAS)
                or (not ocdbt and name.endswith("/zarr.json"))
            ):
                digests.check(self._directory, name, self._read_file(name), self.digests)
        if any(leaf.is_string for leaf in self.tree.leaves) and tree_metadata.STRINGS not in self.digests:
            raise CorruptCheckpointError(
                f"{os.path.join(self._directory, tree_metadata.STRINGS)}: this file of the checkpoint is missing."
            )

    def _check_data_files(self) -> None:
        """Checks that the data files are the ones that were written. After a read: a damaged chunk names its leaf, which says more."""
        if not self._data_unchecked or self.digests is None:
            return
        for name, expected in self.digests.items():
            if digests.is_sampled(expected):
                digests.check_data(self._directory, name, self.digests)
        self._data_unchecked = False

    def _read_strings(self) -> dict[str, Any]:
        if not any(leaf.is_string for leaf in self.tree.leaves):
            return {}
        content = self._read_file(tree_metadata.STRINGS)
        try:
            strings: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise CorruptCheckpointError(
                f"{os.path.join(self._directory, tree_metadata.STRINGS)}: this file is damaged: {error}."
            ) from error
        return strings

    @property
    def directory(self) -> str:
        """The directory that holds the tree: the checkpoint itself, or an item below it."""
        return self._directory

    def string(self, leaf: tree_metadata.StoredLeaf) -> str:
        """Returns the value of a str leaf."""
        try:
            return tree_metadata.find_string(self._strings, leaf.param_name)
        except KeyError:
            raise CorruptCheckpointError(
                f"{leaf.name}: the checkpoint {self.path} is damaged: this str is missing from {tree_metadata.STRINGS}."
            ) from None

    def shardings(self) -> dict[str, str]:
        """Returns Orbax's text for the sharding each array was saved with, by Orbax's name of the leaf."""
        import base64

        path = os.path.join(self._directory, tree_metadata.SHARDINGS)
        if not files.is_file(path):
            return {}
        content = self._read_file(tree_metadata.SHARDINGS)
        if self.digests is not None:
            digests.check(self._directory, tree_metadata.SHARDINGS, content, self.digests)
        return {
            base64.urlsafe_b64decode(key).decode("utf-8", "surrogatepass"): text
            for key, text in json.loads(content).items()
        }

    def _store(self) -> Any:
        import tensorstore as ts

        if self._kvstore is None:
            try:
                self._kvstore = self._deadline.wait(
                    ts.KvStore.open(kvstore.existing(self._directory), context=self._context)
                )
            except Exception as error:
                raise faults.reading(error, self._directory, self.path) from error
        return self._kvstore

    def infos(self, leaves: Iterable[tree_metadata.StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by Orbax's name.

        Raises:
          CorruptCheckpointError: naming the leaf.
        """
        self._begin()
        wanted = [leaf.param_name for leaf in leaves if leaf.param_name not in self._infos]
        if wanted:
            if self.tree.use_zarr3:
                self._read_zarr3(wanted)
            else:
                opened = [(name, self._open(name)) for name in wanted]
                for name, opening in opened:
                    array = self._wait(opening, name)
                    self._infos[name] = ArrayInfo(tuple(array.shape), np.dtype(array.dtype.numpy_dtype), None)
        return {leaf.param_name: self._infos[leaf.param_name] for leaf in leaves}

    def nbytes(self, leaf: tree_metadata.StoredLeaf) -> int:
        """Returns the bytes of an array leaf of which `infos` was asked before."""
        return _nbytes(self._infos[leaf.param_name])

    def _read_zarr3(self, names: Sequence[str]) -> None:
        store = self._store()
        reads = [(name, store.read(f"{layout.array_path(name)}zarr.json")) for name in names]
        parsed: dict[bytes, ArrayInfo] = {}
        for name, read in reads:
            result = self._wait(read, name)
            if result.state != "value":
                raise CorruptCheckpointError(
                    f"{self._names[name]}: the checkpoint {self.path} is damaged: this array is missing. Restore another checkpoint."
                )
            info = parsed.get(result.value)
            if info is None:
                try:
                    info = parsed[result.value] = _parse(result.value)
                except (ValueError, KeyError, TypeError) as error:
                    raise CorruptCheckpointError(
                        f"{self._names[name]}: the checkpoint {self.path} is damaged: its zarr.json is unreadable ({error})."
                    ) from error
            self._infos[name] = info

    def _wait(self, future: Any, name: str) -> Any:
        try:
            return self._deadline.wait(future)
        except Exception as error:
            raise faults.reading(error, self._names[name], self.path) from error

    def _open(self, name: str) -> Any:
        import tensorstore as ts

        store = kvstore.existing(self._directory)
        store = (
            {**store, "path": layout.array_path(name)}
            if store["driver"] == "ocdbt"
            else kvstore.base(os.path.join(self._directory, name))
        )
        spec = {
            "driver": "zarr3" if self.tree.use_zarr3 else "zarr",
            "kvstore": store,
            "fill_missing_data_reads": not self.tree.complete_chunks,
        }
        return ts.open(spec, open=True, read=True, context=self._context)

    def read(self, requests: Sequence[tuple[str, Box | None]]) -> list[np.ndarray]:
        """Reads arrays, or boxes of them.

        Args:
          requests: Orbax's name of a leaf (of which `infos` was asked before), and the box, or None for the whole array.

        Returns:
          The arrays, in order. They may be read-only.

        Raises:
          CorruptCheckpointError: naming the leaf.
        """
        self._begin()
        out: list[Any] = [None] * len(requests)
        small: list[tuple[int, str, ArrayInfo, Any]] = []
        large: list[tuple[int, str, Box | None]] = []
        store = self._store() if self.tree.use_zarr3 else None
        for position, (name, box) in enumerate(requests):
            info = self._infos[name]
            if 0 in info.shape:
                out[position] = np.empty(info.shape, info.dtype)[box or ()]
            elif store is not None and info.chunk_shape == info.shape and _nbytes(info) <= layout.SMALL_BYTES:
                small.append(
                    (
                        position,
                        name,
                        info,
                        store.read(layout.array_path(name) + layout.chunk_key((0,) * len(info.shape))),
                    )
                )
            else:
                large.append((position, name, box))
        opening: dict[str, Any] = {}
        for _, name, _ in large:
            if name not in opening:
                opening[name] = self._open(name)
        reading = []
        for position, name, box in large:
            array = self._wait(opening[name], name)
            reading.append((position, name, (array if box is None else array[box]).read()))
        for position, name, info, future in small:
            array = self._decode(name, info, self._wait(future, name))
            box = requests[position][1]
            out[position] = array if box is None else array[box]
        for position, name, future in reading:
            out[position] = self._wait(future, name)
        self._check_data_files()
        return out

    def _decode(self, name: str, info: ArrayInfo, result: Any) -> np.ndarray:
        """Decodes the only chunk of an array whose codecs are bytes and crc32c."""
        import google_crc32c

        if result.state != "value":
            raise CorruptCheckpointError(
                f"{self._names[name]}: the checkpoint {self.path} is damaged: its data is missing. Restore another checkpoint."
            )
        value = result.value
        data = value[: -layout.CHECKSUM_BYTES]
        if len(data) != _nbytes(info) or google_crc32c.value(data) != int.from_bytes(
            value[-layout.CHECKSUM_BYTES :], "little"
        ):
            raise CorruptCheckpointError(
                f"{self._names[name]}: the checkpoint {self.path} is damaged: the checksum of its data does not match. "
                "Restore another checkpoint."
            )
        return np.frombuffer(data, info.dtype).reshape(info.shape)


def _nbytes(info: ArrayInfo) -> int:
    return math.prod(info.shape) * info.dtype.itemsize


def _parse(content: bytes) -> ArrayInfo:
    import tensorstore as ts

    document = json.loads(content)
    shape = tuple(int(extent) for extent in document["shape"])
    dtype = np.dtype(ts.dtype(document["data_type"]).numpy_dtype)
    # Only what jaxckpt itself writes is decoded here; for the rest there is TensorStore.
    ours = document["codecs"] == layout.codecs(dtype) and document["chunk_key_encoding"] == {"name": "default"}
    chunks = tuple(document["chunk_grid"]["configuration"]["chunk_shape"]) if ours else None
    return ArrayInfo(shape, dtype, chunks)
