"""Reads a whole checkpoint without targets, into nested dicts and lists."""

import os
from typing import Any

from jaxckpt._lib.documents import damage
from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.leaf_kinds.registry import stored_kind
from jaxckpt.storage.item import tree_metadata
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree
from jaxckpt.storage.source import OpenCheckpoint
from jaxckpt.tree.containers import Container

_UNREADABLE = "these leaves are None, because only the program that saved them can read them"
_BELOW = (
    "these leaves are left out, because each lies below another leaf, where a tree has no place (get_tensor reads them)"
)


def tree(stored: OpenCheckpoint, counter: Any | None) -> tuple[Any, dict[str, list[str]]]:
    """Reads all leaves.

    Args:
      stored: the checkpoint.
      counter: path and value of the save counter that is stored beside the tree; None if there is none.

    Returns:
      Nested dicts and lists; and the names of leaves that are not in them, by the reason.

    Raises:
      CorruptCheckpointError: stored data is damaged.
    """
    left_out: dict[str, list[str]] = {}
    leaves, below = without_nested(stored.tree)
    if below:
        left_out[_BELOW] = [leaf.name for leaf in below]
    arrays = [leaf for leaf in leaves if not (leaf.is_empty or leaf.is_string or leaf.is_foreign)]
    stored.infos(arrays)
    read = stored.read([(leaf.param_name, None) for leaf in arrays])
    values = dict(zip((leaf.param_name for leaf in arrays), read, strict=True))
    if len(arrays) == 1 and not arrays[0].path:
        # One array is the whole tree.
        with damage(stored.path, "its stored value"):
            return stored_kind(arrays[0]).read(values[arrays[0].param_name]), left_out
    root = Container(stored.tree.sequences)
    for leaf in leaves:
        value: Any
        if leaf.is_empty:
            value = {"Dict": {}, "List": [], "Tuple": ()}.get(leaf.value_type)
        elif leaf.is_foreign:
            value = _peculiar(stored, leaf, left_out)
        elif leaf.is_string:
            value = stored.string(leaf)
        else:
            with damage(leaf.name, "its stored value"):
                value = stored_kind(leaf).read(values[leaf.param_name])
        with damage(os.path.join(stored.directory, tree_metadata.FILE)):
            root.put(leaf.path, value)
    if counter is not None:
        with damage(os.path.join(stored.directory, tree_metadata.FILE)):
            root.put(*counter)
    return root.build(), left_out


def _peculiar(stored: OpenCheckpoint, leaf: StoredLeaf, left_out: dict[str, list[str]]) -> Any:
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
        is_below = any(texts[:depth] in paths for depth in range(1, len(texts)))
        (below if is_below else fitting).append(leaf)
    return fitting, below
