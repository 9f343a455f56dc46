"""Values → named leaves: a walk takes a value apart, and leaves what puts it together again (see the README of this room)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.tree import objects
from jaxckpt.tree.builders import LEAF_BUILDER, Builder, Constant, Owned, RangeBuilder, Rebuild
from jaxckpt.tree.names import Key, KnownPath, Path, as_key, known_paths, leaf_name
from jaxckpt.tree.roles import DICT, LEAF, OTHER, REFERENCE, ROLES, SEQUENCE, role_of, stops


class Leaf(NamedTuple):
    """One leaf of a value.

    Attributes:
      path: where it sits.
      value: what is there.
      variable_depth: if it is in an NNX Variable, the length of the Variable's own path; else 0.
    """

    path: Path
    value: Any
    variable_depth: int = 0

    @property
    def name(self) -> str:
        """The path joined by ``/``."""
        return leaf_name(self.path)

    @property
    def name_in_state(self) -> str | None:
        """What plain Orbax calls this leaf if it saves the `nnx.State`; None if it is not in an NNX Variable."""
        depth = self.variable_depth
        return leaf_name((*self.path[:depth], Key("value"), *self.path[depth:])) if depth else None


class EmptyNode(NamedTuple):
    """An empty container (or None): nothing to store, but part of the structure. `value` is the container."""

    path: Path
    value: Any


@dataclass(slots=True)
class Flat:
    """A value taken apart.

    Attributes:
      leaves: the leaves, in the order of the tree.
      empties: empty containers and Nones.
      owned: which leaves belong to something that has one value only, under however many names it stands.
      builder: puts the value together again.
    """

    leaves: list[Leaf] = field(default_factory=list)
    empties: list[EmptyNode] = field(default_factory=list)
    owned: list[Owned] = field(default_factory=list)
    builder: Builder = LEAF_BUILDER


@quiet_gc()
def flatten(name: str, value: Any, parents: tuple[int, ...] = (), *, in_state: bool = False) -> Flat:
    """Takes the value called `name` apart.

    Args:
      name: top-level name; the first key of every path.
      value: a pytree, possibly holding reference objects.
      parents: ids of the reference objects that hold the value, so must not be inside it.
      in_state: the value is part of an `nnx.State`, so that its Variables are values too.

    Raises:
      TypeError: a mapping whose keys cannot be ordered (JAX's own limit on pytrees); the message names the value.
      ValueError: the value contains itself.
    """
    return _flatten(known_paths().below(name), value, parents, in_state)


def flatten_item(item: Any) -> Flat:
    """Takes a whole tree apart that has no top-level names of its own, as Orbax's users save it."""
    return _flatten(known_paths(), item, (), False)


def _flatten(path: KnownPath, value: Any, parents: tuple[int, ...], in_state: bool) -> Flat:
    walk = _Walk(parents, in_state)
    try:
        walk.flat.builder = walk.take(value, path)
    except (ValueError, TypeError) as error:
        if "Comparator raised exception" in str(error) or "not supported between instances" in str(error):
            raise TypeError(
                f"{leaf_name(path.path)}: a mapping in this value has keys of types that cannot be sorted together; "
                "JAX pytrees need mapping keys of one type. Use strings for all of its keys."
            ) from error
        raise
    except RecursionError as error:
        raise ValueError(f"{leaf_name(path.path)}: this value is nested too deeply; does it contain itself?") from error
    return walk.flat


class _Walk:
    """Takes one value apart. Its attributes and methods are those of `builders.Walk`."""

    def __init__(self, parents: tuple[int, ...], in_state: bool) -> None:
        self.flat = Flat()
        self.in_state = in_state
        self.variable_depth = 0
        self._parents = list(parents)

    @property
    def position(self) -> int:
        return len(self.flat.leaves)

    def take(self, value: Any, path: KnownPath) -> Builder:
        role = ROLES.get(type(value)) or role_of(value)
        if role is LEAF:
            return self.leaf(value, path)
        if role is REFERENCE:
            return self._take_reference(value, path)
        references: list[Builder] = []
        self._walk(value, path, references)
        return _PytreeBuilder(value, references)

    def leaf(self, value: Any, path: KnownPath) -> Builder:
        self.flat.leaves.append(_leaf(Leaf, (path.path, value, self.variable_depth)))
        return LEAF_BUILDER

    def empty(self, value: Any, path: KnownPath) -> Builder:
        self.flat.empties.append(EmptyNode(path.path, value))
        return Constant(value)

    def own(self, owner: Any, start: int, *, key: Hashable = None, in_place: bool = True) -> None:
        self.flat.owned.append(Owned(owner, key, start, len(self.flat.leaves), in_place))

    def _take_reference(self, node: Any, path: KnownPath) -> Builder:
        adapter = objects.adapter(node)
        assert adapter is not None
        if id(node) in self._parents:
            raise ValueError(f"{leaf_name(path.path)}: this value contains itself.")
        self._parents.append(id(node))
        try:
            start = self.position
            return RangeBuilder(adapter.take(node, path, self), start, self.position)
        finally:
            self._parents.pop()

    def _walk(self, node: Any, path: KnownPath, references: list[Builder]) -> None:
        """Walks through a pytree in the order of JAX. Not with JAX's own functions: with paths, they take several times as long."""
        role = ROLES.get(type(node)) or role_of(node)
        if role is LEAF:
            self.leaf(node, path)
        elif role is REFERENCE:
            references.append(self._take_reference(node, path))
        elif role is not OTHER and not node:
            self.empty(node, path)
        elif role is DICT:
            leaves, depth = self.flat.leaves, self.variable_depth
            for key, below in path.items(node):
                child = node[key]
                if ROLES.get(type(child)) is LEAF:
                    leaves.append(_leaf(Leaf, (below.path, child, depth)))
                else:
                    self._walk(child, below, references)
        elif role is SEQUENCE:
            # There may be more known paths than items.
            for child, below in zip(node, path.indices(len(node)), strict=False):
                self._walk(child, below, references)
        else:
            for entries, child in _children(node):
                if not entries:
                    self.leaf(child, path)
                else:
                    key = as_key(entries[0])
                    self._walk(child, path.below(key.text, key.is_index), references)


_leaf = tuple.__new__


def _children(node: Any) -> list[tuple[Any, Any]]:
    """Returns the children of a pytree node, each with its key; the node itself, without a key, if it is a leaf."""
    is_child = iter((False,))
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda _: next(is_child, True))[0]


class _PytreeBuilder:
    """Puts a pytree together that may hold reference objects."""

    def __init__(self, value: Any, references: Sequence[Builder]) -> None:
        self._value, self._references = value, references

    def build(self, rebuild: Rebuild) -> Any:
        nodes, structure = jax.tree_util.tree_flatten(self._value, is_leaf=stops)
        references = iter(self._references)
        new = []
        for node in nodes:
            role = role_of(node)
            if role is REFERENCE:
                new.append(next(references).build(rebuild))
            elif role is LEAF or role is OTHER or node:
                new.append(rebuild.leaf())
            else:
                new.append(node)
        if all(one is other for one, other in zip(new, nodes, strict=True)):
            return self._value
        return jax.tree_util.tree_unflatten(structure, new)
