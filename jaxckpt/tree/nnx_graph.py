"""Arrays of an NNX graph that are not in Variables, but in modules, lists, dicts and tuples. A restore assigns to their holder."""

from typing import Any

import jax

from jaxckpt.tree.builders import Undo, Walk
from jaxckpt.tree.names import as_key
from jaxckpt.tree.nnx_classes import GRAPH_NODES, is_of

Keys = tuple[Any, ...]
"""The way from the root of a graph to one of its parts: attributes, keys and indices."""

Owners = dict[Keys, Any]
"""Parts of one graph that hold other parts, by the keys that lead to them. The root is at `()`."""


def own(walk: Walk, owners: Owners, keys: Keys, start: int) -> None:
    """Tells a walk which object holds an array.

    Args:
      walk: the walk, which has just taken the array.
      owners: the graph's owners. The parts on the way to the array are added.
      keys: the way to the array.
      start: position of the array's first leaf.
    """
    # nnx.iter_graph would not do: it visits each tuple once, even if it lies at several places.
    for length in range(1, len(keys)):
        if keys[:length] not in owners:
            owners[keys[:length]] = _child(owners[keys[: length - 1]], keys[length - 1])
    length = len(keys) - 1
    # A tuple cannot be changed, so its holder gets a new tuple. Other holders of the same tuple keep the old one.
    while not _is_mutable(owners[keys[:length]]):
        length -= 1
    walk.own(owners[keys[:length]], start, key=keys[length:])


def _is_mutable(owner: Any) -> bool:
    """Whether a part of a graph can be changed in place."""
    return isinstance(owner, (list, dict)) or is_of(owner, GRAPH_NODES)


def _child(owner: Any, key: Any) -> Any:
    if _is_mutable(owner):
        return _get_item(owner, key)
    children = jax.tree_util.tree_flatten_with_path(owner, is_leaf=lambda child: child is not owner)[0]
    return next(child for entries, child in children if as_key(entries[0]).text == str(key))


def assign(owners: Owners, keys: Keys, value: Any) -> Undo:
    """Assigns a value to a part of a graph.

    Args:
      owners: the graph's owners, as `own` has filled them. They are kept up to date.
      keys: the way to the part.
      value: its new value.

    Returns:
      The undo.
    """
    *above, key = keys
    owner = owners[tuple(above)]
    if _is_mutable(owner):
        return set_item(owner, key, value)
    # The owner is a tuple or another pytree that cannot be changed. A new one takes its place.
    children, structure = jax.tree_util.tree_flatten_with_path(owner, is_leaf=lambda child: child is not owner)
    new = [value if as_key(entries[0]).text == str(key) else child for entries, child in children]
    owners[tuple(above)] = jax.tree_util.tree_unflatten(structure, new)
    return assign(owners, tuple(above), owners[tuple(above)])


def _has_items(owner: Any, key: Any) -> bool:
    return isinstance(owner, dict) or isinstance(key, int)


def _get_item(owner: Any, key: Any) -> Any:
    return owner[key] if _has_items(owner, key) else getattr(owner, key)


def set_item(owner: Any, key: Any, value: Any) -> Undo:
    """Assigns a value to an item or an attribute, and returns the undo. If this raises, the old value is still there.

    Args:
      owner: the object that has the item or attribute.
      key: the item's key or the attribute's name.
      value: the new value.
    """
    old = _get_item(owner, key)

    def put(value: Any) -> None:
        if _has_items(owner, key):
            owner[key] = value
        else:
            setattr(owner, key, value)

    try:
        put(value)
    except BaseException:
        # The object's own code may have failed after it had set the value.
        if _get_item(owner, key) is not old:
            put(old)
        raise
    return lambda: put(old)
