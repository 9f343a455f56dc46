"""A checkpoint of TensorFlow to restore from: its tensors as leaves, under the names that the program's objects gave them."""

import os
from collections.abc import Iterator

import numpy as np

from jaxckpt._lib.documents import DamagedError, damage
from jaxckpt.errors import CheckpointError
from jaxckpt.storage import faults, stores
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.flat.checkpoint import FlatCheckpoint
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.tree_metadata import STR_OR_BYTES, StoredLeaf
from jaxckpt.storage.tensorflow import graph, types
from jaxckpt.storage.tensorflow.bundle import SUFFIX, Bundle
from jaxckpt.storage.tensorflow.graph import Path
from jaxckpt.storage.tensorflow.index import Entry

# A longer string is not looked at when the checkpoint is opened. It counts as bytes.
_TEXT_BYTES = 16 << 20


class TensorFlowCheckpoint(FlatCheckpoint):
    """A checkpoint of TensorFlow that is open for reading.

    A scalar is a numpy scalar, a string is a str (bytes if it is not UTF-8), and an array of strings, or a tensor of a type that numpy does
    not have, is a *peculiar* leaf: it cannot be restored.
    """

    is_checksummed = True

    def __init__(self, prefix: str) -> None:
        """Opens the checkpoint with this prefix.

        Args:
          prefix: path of the checkpoint, without ``.index``.

        Raises:
          FileNotFoundError: the checkpoint was deleted meanwhile.
          CorruptCheckpointError: the index or the object graph is damaged, or a data file is missing or too short.
          OSError: the checkpoint cannot be read.
        """
        directory, name = os.path.split(stores.absolute(prefix))
        super().__init__(prefix, directory)
        self.files = [name + SUFFIX]
        self.presence.remember()
        with self.presence:
            try:
                self._bundle = Bundle(self.inside, name)
                self.files = self._bundle.files
                self.presence.remember()
                self._open()
            except OSError as error:
                fault = faults.reading(error, stores.join(directory, name + SUFFIX), prefix)
                raise fault from (None if fault is error else error)

    def _open(self) -> None:
        entries = self._bundle.entries
        described = entries.get(graph.KEY)
        aliases: dict[str, list[Path]] = {}
        if described is not None:
            with damage(self._bundle_path, f"{graph.KEY} in this file"):
                content = self._bundle.strings(described) if described.type == types.STRING else []
                if len(content) != 1:
                    raise DamagedError("it is not a string")
                aliases = graph.names(content[0], entries)
        leaves: list[StoredLeaf] = []
        infos: dict[str, ArrayInfo] = {}
        taken: set[Path] = set()
        for entry in entries.values():
            if entry.key == graph.KEY:
                continue
            path = graph.path_of(entry.key, is_escaped=described is not None)
            if path in taken:
                path = graph.path(entry.key.split("/"))
            taken.add(path)
            leaf, info = self._leaf(path, entry)
            leaves.append(leaf)
            if info is not None:
                infos[entry.key] = info
        self.take(leaves, infos, list(_others(leaves, aliases, taken)))

    @property
    def _bundle_path(self) -> str:
        return os.path.join(self.directory, self.files[0])

    def _leaf(self, path: Path, entry: Entry) -> tuple[StoredLeaf, ArrayInfo | None]:
        """Returns a leaf, and its shape and dtype if it is an array."""
        key = entry.key
        dtype = types.dtype_of(entry.type)
        if dtype is not None:
            info = ArrayInfo(entry.shape, dtype, None)
            if entry.shape:
                return StoredLeaf(path, key, "np.ndarray", None, None), info
            return StoredLeaf(path, key, "scalar", notes.NUMPY_SCALAR.word, None), info
        if entry.type != types.STRING or entry.shape:
            return StoredLeaf(path, key, _word(entry), None, None), None
        if entry.size <= _TEXT_BYTES:
            try:
                self._bundle.strings(entry)[0].decode()
                return StoredLeaf(path, key, "string", STR_OR_BYTES, None), None
            except UnicodeDecodeError:
                pass
            except DamagedError:
                # Reading the leaf says so.
                return StoredLeaf(path, key, "string", STR_OR_BYTES, None), None
        try:
            length = self._bundle.length(entry)
        except DamagedError:
            # Reading the leaf says so.
            return StoredLeaf(path, key, "string", STR_OR_BYTES, None), None
        return StoredLeaf(path, key, "np.ndarray", notes.BYTES.word, None), ArrayInfo(
            (length,), np.dtype(np.uint8), None
        )

    def load(self, name: str) -> np.ndarray:
        """Returns the whole array of a leaf; see `FlatCheckpoint.load`."""
        entry = self._bundle.entries[name]
        if entry.type == types.STRING:
            return np.frombuffer(self._bundle.strings(entry)[0], np.uint8)
        return self._bundle.array(entry)

    def text(self, name: str) -> str:
        """Returns the text of a leaf; see `FlatCheckpoint.text`."""
        try:
            return self._bundle.strings(self._bundle.entries[name])[0].decode()
        except UnicodeDecodeError:
            raise DamagedError("its text is not UTF-8") from None

    def peculiar(self, leaf: StoredLeaf) -> np.ndarray:
        """Returns an array of strings, as an array of bytes objects.

        Args:
          leaf: the leaf.

        Raises:
          CheckpointError: the tensor is of a type that numpy does not have.
          CorruptCheckpointError: its data is damaged.
        """
        entry = self._bundle.entries[leaf.param_name]
        if entry.type != types.STRING:
            raise CheckpointError(
                f"{leaf.name}: {self.path} holds a TensorFlow tensor of type {types.name_of(entry.type)}, which numpy does not have. "
                "Convert it with TensorFlow."
            )
        with self.presence:
            try:
                texts = self._bundle.strings(entry)
            except (DamagedError, OSError, MemoryError) as error:
                raise self._fault(error, leaf.param_name) from error
        array = np.empty(len(texts), object)
        array[:] = texts
        return array.reshape(entry.shape)

    def shape_of(self, leaf: StoredLeaf) -> tuple[int, ...]:
        """Returns the shape of a peculiar leaf; see `OpenCheckpoint.shape_of`."""
        return self._bundle.entries[leaf.param_name].shape


def _word(entry: Entry) -> str:
    return "TensorFlow string" if entry.type == types.STRING else f"TensorFlow {types.name_of(entry.type)}"


def _others(leaves: list[StoredLeaf], aliases: dict[str, list[Path]], taken: set[Path]) -> Iterator[StoredLeaf]:
    """Yields each leaf once for each of its other names. A name that another leaf has is not used."""
    for leaf in leaves:
        for path in aliases.get(leaf.param_name, ()):
            if path not in taken:
                taken.add(path)
                yield leaf._replace(path=path)
