"""Pytrees as Orbax takes them apart: by JAX's own rules and keys, without a look at what objects such as NNX modules mean."""

from typing import Any, NamedTuple

import jax

from jaxckpt.tree.flatten import EmptyNode, Flat, Leaf
from jaxckpt.tree.names import Key, KnownPath, known_paths, leaf_name


class Pytree(NamedTuple):
    """A pytree taken apart.

    Attributes:
      flat: its leaves, empty containers and Nones.
      structure: its structure, in which empty containers and Nones are leaves.
      positions: the position of each of `flat.leaves` among the leaves of `structure`.
    """

    flat: Flat
    structure: Any
    positions: list[int]

    def beside(self, tree: Any, what: str) -> list[Any]:
        """Returns the values of another tree that belong to `flat.leaves`.

        Args:
          tree: a tree that has the structure of the pytree at least.
          what: what the tree is, for the error.

        Raises:
          ValueError: the tree has another structure.
        """
        try:
            values = self.structure.flatten_up_to(tree)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{what}: its structure differs from that of the item: {error}") from error
        return [values[position] for position in self.positions]


def flatten(item: Any) -> Pytree:
    """Takes a pytree apart. Every leaf gets the keys that Orbax stores for it.

    Args:
      item: the pytree. Its root may be a leaf.

    Raises:
      ValueError: a custom node has keys of a type that Orbax does not know.
      TypeError: a mapping has keys that cannot be sorted.
    """
    try:
        found, structure = jax.tree_util.tree_flatten_with_path(item, is_leaf=_is_empty)
    except RecursionError as error:
        raise ValueError("this tree is nested too deeply; does it contain itself?") from error
    flat, positions = Flat(), []
    known = known_paths()
    for position, (keys, value) in enumerate(found):
        path = _path(known, keys).path
        if _is_empty(value):
            flat.empties.append(EmptyNode(path, value))
        else:
            flat.leaves.append(Leaf(path, value))
            positions.append(position)
    return Pytree(flat, structure, positions)


def _path(known: KnownPath, keys: tuple[Any, ...]) -> KnownPath:
    for key in keys:
        if isinstance(key, jax.tree_util.DictKey):
            known = known.below(str(key.key))
        elif isinstance(key, jax.tree_util.GetAttrKey):
            known = known.below(key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            known = known.below(str(key.idx), True)
        elif isinstance(key, jax.tree_util.FlattenedIndexKey):
            known = known.below(str(key.key), True)
        else:
            where = leaf_name((*known.path, Key(str(key))))
            raise ValueError(
                f"{where}: Orbax cannot store a key of type {type(key).__name__}. Register the node with other keys."
            )
    return known


def _is_empty(node: Any) -> bool:
    """Whether a node is an empty container or None."""
    if node is None:
        return True
    if isinstance(node, (dict, list, tuple)):
        return not node
    if isinstance(node, (jax.Array, str, int, float)):
        return False
    # A custom node without children, such as an empty nnx.State. JAX looks one level deep.
    found = jax.tree_util.tree_leaves(node, is_leaf=lambda each: each is not node)
    return not found
