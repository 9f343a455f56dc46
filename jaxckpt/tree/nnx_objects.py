"""Flax NNX: modules, optimizers, rngs and Variables are updated in place; an `nnx.State` is a value.

What is taken and put is a Variable's *raw* value: hooks, and getters and setters that a class overrides, do not run. Flax is never
imported here: an object can only be an NNX object if the program has imported Flax already.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxckpt.tree.builders import Builder, Constant, Rebuild, Undo, Walk, together
from jaxckpt.tree.names import OBJECT_INDEX, KnownPath, as_key

_STATES = ("State", "GraphState", "FlatState")
# The base of all classes of graph nodes has had two names.
_GRAPH_NODES = ("Module", "Optimizer", "Pytree", "Object")


def _nnx() -> Any:
    return sys.modules.get("flax.nnx")


def adapter_for(node: Any) -> "NnxVariable | NnxObject | NnxState | None":
    """Returns the adapter for objects like this one, if it is NNX's."""
    nnx = _nnx()
    if nnx is None:
        return None
    # Variables on which JAX's transformations act directly say that they are instances, without being of a subclass.
    if isinstance(node, nnx.Variable):
        return NnxVariable()
    if isinstance(node, _classes(nnx, *_STATES)):
        return NnxState()
    if isinstance(node, _classes(nnx, *_GRAPH_NODES)):
        return NnxObject()
    return None


def is_state(node: Any) -> bool:
    """Whether `node` is an `nnx.State`."""
    nnx = _nnx()
    return nnx is not None and isinstance(node, _classes(nnx, *_STATES))


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are one object. A part of an `nnx.State` is a State that is made anew whenever it is asked for."""
    return one is other or (is_state(one) and getattr(one, "raw_mapping", one) is getattr(other, "raw_mapping", None))


def _classes(nnx: Any, *names: str) -> tuple[type, ...]:
    found = (getattr(nnx, name, None) for name in names)
    return tuple(kind for kind in found if isinstance(kind, type))


def _raw_value(variable: Any) -> Any:
    base = _nnx().Variable
    raw = base.get_raw_value(variable) if issubclass(type(variable), base) else variable.get_raw_value()
    return raw[...] if _is_ref(raw) else raw


def _set_raw_value(variable: Any, value: Any) -> Undo:
    base = _nnx().Variable
    if not issubclass(type(variable), base):
        old = variable.get_raw_value()
        variable.set_raw_value(value)
        return lambda: variable.set_raw_value(old)
    old = base.get_raw_value(variable)
    if _is_ref(old):
        reference, old = old, old[...]
        reference[...] = value

        def put_back() -> None:
            reference[...] = old

        return put_back
    base.set_raw_value(variable, value)
    return lambda: base.set_raw_value(variable, old)


def _is_ref(raw: Any) -> bool:
    """Whether a raw value is a jax.Ref, which holds the array."""
    ref = getattr(jax, "Ref", None)
    return ref is not None and isinstance(raw, ref)


class NnxVariable:
    """The adapter for Variables, alone, in a module or in an `nnx.State`: the raw value is the leaf, or a pytree of leaves."""

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes a Variable apart."""
        raw = _raw_value(node)
        start, outside = walk.position, walk.variable_depth
        walk.variable_depth = len(path.path)
        try:
            inner = walk.take(raw, path)
        finally:
            walk.variable_depth = outside
        walk.own(node, start, in_place=not walk.in_state)
        return _VariableBuilder(node, raw, inner, walk.in_state)


class _VariableBuilder:
    __slots__ = ("_in_state", "_inner", "_raw", "_variable")

    def __init__(self, variable: Any, raw: Any, inner: Builder, in_state: bool) -> None:
        self._variable, self._raw, self._inner, self._in_state = variable, raw, inner, in_state

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the Variable, which a change gives its value; one that is part of a value only is replaced."""
        variable, new = self._variable, self._inner.build(rebuild)
        if new is self._raw:
            return variable
        if not self._in_state:
            rebuild.changes.append(lambda: _set_raw_value(variable, new))
            return variable
        if id(variable) in rebuild.in_place:
            # A module of the same Checkpoint holds it too, and it is given the value there: they go on sharing it.
            return variable
        if id(variable) not in rebuild.renewed:
            rebuild.renewed[id(variable)] = variable.replace(new)
        return rebuild.renewed[id(variable)]


class NnxState:
    """The adapter for `nnx.State`: a pytree, whose Variables are values. They may be those of a live module, which keeps its own."""

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
        """Returns another State."""
        new = [inner.build(rebuild) for inner in self._inner]
        if all(one is other for one, other in zip(new, self._children, strict=True)):
            return self._state
        return jax.tree_util.tree_unflatten(self._structure, new)


class NnxObject:
    """The adapter for modules, optimizers and rngs: the Variables of the graph, each shared one once, and its arrays."""

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes the graph apart."""
        nnx = _nnx()
        # In the order of the graph, where Variables and arrays come as they stand: a rebuild hands the leaves out in this order.
        parts: list[_Part] = []
        owners = {(): node}
        outside, walk.in_state = walk.in_state, False
        try:
            for keys, leaf in nnx.to_flat_state(nnx.state(node)):
                below = path
                for key in keys:
                    below = below.below(str(key), OBJECT_INDEX if isinstance(key, int) else False)
                start = walk.position
                parts.append(_Part(keys, leaf, walk.take(leaf, below)))
                if not isinstance(leaf, nnx.Variable):
                    _own(walk, owners, keys, start)
        finally:
            walk.in_state = outside
        if not parts:
            # Plain Orbax stores an object without state as an empty dict.
            walk.empty({}, path)
        return _ObjectBuilder(node, parts, owners)

    def children(self, root: Any) -> dict[str, Any]:
        """Returns the attributes (or items) that hold state, by name."""
        nnx = _nnx()
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
        return _set_item(root, name, value)


class _Part(NamedTuple):
    """A Variable of a graph, or an array that is not in one, and the keys that lead to it."""

    keys: tuple[Any, ...]
    value: Any
    inner: Builder


class _ObjectBuilder:
    def __init__(self, node: Any, parts: list[_Part], owners: dict[tuple[Any, ...], Any]) -> None:
        self._node, self._parts, self._owners = node, parts, owners

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the object, which changes update."""
        new = {}
        for part in self._parts:
            value = part.inner.build(rebuild)
            # A Variable is the old one: it has a change of its own.
            if value is not part.value:
                new[part.keys] = value
        if new:
            rebuild.changes.append(lambda: self._set_arrays(new))
        return self._node

    def _set_arrays(self, new: Mapping[tuple[Any, ...], Any]) -> Undo:
        owners, undos = dict(self._owners), list[Undo]()
        put_back = together(undos)
        try:
            for keys, value in new.items():
                undos.append(_assign(owners, keys, value))
        except BaseException:
            put_back()
            raise
        return put_back


def _own(walk: Walk, owners: dict[tuple[Any, ...], Any], keys: tuple[Any, ...], start: int) -> None:
    """Says what holds an array. `owners`: what there is at which keys; gets what leads to the array."""
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
    return isinstance(owner, (list, dict, *_classes(_nnx(), *_GRAPH_NODES)))


def _child(owner: Any, key: Any) -> Any:
    if _is_mutable(owner):
        return _get_item(owner, key)
    children = jax.tree_util.tree_flatten_with_path(owner, is_leaf=lambda child: child is not owner)[0]
    return next(child for entries, child in children if _text(entries[0])[0] == str(key))


def _assign(owners: dict[Any, Any], keys: tuple[Any, ...], value: Any) -> Undo:
    """Gives a part of a graph another value. `owners`: what there is at which keys; kept up to date."""
    *above, key = keys
    owner = owners[tuple(above)]
    if _is_mutable(owner):
        return _set_item(owner, key, value)
    # A tuple, or another pytree that cannot be changed: another one takes its place.
    children, structure = jax.tree_util.tree_flatten_with_path(owner, is_leaf=lambda child: child is not owner)
    new = [value if _text(entries[0])[0] == str(key) else child for entries, child in children]
    owners[tuple(above)] = jax.tree_util.tree_unflatten(structure, new)
    return _assign(owners, tuple(above), owners[tuple(above)])


def _has_items(owner: Any, key: Any) -> bool:
    return isinstance(owner, dict) or isinstance(key, int)


def _get_item(owner: Any, key: Any) -> Any:
    return owner[key] if _has_items(owner, key) else getattr(owner, key)


def _set_item(owner: Any, key: Any, value: Any) -> Undo:
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
