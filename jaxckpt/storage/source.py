"""An open checkpoint, wherever its files are: what restoring reads from."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from jaxckpt._lib.boxes import Slices
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree


class Source(Protocol):
    """An open checkpoint: a `StoredCheckpoint`, or one that another process has open."""

    path: str
    tree: StoredTree
    record: dict[str, Any]

    def infos(self, leaves: Iterable[StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by Orbax's name."""

    def nbytes(self, leaf: StoredLeaf) -> int:
        """Returns the bytes of an array leaf of which `infos` was asked before."""

    def string(self, leaf: StoredLeaf) -> str:
        """Returns the value of a str leaf."""

    def read(self, requests: Sequence[tuple[str, Slices | None]]) -> list[np.ndarray]:
        """Reads arrays, or boxes of them."""
