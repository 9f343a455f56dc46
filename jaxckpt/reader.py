"""Reading a checkpoint without targets (TensorFlow: `tf.train.load_checkpoint` and its relatives)."""

import math
import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from jaxckpt import storage
from jaxckpt._lib.arguments import also_named
from jaxckpt._lib.documents import DamagedError, damage
from jaxckpt.directory import paths, state_file
from jaxckpt.errors import CheckpointError
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.item import tree_metadata
from jaxckpt.storage.item.description import COUNTER
from jaxckpt.storage.item.tree_metadata import StoredLeaf

# What TensorFlow puts behind the name of a variable.
_TENSORFLOW_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# The save counter stands beside the tree, but is listed and read as a leaf.
_COUNTER_LEAF = StoredLeaf(((COUNTER, False),), COUNTER, "scalar", None, None)
# Longer numbers are no indices of sequences.
_DIGITS = 19


@dataclass(frozen=True)
class LeafMetadata:
    """What a checkpoint says of one leaf.

    Attributes:
      name: the path joined by ``/``.
      kind: "jax.Array", "np.ndarray", "scalar" (Python), "numpy scalar", "str", "bytes" or "PRNG key"; what Orbax calls the type of a
        leaf that only a program's own type handler can read.
      shape: of the stored array; () for scalars, str and what cannot be read.
      dtype: of the stored array; None for str and what cannot be read.
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
        counter = self._stored.record.get(COUNTER)
        self._counter = None if counter is None else np.asarray(counter, np.int64)
        if self._counter is not None:
            self._leaves[COUNTER] = _COUNTER_LEAF
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
        return () if leaf.is_string or leaf.is_foreign else self._info(leaf).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of a leaf, that of its `get_tensor`. Raises what `get_tensor` raises."""
        leaf = self._readable(name)
        return _text_array(self._stored.string(leaf)).dtype if leaf.is_string else self._info(leaf).dtype

    def get_tensor(self, name: str) -> np.ndarray:
        """Returns a leaf as a numpy array: a str as an array of str, bytes as an array of uint8, a PRNG key as its key data.

        Raises:
          KeyError: there is no such leaf.
          CheckpointError: it was stored by a type handler that only its own program has.
          CorruptCheckpointError: its data is damaged.
          FileNotFoundError: the checkpoint was deleted, or replaced by another one, since it was opened.
        """
        leaf = self._readable(name)
        self._stored.presence.check()
        if leaf.is_string:
            return _text_array(self._stored.string(leaf))
        if leaf is _COUNTER_LEAF:
            return np.array(self._counter)
        self._info(leaf)
        (array,) = self._stored.read([(leaf.param_name, None)])
        return array if array.flags.writeable else array.copy()

    def has_tensor(self, name: str) -> bool:
        """Whether there is a leaf of that name (TensorFlow's word for `name in reader`)."""
        return name in self

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Returns the shape of every leaf by name, each as a list, as TensorFlow's reader does."""
        self._read_infos()
        return {name: list(self.shape(name)) for name in self.keys()}

    def get_variable_to_dtype_map(self) -> dict[str, np.dtype[Any]]:
        """Returns the dtype of every leaf by name (numpy's, where TensorFlow's reader returns its own)."""
        self._read_infos()
        return {name: self.dtype(name) for name in self.keys() if not self._leaves[name].is_foreign}

    def metadata(self, name: str) -> LeafMetadata:
        """Returns what the checkpoint says of a leaf. Raises KeyError if there is no such leaf."""
        leaf = self._leaf(name)
        if leaf.is_string:
            return LeafMetadata(
                name, "str", (), None, len(self._stored.string(leaf).encode("utf-8", "surrogatepass")), None, None
            )
        if leaf.is_foreign:
            return LeafMetadata(name, leaf.value_type, (), None, 0, None, None)
        if self._shardings is None:
            self._shardings = self._stored.shardings()
        info = self._info(leaf)
        nbytes = math.prod(info.shape) * info.dtype.itemsize
        return LeafMetadata(
            name, _kind(leaf), info.shape, info.dtype, nbytes, self._shardings.get(leaf.param_name), leaf.key_impl
        )

    def tree(self) -> Any:
        """Returns all leaves as nested dicts of numpy arrays; lists stay lists, scalars, str and bytes are themselves.

        PRNG keys are their key data (`metadata` tells the implementation). Named tuples are dicts, as for Orbax. None stands for a leaf
        that only a program's own type handler can read, with a UserWarning.

        Raises:
          CorruptCheckpointError: stored data is damaged.
          FileNotFoundError: the checkpoint was deleted, or replaced by another one, since it was opened.
        """
        self._stored.presence.check()
        stored = self._stored.tree.leaves
        foreign = [leaf.name for leaf in stored if leaf.is_foreign]
        if foreign:
            warnings.warn(
                f"{self.path}: None stands for what only a type handler of the program that saved it can read: {', '.join(foreign)}",
                UserWarning,
                stacklevel=2,
            )
        arrays = [leaf for leaf in stored if not (leaf.is_empty or leaf.is_string or leaf.is_foreign)]
        self._stored.infos(arrays)
        values = dict(
            zip(
                (leaf.param_name for leaf in arrays),
                self._stored.read([(leaf.param_name, None) for leaf in arrays]),
                strict=True,
            )
        )
        root = _Node(self._stored.tree.sequences)
        with damage(os.path.join(self._stored.directory, tree_metadata.FILE)):
            for leaf in stored:
                value = (
                    _empty(leaf)
                    if leaf.is_empty or leaf.is_foreign
                    else self._stored.string(leaf)
                    if leaf.is_string
                    else _value(leaf, values[leaf.param_name])
                )
                root.put(leaf.path, value)
            if self._counter is not None:
                root.put(_COUNTER_LEAF.path, self._counter.item())
            return root.build()

    def _leaf(self, name: str) -> StoredLeaf:
        try:
            return self._leaves[name]
        except KeyError:
            import difflib

            bare = str(name).removesuffix(_TENSORFLOW_SUFFIX)
            close = [bare] if bare in self._leaves else difflib.get_close_matches(bare, self._leaves, n=3)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise KeyError(f"{self.path} has no leaf {name!r}.{hint}") from None

    def _readable(self, name: str) -> StoredLeaf:
        leaf = self._leaf(name)
        if leaf.is_foreign:
            raise CheckpointError(leaf.foreign(self.path))
        return leaf

    def _read_infos(self) -> None:
        """Reads the shapes of all arrays in one step; asking for each of them takes longer."""
        self._stored.infos(
            [leaf for leaf in self._leaves.values() if not (leaf.is_string or leaf.is_foreign or leaf is _COUNTER_LEAF)]
        )

    def _info(self, leaf: StoredLeaf) -> ArrayInfo:
        if leaf is _COUNTER_LEAF:
            return ArrayInfo((), np.dtype(np.int64), None)
        return self._stored.infos([leaf])[leaf.param_name]


class _Node:
    """A container in the making."""

    def __init__(self, sequences: Collection[tuple[str, ...]], path: tuple[str, ...] = ()) -> None:
        """Args: paths of containers whose keys are indices, whatever the keys say; the path of this one."""
        self._sequences = sequences
        self._path = path
        self._children: dict[str, Any] = {}
        self._is_indexed = True

    def put(self, path: tuple[tuple[str, bool], ...], value: Any) -> None:
        """Puts a leaf below this container. Raises DamagedError if another leaf is in the way."""
        node = self
        for text, is_index in path[:-1]:
            node._is_indexed = node._is_indexed and is_index
            below = node._children.get(text)
            if below is None:
                below = node._children[text] = _Node(self._sequences, (*node._path, text))
            elif not isinstance(below, _Node):
                raise DamagedError("a leaf lies below another leaf")
            node = below
        if not path or path[-1][0] in node._children:
            raise DamagedError("a leaf lies where another one is")
        text, is_index = path[-1]
        node._is_indexed = node._is_indexed and is_index
        node._children[text] = value

    def build(self) -> Any:
        """Returns the container. Not recursive: a stranger's tree may have more levels than Python has room for."""
        order = [self]
        for node in order:
            order.extend(child for child in node._children.values() if isinstance(child, _Node))
        built: dict[int, Any] = {}
        for node in reversed(order):
            items = {
                text: built.pop(id(child)) if isinstance(child, _Node) else child
                for text, child in node._children.items()
            }
            built[id(node)] = node._container(items)
        return built[id(self)]

    def _container(self, built: dict[str, Any]) -> Any:
        if not (built and (self._is_indexed or self._path in self._sequences) and all(map(_is_index, built))):
            return built
        items = {index: built[str(index)] for index in sorted(map(int, built))}
        # A sequence with holes keeps its indices.
        return list(items.values()) if len(items) == max(items) + 1 else items


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < _DIGITS and (text == "0" or text[0] != "0")


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


@overload
def load_checkpoint(path: str | os.PathLike[str]) -> Reader: ...
@overload
def load_checkpoint(*, ckpt_dir_or_file: str | os.PathLike[str]) -> Reader: ...
@also_named("path", "ckpt_dir_or_file")
def load_checkpoint(path: str | os.PathLike[str]) -> Reader:
    """Opens a checkpoint for reading without targets (TensorFlow: `tf.train.load_checkpoint`).

    Args:
      path: of a checkpoint, or a directory with a state file, which means its latest; TensorFlow's keyword `ckpt_dir_or_file` is
        taken too.

    Raises:
      FileNotFoundError: there is nothing.
      CheckpointError: what is there is no checkpoint.
      CorruptCheckpointError: it is damaged.
    """
    text = paths.spelled(paths.checked_path(path, "path"))
    if not storage.is_checkpoint(text) and (latest := state_file.latest_checkpoint(text)) is not None:
        text = latest
    return Reader(text)


@overload
def list_variables(path: str | os.PathLike[str]) -> list[tuple[str, tuple[int, ...]]]: ...
@overload
def list_variables(*, ckpt_dir_or_file: str | os.PathLike[str]) -> list[tuple[str, tuple[int, ...]]]: ...
@also_named("path", "ckpt_dir_or_file")
def list_variables(path: str | os.PathLike[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Returns name and shape of every leaf, sorted by name (TensorFlow: `tf.train.list_variables`).

    Args, Raises: as for `load_checkpoint`.
    """
    reader = load_checkpoint(path)
    return [(name, tuple(shape)) for name, shape in reader.get_variable_to_shape_map().items()]


@overload
def load_variable(path: str | os.PathLike[str], name: str) -> np.ndarray: ...
@overload
def load_variable(*, ckpt_dir_or_file: str | os.PathLike[str], name: str) -> np.ndarray: ...
@also_named("path", "ckpt_dir_or_file")
def load_variable(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """Returns one leaf as a numpy array (TensorFlow: `tf.train.load_variable`).

    Args, Raises: as for `load_checkpoint` and `Reader.get_tensor`.
    """
    return load_checkpoint(path).get_tensor(name)
