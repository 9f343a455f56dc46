"""Opens an existing checkpoint for reading: any Orbax checkpoint, from jaxckpt or plain Orbax, saved from any number of devices.

Opening reads only the tree metadata. If jaxckpt wrote the checkpoint, its metadata files are verified against their digests, and every
chunk against its checksum, when they are read.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib import bounds
from jaxckpt._lib.boxes import Slices
from jaxckpt._lib.documents import damage
from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.storage import checks, faults, finding, orbax_runs, stores
from jaxckpt.storage.arrays import kvstore
from jaxckpt.storage.arrays.stored import ArrayInfo, StoredArrays
from jaxckpt.storage.arrays.stream import ArrayStream
from jaxckpt.storage.commit.presence import Presence
from jaxckpt.storage.item import description, digests, strings, tree_metadata
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST
from jaxckpt.storage.stores.inside import Inside


class StoredCheckpoint:
    """A checkpoint that is open for reading. Every method raises FileNotFoundError if the checkpoint was deleted meanwhile.

    Attributes:
      path: path of the checkpoint.
      tree: its tree metadata.
      digests: digests of its files, or None if plain Orbax wrote it.
      presence: watches whether the checkpoint is deleted or replaced.
      record: jaxckpt's record of the save; see `Snapshot.record`.
      directory: directory that holds the tree: the checkpoint itself, or an item below it.
      inside: the files of that directory.
    """

    def __init__(
        self,
        path: str,
        timeout_secs: float = 1200.0,
        *,
        check_data: bool = True,
        has_targets: bool = False,
        names: Collection[str] | None = None,
    ) -> None:
        """Opens the checkpoint at `path`. In a directory of one of Orbax's managers, this is the latest step.

        Args:
          path: path of the checkpoint.
          timeout_secs: time limit of every call, in seconds.
          check_data: call `check_data_files` after the first read. A caller that reads on several threads should rather call it once, at
            the end.
          has_targets: whether arrays are only read into existing arrays of their shapes. If not, an array with many absent chunks (they
            stand for the fill value) must be small: see `bounds.ABSENT_BYTES`.
          names: names of the program's values, by which an item of the checkpoint is chosen; None if they are not known.

        Raises:
          ValueError: the checkpoint has several items, and `names` do not say which one is meant.
          FileNotFoundError: nothing is at the path, or the checkpoint was deleted meanwhile.
          CheckpointError: something else than a checkpoint is at the path.
          CorruptCheckpointError: the metadata of the checkpoint is damaged.
          OSError: the checkpoint cannot be read.
        """
        path = stores.spelled(path)
        self.path = path = orbax_runs.latest_step(path) or path
        self._names = names
        kvstore.check_path(stores.absolute(path))
        self._check_data = check_data
        self.digests: dict[str, digests.Noted] | None = None
        self.record: dict[str, Any] = {}
        self._known: dict[str, bytes] = {}
        finding.refuse_absent(path)
        self.presence = Presence(path)
        with self.presence:
            self._open(timeout_secs, has_targets)

    def _open(self, timeout_secs: float, has_targets: bool) -> None:
        # The working directory may change before the data is read.
        item = finding.item_of(self.path, self._names)
        self.directory = stores.absolute(item.directory)
        self.inside = Inside(self.directory, stores.absolute(self.path))
        text = self.read_file(tree_metadata.FILE)
        self.tree = self._read_tree(text)
        if self.tree.by_jaxckpt is not None or stores.is_file(os.path.join(self.directory, digests.FILE)):
            self.digests = digests.read(self.inside)
            digests.check(self.directory, tree_metadata.FILE, text, self.digests)
            self._check_small_files()
            self.record = self._read_record(self.digests)
            self.presence.identify_by(self.digests, lambda: digests.read(self.inside))
        self._strings = self._read_strings()
        self._arrays = StoredArrays(
            self.path, self.inside, self.tree, timeout_secs, has_targets=has_targets, known=self._known
        )
        if self.tree.has_foreign:
            leaves = tuple(self._recognised(leaf) if leaf.is_foreign else leaf for leaf in self.tree.leaves)
            self.tree = dataclasses.replace(self.tree, leaves=leaves)
        if item.name is not None:
            self.tree = self.tree.below(item.name)

    def _recognised(self, leaf: tree_metadata.StoredLeaf) -> tree_metadata.StoredLeaf:
        """Returns a leaf of a program's type handler as an array, if it was stored as one: handlers are often derived from Orbax's."""
        try:
            self._arrays.infos([leaf.param_name])
        except CorruptCheckpointError:
            return leaf
        return leaf._replace(value_type="np.ndarray")

    def read_file(self, name: str) -> bytes:
        """Returns the content of a metadata file, `name` in the directory. Raises CorruptCheckpointError or OSError."""
        path = os.path.join(self.directory, name)
        with damage(path):
            try:
                return self.inside.read(name, bounds.METADATA_FILE_BYTES)
            except OSError as error:
                fault = faults.reading(error, path, self.path)
                raise fault from (None if fault is error else error)

    def _read_tree(self, content: bytes) -> tree_metadata.StoredTree:
        try:
            return tree_metadata.read(self.inside, content)
        except OSError as error:
            fault = faults.reading(error, os.path.join(self.directory, tree_metadata.ARRAY_METADATAS), self.path)
            raise fault from (None if fault is error else error)

    def _check_small_files(self) -> None:
        """Checks the metadata files that a read relies on."""
        assert self.digests is not None
        ocdbt = OCDBT_MANIFEST in self.digests
        for name in self.digests:
            is_of_array = not ocdbt and name.endswith("/zarr.json")
            if name in (strings.FILE, OCDBT_MANIFEST) or name.startswith(tree_metadata.ARRAY_METADATAS) or is_of_array:
                content = self.read_file(name)
                digests.check(self.directory, name, content, self.digests)
                if is_of_array:
                    self._known[name] = content
        if self.tree.has_strings and strings.FILE not in self.digests:
            raise CorruptCheckpointError.at(
                os.path.join(self.directory, strings.FILE), "this file of the checkpoint is missing."
            )

    def _read_record(self, noted: digests.Digests) -> dict[str, Any]:
        """Returns the record of the save. It is empty if a program's own Orbax checkpointer saved with our handler."""
        if description.FILE not in noted:
            return {}
        content = self.read_file(description.FILE)
        digests.check(self.directory, description.FILE, content, noted)
        return description.read(os.path.join(self.directory, description.FILE), content)

    @property
    def places(self) -> list[str]:
        """The absolute path of the checkpoint."""
        return [stores.absolute(self.path)]

    @property
    def is_checksummed(self) -> bool:
        """Whether a changed bit is noticed."""
        return self.digests is not None

    def peculiar(self, leaf: tree_metadata.StoredLeaf) -> np.ndarray:
        """Raises CheckpointError: only a type handler of the program that saved the leaf can read it; see `OpenCheckpoint.peculiar`."""
        raise CheckpointError(leaf.foreign(self.path))

    def shape_of(self, leaf: tree_metadata.StoredLeaf) -> tuple[int, ...]:
        """Returns (): see `OpenCheckpoint.shape_of`."""
        return ()

    def check_files(self) -> tuple[int, list[checks.Damage]]:
        """Checks all files but the data files; see `OpenCheckpoint.check_files`."""
        return checks.files(self.inside, self.digests, self.read_file)

    def exchanged_files(self) -> list[checks.Damage]:
        """Looks for data files that were exchanged for others; see `OpenCheckpoint.exchanged_files`."""
        return checks.exchanged(self.inside, self.digests)

    def check_data_files(self) -> None:
        """Checks that no data file was exchanged for another. Call it after a read, whose errors say more: they name the leaf."""
        if self.digests is None:
            return
        with self.presence:
            for name, expected in self.digests.items():
                if expected.is_of_data:
                    digests.check_data(self.inside, name, self.digests)

    def _read_strings(self) -> dict[str, Any]:
        if not self.tree.has_strings:
            return {}
        where = os.path.join(self.directory, strings.FILE)
        return strings.read(self.read_file(strings.FILE), where)

    def string(self, leaf: tree_metadata.StoredLeaf) -> str:
        """Returns the value of a str leaf."""
        try:
            return strings.find(self._strings, leaf.param_name)
        except KeyError:
            raise CorruptCheckpointError.at(
                leaf.name,
                f"the checkpoint {self.path} is damaged: this str is missing from {strings.FILE}.",
            ) from None

    def shardings(self) -> dict[str, str]:
        """Returns Orbax's text for the sharding with which each array was saved, by Orbax's name of the leaf."""
        path = os.path.join(self.directory, tree_metadata.SHARDINGS)
        with self.presence:
            if not stores.is_file(path):
                return {}
            content = self.read_file(tree_metadata.SHARDINGS)
            if self.digests is not None:
                digests.check(self.directory, tree_metadata.SHARDINGS, content, self.digests)
            return tree_metadata.read_shardings(content, path)

    def infos(self, leaves: Iterable[tree_metadata.StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by Orbax's name.

        Raises:
          CorruptCheckpointError: the metadata of an array is damaged; names the leaf.
        """
        names = [leaf.param_name for leaf in leaves]
        if all(self._arrays.known(name) is not None for name in names):
            return self._arrays.infos(names)
        with self.presence:
            infos = self._arrays.infos(names)
        self.presence.refuse_another(if_cheap=True)
        return infos

    def nbytes(self, leaf: tree_metadata.StoredLeaf) -> int:
        """Returns the size of an array leaf in bytes. `infos` must have been called for it before."""
        info = self._arrays.known(leaf.param_name)
        assert info is not None
        return info.nbytes

    def stream(self, name: str, box: Slices) -> "WatchedStream | None":
        """Returns an object that reads a box of an array block by block; None if it must be read as a whole. See `StoredArrays.stream`.

        After reading all of it, call `check_data_files`: only then is the data known to be right.
        """
        with self.presence:
            stream = self._arrays.stream(name, box)
        return None if stream is None else WatchedStream(stream, self.presence)

    def read(
        self, requests: Sequence[tuple[str, Slices | None]], into: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Reads arrays, or boxes of them. `infos` must have been called for them before.

        Args:
          requests: for each read: Orbax's name of the leaf, and the box, or None for the whole array.
          into: arrays to fill, one for each request; None for new arrays.

        Returns:
          The arrays, in the order of the requests. New ones may be read-only.

        Raises:
          CorruptCheckpointError: an array is damaged; names the leaf.
          FileNotFoundError: the checkpoint was deleted or replaced after it was opened.
        """
        with self.presence:
            arrays = self._arrays.read(requests, into)
        if self._check_data:
            self.check_data_files()
            self._check_data = False
        self.presence.refuse_another()
        return arrays


class WatchedStream:
    """Reads a box of an array block by block, from a checkpoint that may be deleted meanwhile."""

    def __init__(self, stream: ArrayStream, presence: Presence) -> None:
        self.nbytes = stream.nbytes
        self._stream, self._presence = stream, presence

    def fill(self, target: np.ndarray) -> None:
        """Does the same as `ArrayStream.fill`. Raises FileNotFoundError if the checkpoint was deleted."""
        with self._presence:
            self._stream.fill(target)
