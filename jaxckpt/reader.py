"""Reading a checkpoint without targets (TensorFlow: `tf.train.load_checkpoint` and its relatives)."""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxckpt import paths, storage
from jaxckpt.storage import tree_metadata
from jaxckpt.storage.documents import DamagedError, damage
from jaxckpt.storage.tree_metadata import StoredLeaf

# Longer numbers are no indices of lists.
_DIGITS = 20


@dataclass(frozen=True)
class LeafMetadata:
    """What a checkpoint says of one leaf.

    Attributes:
      name: the path joined by ``/``.
      kind: "jax.Array", "np.ndarray", "scalar" (Python), "numpy scalar", "str", "bytes" or "PRNG key".
      shape: of the stored array; () for scalars and str.
      dtype: of the stored array; None for str.
      nbytes: bytes of the value.
      sharding: the sharding the array was saved with, as Orbax notes it (JSON text), or None.
      key_impl: implementation of a PRNG key, or None.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    nbytes: int
    sharding: str | None
    key_impl: str | None


class Reader:
    """Reads the leaves of one checkpoint as numpy arrays (TensorFlow: `tf.train.CheckpointReader`).

    Works for any Orbax checkpoint of a tree, on any number of devices. What jaxckpt wrote is verified as it is read.
    """

    def __init__(self, path: str) -> None:
        """Opens the checkpoint at `path`; use `load_checkpoint`."""
        self._stored = storage.StoredCheckpoint(path)
        self._leaves = {leaf.name: leaf for leaf in self._stored.tree.leaves if not leaf.is_empty}
        self._shardings: dict[str, str] | None = None

    @property
    def path(self) -> str:
        """Path of the checkpoint."""
        return self._stored.path

    def keys(self) -> list[str]:
        """Returns the names of all leaves, sorted."""
        return sorted(self._leaves)

    def __contains__(self, name: object) -> bool:
        return name in self._leaves

    def __len__(self) -> int:
        return len(self._leaves)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a leaf, () for a str or a scalar. Raises KeyError if there is no such leaf."""
        leaf = self._leaf(name)
        return () if leaf.is_string else self._info(leaf).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of a leaf, that of its `get_tensor`. Raises KeyError if there is no such leaf."""
        leaf = self._leaf(name)
        return _text_array(self._stored.string(leaf)).dtype if leaf.is_string else self._info(leaf).dtype

    def get_tensor(self, name: str) -> np.ndarray:
        """Returns a leaf as a numpy array: a str as an array of str, bytes as an array of uint8, a PRNG key as its key data.

        Raises:
          KeyError: there is no such leaf.
          CorruptCheckpointError: its data is damaged.
        """
        leaf = self._leaf(name)
        if leaf.is_string:
            return _text_array(self._stored.string(leaf))
        self._info(leaf)
        (array,) = self._stored.read([(leaf.param_name, None)])
        return array if array.flags.writeable else array.copy()

    def metadata(self, name: str) -> LeafMetadata:
        """Returns what the checkpoint says of a leaf. Raises KeyError if there is no such leaf."""
        leaf = self._leaf(name)
        if leaf.is_string:
            return LeafMetadata(
                name, "str", (), None, len(self._stored.string(leaf).encode("utf-8", "surrogatepass")), None, None
            )
        if self._shardings is None:
            self._shardings = self._stored.shardings()
        info = self._info(leaf)
        nbytes = math.prod(info.shape) * info.dtype.itemsize
        return LeafMetadata(
            name, _kind(leaf), info.shape, info.dtype, nbytes, self._shardings.get(leaf.param_name), leaf.key_impl
        )

    def tree(self) -> Any:
        """Returns all leaves as nested dicts of numpy arrays; lists stay lists, scalars, str and bytes are themselves.

        PRNG keys are their key data (`metadata` tells the implementation). Named tuples are dicts, as for Orbax.

        Raises:
          CorruptCheckpointError: stored data is damaged.
        """
        stored = self._stored.tree.leaves
        arrays = [leaf for leaf in stored if not leaf.is_empty and not leaf.is_string]
        self._stored.infos(arrays)
        values = dict(
            zip(
                (leaf.param_name for leaf in arrays),
                self._stored.read([(leaf.param_name, None) for leaf in arrays]),
                strict=True,
            )
        )
        root = _Node()
        with damage(os.path.join(self._stored.directory, tree_metadata.FILE)):
            for leaf in stored:
                value = (
                    _empty(leaf)
                    if leaf.is_empty
                    else self._stored.string(leaf)
                    if leaf.is_string
                    else _value(leaf, values[leaf.param_name])
                )
                root.put(leaf.path, value)
            return root.build()

    def _leaf(self, name: str) -> StoredLeaf:
        try:
            return self._leaves[name]
        except KeyError:
            import difflib

            close = difflib.get_close_matches(str(name), self._leaves, n=3)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise KeyError(f"{self.path} has no leaf {name!r}.{hint}") from None

    def _info(self, leaf: StoredLeaf) -> Any:
        return self._stored.infos([leaf])[leaf.param_name]


class _Node:
    """A container in the making."""

    def __init__(self) -> None:
        self.children: dict[str, Any] = {}
        self.is_list = True

    def put(self, path: tuple[tuple[str, bool], ...], value: Any) -> None:
        """Puts a leaf below this container. Raises DamagedError if another leaf is in the way."""
        node = self
        for text, is_index in path[:-1]:
            node.is_list = node.is_list and is_index
            node = node.children.setdefault(text, _Node())
            if not isinstance(node, _Node):
                raise DamagedError("a leaf lies below another leaf")
        if not path or path[-1][0] in node.children:
            raise DamagedError("a leaf lies where another one is")
        text, is_index = path[-1]
        node.is_list = node.is_list and is_index
        node.children[text] = value

    def build(self) -> Any:
        """Returns the container. Not recursive: a stranger's tree may have more levels than Python has room for."""
        order = [self]
        for node in order:
            order.extend(child for child in node.children.values() if isinstance(child, _Node))
        built: dict[int, Any] = {}
        for node in reversed(order):
            items = {
                text: built.pop(id(child)) if isinstance(child, _Node) else child
                for text, child in node.children.items()
            }
            built[id(node)] = _in_order(items) if node.is_list and items else items
        return built[id(self)]


def _in_order(items: dict[str, Any]) -> list[Any]:
    if not all(text.isascii() and text.isdecimal() and len(text) < _DIGITS for text in items):
        raise DamagedError("an index of a list is not a number")
    return [items[text] for text in sorted(items, key=int)]


def _empty(leaf: StoredLeaf) -> Any:
    return {"Dict": {}, "List": [], "Tuple": ()}.get(leaf.value_type)


def _kind(leaf: StoredLeaf) -> str:
    if leaf.key_impl is not None:
        return "PRNG key"
    if leaf.kind is not None:
        return {"numpy": "numpy scalar"}.get(leaf.kind, leaf.kind)
    return leaf.value_type


def _text_array(text: str) -> np.ndarray:
    # numpy's own kind of text drops null characters at the end.
    return np.array(text, dtype=object) if text.endswith("\0") else np.asarray(text)


def _value(leaf: StoredLeaf, array: np.ndarray) -> Any:
    if leaf.kind == "bytes":
        return array.tobytes()
    if leaf.kind == "numpy":
        return array[()]
    if leaf.value_type == "scalar" and array.shape == ():
        return array.item()
    return array if array.flags.writeable else array.copy()


def load_checkpoint(path: str | os.PathLike[str]) -> Reader:
    """Opens a checkpoint for reading without targets (TensorFlow: `tf.train.load_checkpoint`).

    Args:
      path: of a checkpoint, or a directory with a state file, which means its latest.

    Raises:
      FileNotFoundError: there is nothing.
      CheckpointError: what is there is no checkpoint.
      CorruptCheckpointError: it is damaged.
    """
    from jaxckpt import state_file

    text = paths.checked_path(path, "path")
    if not storage.is_checkpoint(text) and (latest := state_file.latest_checkpoint(text)) is not None:
        text = latest
    return Reader(text)


def list_variables(path: str | os.PathLike[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Returns name and shape of every leaf, sorted by name (TensorFlow: `tf.train.list_variables`).

    Args, Raises: as for `load_checkpoint`.
    """
    reader = load_checkpoint(path)
    return [(name, reader.shape(name)) for name in reader.keys()]


def load_variable(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """Returns one leaf as a numpy array (TensorFlow: `tf.train.load_variable`).

    Args, Raises: as for `load_checkpoint` and `Reader.get_tensor`.
    """
    return load_checkpoint(path).get_tensor(name)
