"""A safetensors file, or several with an index, to restore from."""

import contextlib
import os
from typing import Any

import numpy as np

from jaxckpt._lib import bounds
from jaxckpt._lib.aligned import aligned_empty
from jaxckpt._lib.documents import DamagedError, as_dict, as_text, damage, parse
from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.storage import faults, stores
from jaxckpt.storage.arrays import plausible
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.flat.checkpoint import FlatCheckpoint
from jaxckpt.storage.flat.file_bytes import FileBytes
from jaxckpt.storage.item import description
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.safetensors import header
from jaxckpt.storage.safetensors.header import Header, Tensor

SUFFIX = ".safetensors"
INDEX_SUFFIX = SUFFIX + ".index.json"
_WEIGHT_MAP = "weight_map"


class SafetensorsFile(FlatCheckpoint):
    """A safetensors file that is open for reading. Its format has no checksums.

    A slash in a name divides keys. If another program wrote the file, the names with dots instead of slashes work, too.
    """

    def __init__(self, path: str) -> None:
        """Opens the file, or the files that an index names.

        Args:
          path: path of a file, or of an index (``model.safetensors.index.json``).

        Raises:
          FileNotFoundError: the file was deleted meanwhile.
          CheckpointError: it is not a safetensors file.
          CorruptCheckpointError: it is damaged, or a file that the index names is missing.
          OSError: it cannot be read.
        """
        directory, name = os.path.split(stores.absolute(path))
        super().__init__(path, directory)
        self._tensors: dict[str, tuple[str, Tensor]] = {}
        self._texts: dict[str, str] = {}
        self.files = [name]
        self.presence.remember()
        with self.presence:
            try:
                headers = self._sharded(name) if name.endswith(".json") else {name: self._header(name)}
                self.presence.remember()
                with damage(os.path.join(directory, name)):
                    self._open(headers)
            except OSError as error:
                fault = faults.reading(error, os.path.join(directory, name), path)
                raise fault from (None if fault is error else error)

    def _sharded(self, name: str) -> dict[str, Header]:
        """Returns the headers of the files that an index names."""
        with damage(os.path.join(self.directory, name)):
            document = as_dict(parse(self.inside.read(name, bounds.METADATA_FILE_BYTES)), "it")
            places = {key: as_text(file, "a file") for key, file in as_dict(document[_WEIGHT_MAP], _WEIGHT_MAP).items()}
        self.files = [name, *sorted(set(places.values()))]
        found = {}
        for file in self.files[1:]:
            try:
                found[file] = self._header(file)
            except FileNotFoundError as error:
                raise CorruptCheckpointError.at(
                    os.path.join(self.directory, file), f"this file, which {name} names, is missing. Copy it too."
                ) from error
        for key, file in places.items():
            if key not in found[file].tensors:
                raise CorruptCheckpointError.at(
                    os.path.join(self.directory, file), f"{key!r}, which {name} says to be in this file, is missing."
                )
        # A file may hold more than the index says.
        return {
            file: Header(
                {key: tensor for key, tensor in parsed.tensors.items() if places.get(key) == file}, parsed.metadata
            )
            for file, parsed in found.items()
        }

    def _header(self, name: str) -> Header:
        path = os.path.join(self.directory, name)
        with damage(path):
            size = self.inside.size(name)
            if size is not None and size < header.LENGTH_BYTES:
                raise DamagedError(f"it has only {size} bytes")
            length = int.from_bytes(self.inside.read_range(name, 0, header.LENGTH_BYTES), "little")
            if length > header.MOST_BYTES or (size is not None and length > size - header.LENGTH_BYTES):
                raise DamagedError(f"it claims a header of {length} bytes")
            found = header.parse(self.inside.read_range(name, header.LENGTH_BYTES, length), size)
            if self.inside.is_local:
                _check_by_library(path)
            return found

    def _open(self, headers: dict[str, Header]) -> None:
        leaves: list[StoredLeaf] = []
        infos: dict[str, ArrayInfo] = {}
        is_own = False
        for file, parsed in headers.items():
            noted = _own_metadata(parsed)
            is_own = is_own or noted is not None
            described = {} if noted is None else as_dict(noted.get("leaves", {}), "leaves")
            for name, tensor in parsed.tensors.items():
                self._tensors[name] = (file, tensor)
                if tensor.dtype is None:
                    path = tuple((part, False) for part in name.split("/"))
                    leaves.append(StoredLeaf(path, name, f"safetensors {tensor.dtype_name}", None, None))
                    continue
                leaf = header.leaf_of(
                    name, tensor.shape, None if noted is None else described.get(name, {"type": "np.ndarray"})
                )
                infos[name] = header.info_of(tensor)
                plausible.check_note(leaf, infos[name])
                leaves.append(leaf)
            for name, text in as_dict((noted or {}).get("strings", {}), "strings").items():
                self._texts[name] = as_text(text, "a text")
                leaves.append(
                    header.leaf_of(name, (), described.get(name, {"type": "string"}))._replace(value_type="string")
                )
            record = as_dict((noted or {}).get("record", {}), "record")
            description.check(record)
            self.record |= record
        if len({leaf.path for leaf in leaves}) != len(leaves):
            raise DamagedError("it names a leaf twice")
        self.take(leaves, infos, () if is_own else _with_slashes(leaves))

    def load(self, name: str) -> np.ndarray:
        """Returns the whole array of a leaf; see `FlatCheckpoint.load`."""
        file, tensor = self._tensors[name]
        assert tensor.dtype is not None
        plausible.check_memory(tensor.nbytes)
        if not self.inside.is_local and tensor.nbytes > bounds.UNKNOWN_ARRAY_BYTES:
            raise DamagedError(
                f"it claims {tensor.nbytes} bytes, too much for a bucket, where stored sizes are not known"
            )
        array = aligned_empty(tensor.shape, tensor.dtype)
        FileBytes(self.inside, file, tensor.offset).fill(array.reshape(-1).view(np.uint8))
        return array

    def text(self, name: str) -> str:
        """Returns the text of a leaf; see `FlatCheckpoint.text`."""
        return self._texts[name]

    def peculiar(self, leaf: StoredLeaf) -> np.ndarray:
        """Raises CheckpointError: numpy does not have the dtype of the leaf."""
        raise CheckpointError(
            f"{leaf.name}: {self.path} holds an array of dtype {self._tensors[leaf.param_name][1].dtype_name}, which numpy does not have."
        )

    def shape_of(self, leaf: StoredLeaf) -> tuple[int, ...]:
        """Returns the shape of a leaf whose dtype numpy does not have."""
        return self._tensors[leaf.param_name][1].shape


def _check_by_library(path: str) -> None:
    """Raises DamagedError if the library `safetensors` does not open a file."""
    import safetensors

    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(safetensors.safe_open(path, "np"))
    except safetensors.SafetensorError as error:
        raise DamagedError(str(error)[:200]) from None


def _own_metadata(parsed: Header) -> dict[str, Any] | None:
    text = parsed.metadata.get(header.OWN)
    if text is None:
        return None
    noted = as_dict(parse(text), f"the text {header.OWN!r} of its metadata")
    number = noted.get("format")
    if type(number) is not int or not 0 < number <= header.FORMAT:
        raise DamagedError(f"it was written by a later jaxckpt (format {number}); upgrade jaxckpt to read it")
    return noted


def _with_slashes(leaves: list[StoredLeaf]) -> list[StoredLeaf]:
    """Returns the leaves whose names have dots once more, with slashes instead: other libraries join keys with dots."""
    taken = {leaf.path for leaf in leaves}
    found = []
    for leaf in leaves:
        path = tuple((part, False) for part in leaf.param_name.replace(".", "/").split("/"))
        if path not in taken:
            taken.add(path)
            found.append(leaf._replace(path=path))
    return found
