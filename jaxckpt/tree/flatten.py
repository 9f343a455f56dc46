"""Values → named leaves: a walk takes a value apart, and returns a builder that can rebuild it (see README.md of this room)."""

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.tree import objects
from jaxckpt.tree.builders import LEAF_BUILDER, Builder, Constant, Owned, RangeBuilder, Rebuild
from jaxckpt.tree.names import VALUE, Key, KnownPath, Path, as_key, known_paths, leaf_name
from jaxckpt.tree.roles import DICT, LEAF, OTHER, REFERENCE, ROLES, SEQUENCE, role_of, stops


class Leaf(NamedTuple):
    """One leaf of a value.

    Attributes:
      path: where the leaf lies.
      value: its value.
      variable_depth: the length of the Variable's path if the leaf lies in an NNX Variable; else 0.
      is_state: whether it is the state of an object such as a data iterator, which belongs to its process.
    """

    path: Path
    value: Any
    variable_depth: int = 0
    is_state: bool = False

    @property
    def name(self) -> str:
        """The path joined by ``/``."""
        return leaf_name(self.path)

    @property
    def name_in_state(self) -> str | None:
        """The name that plain Orbax gives this leaf when it saves the `nnx.State`; None if the leaf is not in an NNX Variable."""
        depth = self.variable_depth
        return leaf_name((*self.path[:depth], Key(VALUE), *self.path[depth:])) if depth else None


class EmptyNode(NamedTuple):
    """An empty container, or None: part of the structure without any data.

    Attributes:
      path: where it lies.
      value: the container.
    """

    path: Path
    value: Any


@dataclass(slots=True)
class Flat:
    """A value taken apart.

    Attributes:
      leaves: the leaves, in the order of the tree.
      empties: empty containers and Nones.
      owned: the leaves that belong to one object, see `Owned`.
      builder: rebuilds the value.
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
      value: a pytree, which may hold reference objects.
      parents: ids of the reference objects that hold the value. The value must not contain them.
      in_state: whether the value is part of an `nnx.State`. Its Variables are then replaced instead of changed in place.

    Raises:
      TypeError: a mapping has keys that cannot be sorted (JAX's own limit on pytrees); the message names the value.
      ValueError: the value contains itself.
    """
    return _flatten(known_paths().below(name), value, parents, in_state)


def flatten_item(item: Any) -> Flat:
    """Takes apart a whole tree without a top-level name, as users of Orbax save it."""
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
    """Takes one value apart. Implements `builders.Walk`, which describes its attributes and methods."""

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
        empties = len(self.flat.empties)
        self._walk(value, path, references)
        return _PytreeBuilder(value, references, is_plain=not references and len(self.flat.empties) == empties)

    def leaf(self, value: Any, path: KnownPath, *, is_state: bool = False) -> Builder:
        self.flat.leaves.append(_leaf(Leaf, (path.path, value, self.variable_depth, is_state)))
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
        """Walks through a pytree in JAX's order. JAX's own functions that yield paths take several times as long."""
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
                    leaves.append(_leaf(Leaf, (below.path, child, depth, False)))
                else:
                    self._walk(child, below, references)
        elif role is SEQUENCE:
            # `indices` may return more paths than there are items.
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
    """Returns the children of a pytree node, each with its key; if the node is a leaf, the node itself with an empty key."""
    is_child = iter((False,))
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda _: next(is_child, True))[0]


class _PytreeBuilder:
    """The builder of a pytree, which may hold reference objects."""

    def __init__(self, value: Any, references: Sequence[Builder], *, is_plain: bool) -> None:
        """Makes the builder.

        Args:
          value: the pytree.
          references: the builders of its reference objects.
          is_plain: whether it holds leaves only: no reference object, no empty container and no None.
        """
        self._value, self._references, self._is_plain = value, references, is_plain

    def build(self, rebuild: Rebuild) -> Any:
        nodes, structure = jax.tree_util.tree_flatten(self._value, is_leaf=None if self._is_plain else stops)
        new = rebuild.leaves(len(nodes)) if self._is_plain else self._rebuilt(nodes, rebuild)
        if all(map(operator.is_, new, nodes)):
            return self._value
        return jax.tree_util.tree_unflatten(structure, new)

    def _rebuilt(self, nodes: Sequence[Any], rebuild: Rebuild) -> list[Any]:
        references = iter(self._references)
        new = []
        for node in nodes:
            role = ROLES.get(type(node)) or role_of(node)
            if role is REFERENCE:
                new.append(next(references).build(rebuild))
            elif role is LEAF or role is OTHER or node:
                new.append(rebuild.leaf())
            else:
                new.append(node)
        return new
