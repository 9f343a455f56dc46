"""The leaves of a checkpoint, read when they are written, and cast on the way."""

import threading
from typing import Any

import ml_dtypes
import numpy as np

from jaxckpt._lib.boxes import part_of, slices_of
from jaxckpt.leaf_kinds.conversion import Conversion, Rule
from jaxckpt.leaf_kinds.dtypes import number_kind
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.source import OpenCheckpoint
from jaxckpt.tree.names import Path, leaf_name


def dtype_named(name: str) -> np.dtype[Any]:
    """Returns the dtype with a name, such as "bfloat16". Raises ValueError."""
    try:
        found = np.dtype(getattr(ml_dtypes, name, None) or name)
    except TypeError:
        found = np.dtype(object)
    if number_kind(found) not in ("f", "i", "c"):
        raise ValueError(f"{name!r} is not the dtype of a number, such as bfloat16, float32 or int32.")
    return found


class ArrayLeaf:
    """A leaf that is an array. It is read as a whole at most once, and let go of when all of it has been written."""

    def __init__(self, path: Path, leaf: StoredLeaf, stored: OpenCheckpoint, cast: np.dtype[Any] | None) -> None:
        """Reads the description of the leaf, but not its data.

        Args:
          path: its new path.
          leaf: the leaf.
          stored: the checkpoint.
          cast: the dtype that numbers of its kind get; None for none.
        """
        self.path, self.leaf = path, leaf
        self._stored = stored
        info = stored.infos([leaf])[leaf.param_name]
        self.shape = info.shape
        self.dtype = info.dtype
        self._conversion: Conversion | None = None
        # The bytes of keys and of `bytes` are not numbers.
        is_number = leaf.key_impl is None and leaf.note in (None, notes.NUMPY_SCALAR.word, notes.JAX_ARRAY.word)
        if cast is not None and is_number and number_kind(cast) == number_kind(info.dtype) and cast != info.dtype:
            self.dtype = cast
            self._conversion = Conversion(leaf.name, stored.path, info.dtype, cast, Rule.CAST)
        self._lock = threading.Lock()
        self._whole: np.ndarray | None = None
        self._left = self.nbytes

    @property
    def name(self) -> str:
        """Its new name."""
        return leaf_name(self.path)

    @property
    def nbytes(self) -> int:
        """Size of the array that is written, in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def load(self) -> np.ndarray:
        """Returns the whole array."""
        (array,) = self._stored.read([(self.leaf.param_name, None)])
        return array if self._conversion is None or not array.size else self._conversion(array)

    def box(self, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """Returns a box of the array. Every element must be asked for once. Several threads may call this.

        Args:
          start: first index along each axis.
          shape: extent along each axis.
        """
        with self._lock:
            if self._whole is None:
                self._whole = self.load()
            part = part_of(self._whole, slices_of(start, shape))
            self._left -= part.nbytes
            if self._left <= 0:
                self._whole = None
        return part
