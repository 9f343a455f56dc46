"""The parts of an NNX graph that are no Variables: arrays in modules, in lists, dicts and tuples. They are changed where they are held."""

from typing import Any

import jax

from jaxckpt.tree.builders import Undo, Walk
from jaxckpt.tree.names import as_key
from jaxckpt.tree.nnx_classes import GRAPH_NODES, is_of

Keys = tuple[Any, ...]
"""What leads from the root of a graph to a part of it: attributes, keys and indices."""

Owners = dict[Keys, Any]
"""Parts of one graph that hold others, by the keys that lead to them. The root is at `()`."""


def own(walk: Walk, owners: Owners, keys: Keys, start: int) -> None:
    """Tells a walk which object holds an array.

    Args:
      walk: which has just taken the array.
      owners: of the graph; what leads to the array is added.
      keys: of the array.
      start: position of its first leaf.
    """
    # Not with nnx.iter_graph, which passes each tuple once, though it may stand at several places.
    for length in range(1, len(keys)):
        if keys[:length] not in owners:
            owners[keys[:length]] = _child(owners[keys[: length - 1]], keys[length - 1])
    length = len(keys) - 1
    # A tuple is replaced by another: what holds it is changed. Others that hold the same tuple keep theirs.
    while not _is_mutable(owners[keys[:length]]):
        length -= 1
    walk.own(owners[keys[:length]], start, key=keys[length:])


def _is_mutable(owner: Any) -> bool:
    """Whether a part of a graph is changed in place."""
    return isinstance(owner, (list, dict)) or is_of(owner, GRAPH_NODES)


def _child(owner: Any, key: Any) -> Any:
    if _is_mutable(owner):
        return _get_item(owner, key)
    children = jax.tree_util.tree_flatten_with_path(owner, is_leaf=lambda child: child is not owner)[0]
    return next(child for entries, child in children if as_key(entries[0]).text == str(key))


def assign(owners: Owners, keys: Keys, value: Any) -> Undo:
    """Gives a part of a graph another value.

    Args:
      owners: of the graph, as `own` has filled it; kept up to date.
      keys: of the part.
      value: the new one.

    Returns:
      What gives the part its old value back.
    """
    *above, key = keys
    owner = owners[tuple(above)]
    if _is_mutable(owner):
        return set_item(owner, key, value)
    # A tuple, or another pytree that cannot be changed: another one takes its place.
    children, structure = jax.tree_util.tree_flatten_with_path(owner, is_leaf=lambda child: child is not owner)
    new = [value if as_key(entries[0]).text == str(key) else child for entries, child in children]
    owners[tuple(above)] = jax.tree_util.tree_unflatten(structure, new)
    return assign(owners, tuple(above), owners[tuple(above)])


def _has_items(owner: Any, key: Any) -> bool:
    return isinstance(owner, dict) or isinstance(key, int)


def _get_item(owner: Any, key: Any) -> Any:
    return owner[key] if _has_items(owner, key) else getattr(owner, key)


def set_item(owner: Any, key: Any, value: Any) -> Undo:
    """Sets an item or an attribute of `owner` to `value`. Returns what sets it back. If this raises, the old value is there."""
    old = _get_item(owner, key)

    def put(value: Any) -> None:
        if _has_items(owner, key):
            owner[key] = value
        else:
            setattr(owner, key, value)

    try:
        put(value)
    except BaseException:
        # The object's own code may have failed after it set the value.
        if _get_item(owner, key) is not old:
            put(old)
        raise
    return lambda: put(old)
