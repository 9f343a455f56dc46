"""Reading a checkpoint without targets (TensorFlow: `tf.train.CheckpointReader`)."""

import difflib
import fnmatch
import math
from collections.abc import Collection
from typing import Any

import numpy as np

from jaxckpt import storage
from jaxckpt._lib import html_tree
from jaxckpt._lib.boxes import Slices, part_of
from jaxckpt._lib.indexing import taken
from jaxckpt._lib.output import human_bytes
from jaxckpt.errors import CheckpointError
from jaxckpt.leaf_kinds.described import LeafMetadata
from jaxckpt.leaf_kinds.registry import stored_kind
from jaxckpt.restoring import untargeted
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.description import COUNTER
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree
from jaxckpt.tree import state_objects
from jaxckpt.tree.names import PROCESS
from jaxckpt.tree.renaming import path_of

# TensorFlow appends this to the name of a variable.
_TENSORFLOW_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# The save counter is stored beside the tree. The reader lists and reads it as a leaf.
_COUNTER_LEAF = StoredLeaf(((COUNTER, False),), COUNTER, "scalar", None, None)


class Reader:
    """Reads the leaves of one checkpoint as numpy arrays (TensorFlow: `tf.train.CheckpointReader`).

    It reads any Orbax checkpoint of a tree, on any number of devices, TensorFlow's checkpoints, and safetensors files. Data that jaxckpt or
    TensorFlow wrote is verified when it is read.
    """

    def __init__(self, path: str) -> None:
        """Opens the checkpoint at `path`. Programs call `load_checkpoint` instead."""
        self._stored = storage.open_checkpoint(path)
        self._leaves = {leaf.name: leaf for leaf in self._stored.tree.leaves if not leaf.is_empty}
        counter = self._stored.record.get(COUNTER)
        self._counter = None if counter is None else np.asarray(counter, np.int64)
        if self._counter is not None:
            self._leaves[COUNTER] = _COUNTER_LEAF
        # Other names of the same leaves: those of variables that several objects of a TensorFlow program share.
        self._aliases = {leaf.name: leaf for leaf in self._stored.tree.aliases}
        if self._stored.tree.has_nested:
            # The names in the files, such as "model/kernel/.ATTRIBUTES/VARIABLE_VALUE".
            self._aliases = {leaf.param_name: leaf for leaf in self._leaves.values()} | self._aliases
        self._shardings: dict[str, str] | None = None

    @property
    def path(self) -> str:
        """Path of the checkpoint."""
        return self._stored.path

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics that the checkpoint was saved with, by name (see `CheckpointManager.save`); empty if there are none.

        Orbax's CheckpointManager keeps its metrics at the same place, so those are found too. They may have values of any kind.

        Raises:
          CorruptCheckpointError: the stored metrics are damaged.
          FileNotFoundError: the checkpoint was deleted or replaced since it was opened.
        """
        with self._stored.presence:
            return dict(storage.read_facts(self.path).metrics or {})

    def keys(self, pattern: str | None = None) -> list[str]:
        """Returns the names of leaves, sorted. A leaf with several names (see `aliases`) is listed under one of them.

        Args:
          pattern: a pattern of `fnmatch`, in which ``*`` stands for any text, also with ``/`` in it; None for all leaves.
        """
        names = sorted(self._leaves)
        return names if pattern is None else [name for name in names if fnmatch.fnmatchcase(name, pattern)]

    def aliases(self) -> dict[str, str]:
        """Returns the other names of leaves, and for each of them the name under which `keys` lists the leaf.

        A TensorFlow checkpoint stores a variable that several objects share once. Every name works, here and in a restore.
        """
        own = {leaf.param_name: leaf.name for leaf in self._stored.tree.leaves}
        return {leaf.name: own[leaf.param_name] for leaf in self._stored.tree.aliases}

    def __contains__(self, name: object) -> bool:
        return name in self._leaves or name in self._aliases

    def __len__(self) -> int:
        return len(self._leaves)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of the leaf `name`; () for a str or a scalar. Raises KeyError if the checkpoint has no such leaf."""
        leaf = self._leaf(name)
        if leaf.is_foreign:
            return self._stored.shape_of(leaf)
        return () if leaf.is_string else self._info(leaf).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of the array that `get_tensor` returns for the leaf `name`. Raises what `get_tensor` raises."""
        leaf = self._leaf(name)
        if leaf.is_foreign:
            return self._stored.peculiar(leaf).dtype
        return untargeted.text_array(self._stored.string(leaf)).dtype if leaf.is_string else self._info(leaf).dtype

    def get_tensor(self, name: str, index: Any = None) -> np.ndarray:
        """Returns a leaf as a numpy array: a str as an array of str, bytes as an array of uint8, a PRNG key as its key data.

        A tensor of strings in a TensorFlow checkpoint is an array of bytes objects, as TensorFlow returns it.

        Args:
          name: name of the leaf.
          index: the part to read, as numpy's basic indexing takes it: integers, slices and ``...``, such as ``(0, slice(10, 20))`` or
            ``np.s_[0, 10:20]``. Only the stored chunks that have something of it are read. None reads the whole leaf.

        Raises:
          KeyError: the checkpoint has no leaf of this name.
          IndexError: the index does not fit the shape; the message names the leaf.
          TypeError: the index is of another kind, such as an array.
          CheckpointError: only the program that saved the leaf can read it: by a type handler of its own, or a type of TensorFlow's.
          CorruptCheckpointError: the data of the leaf is damaged.
          FileNotFoundError: the checkpoint was deleted or replaced since it was opened.
        """
        leaf = self._leaf(name)
        self._stored.presence.check()
        whole = self._in_memory(leaf)

        def read(box: Slices | None) -> np.ndarray:
            if whole is not None:
                return part_of(whole, box)
            (array,) = self._stored.read([(leaf.param_name, box)])
            return array

        shape = self._info(leaf).shape if whole is None else whole.shape
        array = read(None) if index is None else taken(index, shape, name, read)
        return array if array.flags.writeable and array.flags.c_contiguous else array.copy()

    def _in_memory(self, leaf: StoredLeaf) -> np.ndarray | None:
        """Returns a leaf that is not stored as an array; None for an array."""
        if leaf.is_foreign:
            return self._stored.peculiar(leaf)
        if leaf.is_string:
            return untargeted.text_array(self._stored.string(leaf))
        return np.array(self._counter) if leaf is _COUNTER_LEAF else None

    def has_tensor(self, name: str) -> bool:
        """Returns whether the checkpoint has a leaf `name` (TensorFlow's word for `name in reader`)."""
        return name in self

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Returns the shape of every leaf, by name. A shape is a list, as TensorFlow's reader returns it."""
        self._read_infos()
        return {name: list(self.shape(name)) for name in self.keys()}

    def get_variable_to_dtype_map(self) -> dict[str, np.dtype[Any]]:
        """Returns the dtype of every leaf that can be read, by name. It is numpy's dtype, not TensorFlow's."""
        self._read_infos()
        return {name: self.dtype(name) for name in self.keys() if not self._leaves[name].is_foreign}

    def metadata(self, name: str) -> LeafMetadata:
        """Returns the description of the leaf `name`. Raises KeyError if the checkpoint has no such leaf."""
        leaf = self._leaf(name)
        if leaf.is_string:
            return LeafMetadata(
                name, "str", (), None, len(self._stored.string(leaf).encode("utf-8", "surrogatepass")), None, None
            )
        if leaf.is_foreign:
            return LeafMetadata(name, leaf.value_type, self._stored.shape_of(leaf), None, 0, None, None)
        if self._shardings is None:
            self._shardings = self._stored.shardings()
        info = self._info(leaf)
        nbytes = math.prod(info.shape) * info.dtype.itemsize
        return LeafMetadata(
            name,
            stored_kind(leaf).reader_name,
            info.shape,
            info.dtype,
            nbytes,
            self._shardings.get(leaf.param_name),
            leaf.key_impl,
        )

    def restore_state(self, name: str, target: Any, *, process: int = 0) -> None:
        """Gives an object, such as a data iterator, the state that it had on one of the processes of the job that saved it.

        A `Checkpoint` restores the states of a job by itself if there are as many processes as then.

        Args:
          name: name of the object's leaf.
          target: the object. It has ``set_state(state)`` or ``deserialize(value)``.
          process: index of the process whose state is wanted. It does not matter if all had the same state.

        Raises:
          KeyError: the checkpoint does not have that state.
          TypeError: `target` cannot be given a state, or the leaf is not a state.
          BaseException: as `get_tensor`, and the error of the object, which is a ValueError if the state does not fit it.
        """
        others = [each for each in self._leaves if each.startswith(PROCESS) and each.partition("/")[2] == name]
        leaf = self._leaf(f"{PROCESS}{process}/{name}" if others and process else name)
        if leaf.is_foreign:
            raise CheckpointError(leaf.foreign(self.path))
        if leaf.is_string:
            state_objects.restore(target, self._stored.string(leaf), leaf.name)
            return
        if leaf.note != notes.BYTES.word:
            raise TypeError(f"{leaf.name} is not the state of an object.")
        state_objects.restore(target, self.get_tensor(leaf.name).tobytes(), leaf.name)

    def tree(self, prefix: str = "") -> Any:
        """Returns a tree of leaves: nested dicts and lists of numpy arrays, Python and numpy scalars, str and bytes.

        Lists and tuples become lists; a sequence that has holes becomes a dict with integer keys. A PRNG key is returned as its key data
        (`metadata` tells the implementation), and a named tuple as a dict, as Orbax does. For a leaf that only the program that saved it
        can read, the tree has None, and a UserWarning is issued. A leaf below another leaf, such as a slot variable of TensorFlow's, is
        left out, with a UserWarning too.

        Args:
          prefix: name of a container, whose tree is returned, or of a leaf, whose value is returned; empty for everything.

        Raises:
          KeyError: the checkpoint has nothing of that name.
          CorruptCheckpointError: stored data is damaged.
          FileNotFoundError: the checkpoint was deleted or replaced since it was opened.
        """
        if prefix == COUNTER and self._counter is not None:
            return self._counter.item()
        counter = None if self._counter is None or prefix else (_COUNTER_LEAF.path, self._counter.item())
        return untargeted.tree(self._stored, self._part(prefix), counter)

    def pure_dict(self, prefix: str = "") -> Any:
        """Returns a tree of leaves in the form that Flax NNX takes: ``nnx.replace_by_pure_dict(state, reader.pure_dict("model"))``.

        It consists of nested dicts, with integer keys for the indices of sequences. Empty containers, None and `save_counter` are left
        out. A PRNG key is a key, and not its data; everything else is as in `tree`. If every leaf is called ``value``, as in an
        `nnx.State` that plain Orbax saved, that level is left out.

        Args:
          prefix: name of a container; empty for everything.

        Raises:
          BaseException: as `tree`.
        """
        return untargeted.pure_dict(self._stored, self._part(prefix))

    def _part(self, prefix: str) -> StoredTree:
        self._stored.presence.check()
        part = self._stored.tree.at(tuple(key.text for key in path_of(prefix.rstrip("/"))))
        if prefix and not part.leaves:
            known = {"/".join(name.split("/")[: prefix.count("/") + 1]) for name in (*self._leaves, *self._aliases)}
            raise KeyError(self._nothing(prefix, known))
        return part

    def __repr__(self) -> str:
        return f"<Reader {self.path}: {len(self)} leaves>"

    def _repr_html_(self) -> str:
        """Returns a folded tree of the leaves, for notebooks."""
        self._read_infos()
        rows = []
        for name in self.keys():
            about = self.metadata(name)
            shape = "" if about.dtype is None else f"{about.dtype} {list(about.shape)}"
            rows.append((name, (about.kind, shape, human_bytes(about.nbytes))))
        return html_tree.of(repr(self)[1:-1], rows)

    def _leaf(self, name: str) -> StoredLeaf:
        found = self._leaves.get(name) or self._aliases.get(name)
        if found is None:
            raise KeyError(self._nothing(name, [*self._leaves, *self._aliases]))
        return found

    def _nothing(self, name: str, known: Collection[str]) -> str:
        """Returns the message about a name that is not among the known ones."""
        bare = str(name).removesuffix(_TENSORFLOW_SUFFIX)
        close = [bare] if bare in self else difflib.get_close_matches(bare, known, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        return f"{self.path} has no leaf {name!r}.{hint}"

    def _read_infos(self) -> None:
        """Reads the shapes of all arrays in one step, which is faster than reading them one by one."""
        self._stored.infos(
            [leaf for leaf in self._leaves.values() if not (leaf.is_string or leaf.is_foreign or leaf is _COUNTER_LEAF)]
        )

    def _info(self, leaf: StoredLeaf) -> ArrayInfo:
        if leaf is _COUNTER_LEAF:
            return ArrayInfo((), np.dtype(np.int64), None)
        return self._stored.infos([leaf])[leaf.param_name]


def beside_arrays(reader: Reader) -> set[str]:
    """Returns the names of the leaves that are not stored as arrays: texts, and the save counter."""
    return {name for name, leaf in reader._leaves.items() if leaf.is_string or leaf is _COUNTER_LEAF}
