"""Adapters for Flax NNX. Modules, optimizers, rngs and Variables are updated in place; an `nnx.State` is replaced like other values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxckpt.tree.builders import Builder, Constant, Rebuild, Undo, Walk, together
from jaxckpt.tree.names import OBJECT_INDEX, KnownPath, as_key
from jaxckpt.tree.nnx_classes import GRAPH_NODES, STATES, flax_nnx, is_of
from jaxckpt.tree.nnx_graph import Keys, Owners, assign, own, set_item
from jaxckpt.tree.nnx_variables import NnxVariable


def adapter_for(node: Any) -> "NnxVariable | NnxObject | NnxState | None":
    """Returns the adapter for `node` if it is an object of NNX; else None."""
    nnx = flax_nnx()
    if nnx is None:
        return None
    # Variables of the kind on which JAX's transformations act directly pass `isinstance`, although they are not of a subclass.
    if isinstance(node, nnx.Variable):
        return NnxVariable()
    if is_of(node, STATES):
        return NnxState()
    if is_of(node, GRAPH_NODES):
        return NnxObject()
    return None


def is_state(node: Any) -> bool:
    """Whether `node` is an `nnx.State`."""
    return is_of(node, STATES)


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are one object. A State makes a new object at each access to a part of it, so mappings are compared too."""
    return one is other or (is_state(one) and getattr(one, "raw_mapping", one) is getattr(other, "raw_mapping", None))


class NnxState:
    """The adapter for `nnx.State`: a pytree whose Variables are replaced. A live module may hold the same Variables; it keeps them."""

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes a State apart."""
        children, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
        if not children:
            walk.empty(node, path)
            return Constant(node)
        outside, walk.in_state = walk.in_state, True
        try:
            inner = [walk.take(child, path.below(*_text(entries[0]))) for entries, child in children]
        finally:
            walk.in_state = outside
        return _StateBuilder(node, [child for _, child in children], structure, inner)


def _text(entry: Any) -> tuple[str, int]:
    key = as_key(entry)
    return key.text, key.is_index


class _StateBuilder:
    def __init__(self, state: Any, children: list[Any], structure: Any, inner: list[Builder]) -> None:
        self._state, self._children, self._structure, self._inner = state, children, structure, inner

    def build(self, rebuild: Rebuild) -> Any:
        """Returns a new State, or the old one if all its leaves are kept."""
        new = [inner.build(rebuild) for inner in self._inner]
        if all(one is other for one, other in zip(new, self._children, strict=True)):
            return self._state
        return jax.tree_util.tree_unflatten(self._structure, new)


class NnxObject:
    """The adapter for modules, optimizers and rngs. Its parts are the Variables of the graph (a shared one appears once) and its arrays."""

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes the graph apart."""
        nnx = flax_nnx()
        # Variables and arrays stay in the order of the graph, because a rebuild hands out the leaves in this order.
        parts: list[_Part] = []
        owners: Owners = {(): node}
        outside, walk.in_state = walk.in_state, False
        try:
            for keys, leaf in nnx.to_flat_state(nnx.state(node)):
                below = path
                for key in keys:
                    below = below.below(str(key), OBJECT_INDEX if isinstance(key, int) else False)
                start = walk.position
                parts.append(_Part(keys, leaf, walk.take(leaf, below)))
                if not isinstance(leaf, nnx.Variable):
                    own(walk, owners, keys, start)
        finally:
            walk.in_state = outside
        if not parts:
            # Plain Orbax stores an object without state as an empty dict.
            walk.empty({}, path)
        return _ObjectBuilder(node, parts, owners)

    def children(self, root: Any) -> dict[str, Any]:
        """Returns the attributes that hold state, by name. Raises TypeError if some have indices instead of names."""
        nnx = flax_nnx()
        names = dict.fromkeys(path[0] for path, _ in nnx.to_flat_state(nnx.state(root)))
        children: dict[str, Any] = {}
        for name in names:
            if not isinstance(name, str):
                raise TypeError(
                    f"root must have names at its first level, but {type(root).__name__} has indices; pass its items by name."
                )
            children[name] = getattr(root, name)
        return children

    def set_child(self, root: Any, name: str, value: Any) -> Undo:
        """Sets an attribute."""
        return set_item(root, name, value)


class _Part(NamedTuple):
    """A Variable of a graph, or an array that is not in a Variable.

    Attributes:
      keys: the way to it.
      value: the Variable or the array.
      inner: its builder.
    """

    keys: Keys
    value: Any
    inner: Builder


class _ObjectBuilder:
    def __init__(self, node: Any, parts: list[_Part], owners: Owners) -> None:
        self._node, self._parts, self._owners = node, parts, owners

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the object itself, and adds the change that updates its arrays."""
        new = {}
        for part in self._parts:
            value = part.inner.build(rebuild)
            # A Variable never differs here: its own builder has added a change.
            if value is not part.value:
                new[part.keys] = value
        if new:
            rebuild.changes.append(lambda: self._set_arrays(new))
        return self._node

    def _set_arrays(self, new: Mapping[Keys, Any]) -> Undo:
        owners, undos = dict(self._owners), list[Undo]()
        put_back = together(undos)
        try:
            for keys, value in new.items():
                undos.append(assign(owners, keys, value))
        except BaseException:
            put_back()
            raise
        return put_back
