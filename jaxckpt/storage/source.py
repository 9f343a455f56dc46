"""The interface from which a restore reads: an open checkpoint, in this process or in another one."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from jaxckpt._lib.boxes import Slices
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree


class Source(Protocol):
    """An open checkpoint: a `StoredCheckpoint`, or one that another process has opened.

    Attributes:
      path: path of the checkpoint.
      tree: its tree metadata.
      record: jaxckpt's record of the save; see `Snapshot.record`.
    """

    path: str
    tree: StoredTree
    record: dict[str, Any]

    def infos(self, leaves: Iterable[StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by Orbax's name."""

    def nbytes(self, leaf: StoredLeaf) -> int:
        """Returns the size of an array leaf in bytes. `infos` must have been called for it before."""

    def string(self, leaf: StoredLeaf) -> str:
        """Returns the value of a str leaf."""

    def read(self, requests: Sequence[tuple[str, Slices | None]]) -> list[np.ndarray]:
        """Reads arrays, or boxes of them. `infos` must have been called for them before.

        Args:
          requests: for each read: Orbax's name of the leaf, and the box, or None for the whole array.

        Returns:
          The arrays, in the order of the requests. They may be read-only.
        """
