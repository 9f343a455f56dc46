"""The interfaces from which a restore reads: an open checkpoint, in this process or in another one."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self

import numpy as np

from jaxckpt._lib.boxes import Slices
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree


class Source(Protocol):
    """An open checkpoint: an `OpenCheckpoint`, or one that another process has opened.

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


class Stream(Protocol):
    """Reads a box of an array block by block; see `arrays.stream.ArrayStream`.

    Attributes:
      nbytes: size of the box in bytes.
    """

    nbytes: int

    def fill(self, target: np.ndarray) -> None:
        """Fills an array of uint8 with the next bytes. Only the last call checks them."""


class Watch(Protocol):
    """Tells a checkpoint that was deleted or replaced while it was read from a damaged one; see `commit.presence.Presence`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None: ...

    def check(self) -> None:
        """Raises FileNotFoundError if a local checkpoint was deleted or replaced."""

    def explain(self) -> FileNotFoundError | None:
        """Returns the error to raise if the checkpoint was deleted or replaced; None if it is still there."""


class OpenCheckpoint(Source, Protocol):
    """A checkpoint whose files this process has open: Orbax's (`StoredCheckpoint`), TensorFlow's, or a safetensors file.

    `storage.open_checkpoint` chooses the class by what is at the path.
    """

    @property
    def presence(self) -> Watch:
        """Watches whether the checkpoint is deleted or replaced."""

    @property
    def directory(self) -> str:
        """Absolute path of the directory of the files."""

    @property
    def places(self) -> list[str]:
        """Absolute paths of the files, or of the directory, that make up the checkpoint."""

    @property
    def is_checksummed(self) -> bool:
        """Whether a changed bit is noticed."""

    def read(
        self, requests: Sequence[tuple[str, Slices | None]], into: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Does the same as `Source.read`, into existing arrays if they are given."""

    def stream(self, name: str, box: Slices) -> "Stream | None":
        """Returns an object that reads a box of an array block by block; None if it must be read as a whole."""

    def shardings(self) -> dict[str, str]:
        """Returns Orbax's text for the sharding with which each array was saved, by Orbax's name of the leaf."""

    def check_data_files(self) -> None:
        """Checks that no data file was exchanged for another. Call it after a read."""

    def peculiar(self, leaf: StoredLeaf) -> np.ndarray:
        """Returns a leaf that is not a leaf of a JAX program (`StoredLeaf.is_foreign`), but that a reader can give: an array of strings.

        Raises:
          CheckpointError: a reader cannot give it either; names the leaf and its type.
          CorruptCheckpointError: its data is damaged.
        """

    def shape_of(self, leaf: StoredLeaf) -> tuple[int, ...]:
        """Returns the shape of such a leaf; () if it is not known."""

    def check_files(self) -> tuple[int, list[tuple[str, str]]]:
        """Checks all files, besides the arrays. Returns their number, and path and description of each damage."""

    def exchanged_files(self) -> list[tuple[str, str]]:
        """Returns path and description of each data file that is not the one that was written."""
