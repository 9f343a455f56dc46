"""An existing checkpoint, open for reading: any Orbax checkpoint, whoever wrote it, on however many devices.

Opening reads the tree metadata only. What jaxckpt wrote is verified as it is read: metadata files against their digests, every chunk
against its checksum.
"""

import dataclasses
import errno
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.storage import claims, committed, digests, faults, files, kvstore, temporary, tree_metadata
from jaxckpt.storage.arrays import ArrayInfo, ArrayStream, StoredArrays
from jaxckpt.storage.ocdbt_chunks import Box
from jaxckpt.storage.presence import Presence


class StoredCheckpoint:
    """A checkpoint directory, open for reading.

    Attributes:
      path: of the checkpoint.
      tree: its tree metadata.
      digests: of its files, or None if plain Orbax wrote it.
      presence: tells whether the checkpoint is still there. Every method raises FileNotFoundError where it is not.
    """

    def __init__(self, path: str, timeout_secs: float = 1200.0, *, check_data: bool = True) -> None:
        """Opens the checkpoint at `path`.

        Args:
          path: of the checkpoint.
          timeout_secs: bound for every call.
          check_data: make sure, once data has been read, that no data file was exchanged for another. Whoever reads in several threads
            does better to call `check_data_files` once, in the end.

        Raises:
          FileNotFoundError: nothing is there, or it was deleted while it was opened.
          CheckpointError: something is there, but not a checkpoint.
          CorruptCheckpointError: its metadata is damaged.
          OSError: it cannot be read.
        """
        self.path = path
        kvstore.check_path(files.absolute(path))
        self._check_data = check_data
        self.digests: dict[str, list[Any]] | None = None
        self._refuse_nothing()
        self.presence = Presence(path)
        with self.presence:
            self._open(timeout_secs)

    def _open(self, timeout_secs: float) -> None:
        self._directory = self._item_directory()
        text = self._read_file(tree_metadata.FILE)
        self.tree = tree_metadata.read(self._directory, text.decode("utf-8", "replace"))
        if self.tree.by_jaxckpt is not None or files.is_file(os.path.join(self._directory, digests.FILE)):
            self.digests = digests.read(self._directory)
            digests.check(self._directory, tree_metadata.FILE, text, self.digests)
            self._check_small_files()
            if files.is_bucket(self.path):
                self.presence.identify_by(self.digests, lambda: digests.read(self._directory))
        self._strings = self._read_strings()
        self._arrays = StoredArrays(self.path, self._directory, self.tree, timeout_secs)
        if any(leaf.is_foreign for leaf in self.tree.leaves):
            leaves = tuple(self._recognised(leaf) if leaf.is_foreign else leaf for leaf in self.tree.leaves)
            self.tree = dataclasses.replace(self.tree, leaves=leaves)

    def _recognised(self, leaf: tree_metadata.StoredLeaf) -> tree_metadata.StoredLeaf:
        """Returns a leaf of another type handler as an array, if it was stored as one (handlers are often derived from Orbax's)."""
        try:
            self._arrays.infos([leaf.param_name])
        except CorruptCheckpointError:
            return leaf
        return dataclasses.replace(leaf, value_type="np.ndarray")

    def _refuse_nothing(self) -> None:
        path = self.path
        if not self._is_there():
            raise FileNotFoundError(
                errno.ENOENT,
                "No checkpoint there; save() makes, and returns, a path with a number at its end, such as '-1': give that",
                path,
            )

    def _item_directory(self) -> str:
        path = self.path
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

    def check_data_files(self) -> None:
        """Checks that the data files are the ones that were written. After a read: a damaged chunk names its leaf, which says more."""
        if self.digests is None:
            return
        with self.presence:
            for name, expected in self.digests.items():
                if digests.is_of_data(expected):
                    digests.check_data(self._directory, name, self.digests)

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
        with self.presence:
            if not files.is_file(path):
                return {}
            content = self._read_file(tree_metadata.SHARDINGS)
            if self.digests is not None:
                digests.check(self._directory, tree_metadata.SHARDINGS, content, self.digests)
        return {
            base64.urlsafe_b64decode(key).decode("utf-8", "surrogatepass"): text
            for key, text in json.loads(content).items()
        }

    def infos(self, leaves: Iterable[tree_metadata.StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by Orbax's name.

        Raises:
          CorruptCheckpointError: naming the leaf.
        """
        with self.presence:
            infos = self._arrays.infos([leaf.param_name for leaf in leaves])
        if not files.is_bucket(self.path):
            self.presence.refuse_another()
        return infos

    def nbytes(self, leaf: tree_metadata.StoredLeaf) -> int:
        """Returns the bytes of an array leaf of which `infos` was asked before."""
        return self._arrays.infos([leaf.param_name])[leaf.param_name].nbytes

    def stream(self, name: str, box: Box) -> "WatchedStream | None":
        """Returns what reads a box of an array block by block; None if it has to be read as a whole. See `StoredArrays.stream`.

        When all has been read, `check_data_files` has the last word.
        """
        with self.presence:
            stream = self._arrays.stream(name, box)
        return None if stream is None else WatchedStream(stream, self.presence)

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
          FileNotFoundError: the checkpoint was deleted, or replaced, since it was opened.
        """
        with self.presence:
            arrays = self._arrays.read(requests, into)
        if self._check_data:
            self.check_data_files()
            self._check_data = False
        self.presence.refuse_another()
        return arrays


class WatchedStream:
    """A box of an array, block by block, of a checkpoint that may be deleted meanwhile."""

    def __init__(self, stream: ArrayStream, presence: Presence) -> None:
        self.nbytes = stream.nbytes
        self._stream, self._presence = stream, presence

    def fill(self, target: np.ndarray) -> None:
        """As `ArrayStream.fill`. Raises FileNotFoundError where the checkpoint was deleted."""
        with self._presence:
            self._stream.fill(target)
