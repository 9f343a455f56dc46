"""Reads a checkpoint, or a part of it, without targets, into nested dicts and lists."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxckpt._lib import user_code
from jaxckpt._lib.documents import damage
from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.leaf_kinds.registry import stored_kind
from jaxckpt.storage.item import tree_metadata
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree
from jaxckpt.storage.source import OpenCheckpoint
from jaxckpt.tree.containers import Container
from jaxckpt.tree.names import VALUE

# Names of leaves, by the reason why they are not in a tree.
LeftOut: TypeAlias = dict[str, list[str]]

_UNREADABLE = "these leaves are None or left out, because only the program that saved them can read them"
_BELOW = (
    "these leaves are left out, because each lies below another leaf, where a tree has no place (get_tensor reads them)"
)


def tree(stored: OpenCheckpoint, part: StoredTree, counter: Any | None) -> Any:
    """Reads all leaves of a part of a checkpoint. Warns the caller's caller of those that cannot be in a tree.

    Args:
      stored: the checkpoint.
      part: its tree, or a part of it.
      counter: path and value of the save counter that is stored beside the tree; None if there is none.

    Returns:
      Nested dicts and lists.

    Raises:
      CorruptCheckpointError: stored data is damaged.
    """
    left_out: LeftOut = {}
    root = Container(part.sequences)
    for leaf, value in _values(stored, part, left_out, _plain):
        if not leaf.path:
            return _warned(stored, value, left_out)
        with damage(os.path.join(stored.directory, tree_metadata.FILE)):
            root.put(leaf.path, value)
    if counter is not None:
        with damage(os.path.join(stored.directory, tree_metadata.FILE)):
            root.put(*counter)
    return _warned(stored, root.build(), left_out)


def pure_dict(stored: OpenCheckpoint, part: StoredTree) -> Any:
    """Reads all leaves of a part of a checkpoint into the form that Flax calls a pure dict. Warns as `tree` does.

    Args:
      stored: the checkpoint.
      part: its tree, or a part of it.

    Returns:
      Nested dicts without empty ones, with integer keys for the indices of sequences, and with PRNG keys instead of their data.

    Raises:
      CorruptCheckpointError: stored data is damaged.
    """
    left_out: LeftOut = {}
    found = [(leaf, value) for leaf, value in _values(stored, part, left_out, _typed) if not leaf.is_empty]
    is_state = bool(found) and all(len(leaf.path) > 1 and leaf.path[-1][0] == VALUE for leaf, _ in found)
    root = Container(part.sequences, has_lists=False)
    for leaf, value in found:
        if not leaf.path:
            return _warned(stored, value, left_out)
        if not (leaf.is_foreign and value is None):
            with damage(os.path.join(stored.directory, tree_metadata.FILE)):
                root.put(_of_state(leaf.path) if is_state else leaf.path, value)
    return _warned(stored, root.build(), left_out)


def _warned(stored: OpenCheckpoint, value: Any, left_out: LeftOut) -> Any:
    for reason, names in left_out.items():
        user_code.warn(f"{stored.path}: {reason}: {', '.join(names)}", UserWarning)
    return value


def _of_state(path: Sequence[tuple[str, bool]]) -> tuple[tuple[str, bool], ...]:
    """Returns the path of a Variable for its path in an `nnx.State` that plain Orbax has stored.

    The array lies one level below the Variable, and indices are stored like keys of a dict. A key that is a number can only be an index.
    """
    return tuple((text, True) for text, _ in path[:-1])


def _values(
    stored: OpenCheckpoint, part: StoredTree, left_out: LeftOut, read: Callable[[StoredLeaf, np.ndarray], Any]
) -> Iterator[tuple[StoredLeaf, Any]]:
    """Yields the leaves that make a tree, each with its value.

    Args:
      stored: the checkpoint.
      part: its tree, or a part of it.
      left_out: the names of leaves that do not make a tree, or cannot be read, are added.
      read: makes the value of a leaf that is stored as an array.
    """
    leaves, below = without_nested(part)
    if below:
        left_out[_BELOW] = [leaf.name for leaf in below]
    arrays = [leaf for leaf in leaves if not (leaf.is_empty or leaf.is_string or leaf.is_foreign)]
    stored.infos(arrays)
    found = stored.read([(leaf.param_name, None) for leaf in arrays])
    values = dict(zip((leaf.param_name for leaf in arrays), found, strict=True))
    del found
    for leaf in leaves:
        value: Any
        if leaf.is_empty:
            value = {"Dict": {}, "List": [], "Tuple": ()}.get(leaf.value_type)
        elif leaf.is_foreign:
            value = _peculiar(stored, leaf, left_out)
        elif leaf.is_string:
            value = stored.string(leaf)
        else:
            with damage(leaf.name or stored.path, "its stored value"):
                value = read(leaf, values[leaf.param_name])
        yield leaf, value


def _plain(leaf: StoredLeaf, array: np.ndarray) -> Any:
    return stored_kind(leaf).read(array)


def _typed(leaf: StoredLeaf, array: np.ndarray) -> Any:
    return (
        _plain(leaf, array)
        if leaf.key_impl is None
        else jax.random.wrap_key_data(jax.numpy.asarray(array), impl=leaf.key_impl)
    )


def _peculiar(stored: OpenCheckpoint, leaf: StoredLeaf, left_out: LeftOut) -> Any:
    try:
        return stored.peculiar(leaf)
    except CorruptCheckpointError:
        raise
    except CheckpointError:
        left_out.setdefault(_UNREADABLE, []).append(leaf.name)
        return None


def without_nested(tree: StoredTree) -> tuple[list[StoredLeaf], list[StoredLeaf]]:
    """Returns the leaves that make a tree, and those that lie below another leaf. TensorFlow stores slot variables so.

    Args:
      tree: the tree metadata of a checkpoint.
    """
    if not tree.has_nested:
        return list(tree.leaves), []
    paths = {tuple(text for text, _ in leaf.path) for leaf in tree.leaves}
    fitting: list[StoredLeaf] = []
    below: list[StoredLeaf] = []
    for leaf in tree.leaves:
        texts = tuple(text for text, _ in leaf.path)
        is_below = any(texts[:depth] in paths for depth in range(len(texts)))
        (below if is_below else fitting).append(leaf)
    return fitting, below


def text_array(text: str) -> np.ndarray:
    """Returns a text as an array without axes."""
    # An array of numpy's str dtype drops null characters at the end of the text.
    return np.array(text, dtype=object) if text.endswith("\0") else np.asarray(text)
