"""The base of checkpoints whose arrays lie in files one after the other: everything but the format of the files."""

import dataclasses
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib.boxes import Slices, part_of, spans_of
from jaxckpt._lib.documents import DamagedError
from jaxckpt.errors import CheckpointError
from jaxckpt.storage import faults
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.flat.file_presence import FilePresence
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree
from jaxckpt.storage.source import Stream
from jaxckpt.storage.stores.inside import Inside


class FlatCheckpoint:
    """An `OpenCheckpoint` in the files of another library. A derived class sets the tree, and reads whole values.

    An array is read as a whole, also if only a box of it is wanted, because its checksum is about all of it.

    Attributes:
      path: path of the checkpoint, as the caller gave it.
      tree: its leaves.
      record: empty: such files have no record of a save.
      is_checksummed: whether a changed bit is noticed.
      files: names of its files, relative to `directory`.
      directory: directory of its files.
      inside: the files of that directory.
      presence: watches whether the files are deleted or replaced.
    """

    is_checksummed = False

    def __init__(self, path: str, directory: str) -> None:
        """Creates the object. A derived class then opens the files.

        Args:
          path: path of the checkpoint, as the caller gave it.
          directory: absolute path of the directory of its files.
        """
        self.path = path
        self.directory = directory
        self.inside = Inside(directory)
        self.record: dict[str, Any] = {}
        self.files: list[str] = []
        self.presence = FilePresence(path, lambda: [os.path.join(directory, name) for name in self.files])
        self.tree = StoredTree((), use_zarr3=True, complete_chunks=True, by_jaxckpt=None, has_nested=True)
        self._infos: dict[str, ArrayInfo] = {}
        self._names: dict[str, str] = {}
        # The array of which a box was read last: the next box is often one of the same array.
        self._lock = threading.Lock()
        self._last: tuple[str, np.ndarray] | None = None

    @property
    def places(self) -> list[str]:
        """Absolute paths of the files."""
        return [os.path.join(self.directory, name) for name in self.files]

    def take(self, leaves: Sequence[StoredLeaf], infos: dict[str, ArrayInfo], aliases: Sequence[StoredLeaf]) -> None:
        """Sets the leaves.

        Args:
          leaves: all leaves.
          infos: shape and dtype of those that are arrays, by `StoredLeaf.param_name`.
          aliases: the same leaves under other names.
        """
        self.tree = dataclasses.replace(self.tree, leaves=tuple(leaves), aliases=tuple(aliases))
        self._infos = infos
        self._names = {leaf.param_name: leaf.name for leaf in leaves}

    def load(self, name: str) -> np.ndarray:
        """Returns the whole array of the leaf with this `StoredLeaf.param_name`. Raises DamagedError or OSError."""
        raise NotImplementedError

    def text(self, name: str) -> str:
        """Returns the text of the leaf with this `StoredLeaf.param_name`. Raises DamagedError or OSError."""
        raise NotImplementedError

    def peculiar(self, leaf: StoredLeaf) -> np.ndarray:
        """Returns a leaf that only a reader can give: see `OpenCheckpoint.peculiar`."""
        raise CheckpointError(leaf.foreign(self.path))

    def check_files(self) -> tuple[int, list[tuple[str, str]]]:
        """Returns the number of files. They were checked when the checkpoint was opened; see `OpenCheckpoint.check_files`."""
        return len(self.files), []

    def exchanged_files(self) -> list[tuple[str, str]]:
        """Returns an empty list: see `OpenCheckpoint.exchanged_files`."""
        return []

    def shape_of(self, leaf: StoredLeaf) -> tuple[int, ...]:
        """Returns the shape of a leaf that only a reader can give: see `OpenCheckpoint.shape_of`."""
        return ()

    def infos(self, leaves: Iterable[StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by `StoredLeaf.param_name`."""
        return {leaf.param_name: self._infos[leaf.param_name] for leaf in leaves}

    def nbytes(self, leaf: StoredLeaf) -> int:
        """Returns the size of an array leaf in bytes."""
        return self._infos[leaf.param_name].nbytes

    def shardings(self) -> dict[str, str]:
        """Returns no shardings: such files do not tell them."""
        return {}

    def check_data_files(self) -> None:
        """Raises FileNotFoundError if the files were replaced."""
        self.presence.refuse_another()

    def stream(self, name: str, box: Slices) -> Stream | None:
        """Returns None: arrays are read as a whole."""
        return None

    def string(self, leaf: StoredLeaf) -> str:
        """Returns the value of a str leaf. Raises CorruptCheckpointError, which names the leaf, or OSError."""
        with self.presence:
            try:
                return self.text(leaf.param_name)
            except (DamagedError, OSError, MemoryError) as error:
                raise self._fault(error, leaf.param_name) from error

    def read(
        self, requests: Sequence[tuple[str, Slices | None]], into: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Reads arrays, or boxes of them.

        Args:
          requests: for each read: `StoredLeaf.param_name`, and the box, or None for the whole array.
          into: arrays to fill, one for each request; None for new arrays.

        Returns:
          The arrays, in the order of the requests.

        Raises:
          CorruptCheckpointError: an array is damaged; names the leaf.
          FileNotFoundError: the checkpoint was deleted or replaced after it was opened.
        """
        with self.presence:
            found = [self._part(name, box) for name, box in requests]
        self.presence.refuse_another()
        if into is None:
            return found
        for target, array in zip(into, found, strict=True):
            target[...] = array
        return list(into)

    def _part(self, name: str, box: Slices | None) -> np.ndarray:
        shape = self._infos[name].shape
        if all(span == (0, extent) for span, extent in zip(spans_of(box, shape), shape, strict=True)):
            return self._whole(name)
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = None
                self._last = (name, self._whole(name))
            whole = self._last[1]
        part = part_of(whole, box)
        # A small view would keep the whole array in memory.
        return part.copy() if part.nbytes * 2 < whole.nbytes else part

    def _whole(self, name: str) -> np.ndarray:
        try:
            return self.load(name)
        except (DamagedError, OSError, MemoryError) as error:
            raise self._fault(error, name) from error

    def _fault(self, error: BaseException, name: str) -> Exception:
        return faults.reading(error, self._names[name], self.path)
