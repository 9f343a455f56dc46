"""Values ↔ named leaves.

A checkpoint is a mapping from top-level names to values; a value is a pytree that may hold *reference objects* (NNX modules and
variables, objects with a state of their own, nested Checkpoints). This module takes such a value apart into leaves with paths, and
puts values together from new leaves. It knows nothing of files.
"""

import enum
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.tree import objects
from jaxckpt.tree.builders import KEPT, LEAF, Builder, Change, Constant, Owned, RangeBuilder, Rebuild, Undo
from jaxckpt.tree.kinds import ByType, Kind, kind_of
from jaxckpt.tree.names import Key, KnownPath, Path, as_key, known_paths, leaf_name
from jaxckpt.tree.same import require_same

__all__ = ["KEPT", "Change", "EmptyNode", "Flat", "Leaf", "Undo", "flatten", "flatten_item", "rebuild"]


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
    builder: Builder = LEAF


_CONTAINERS = (dict, list, tuple, Mapping)


class _Role(enum.Enum):
    """What nodes of a type are to the walk. Decided once per type: `isinstance` of an abstract class is slow."""

    NONE = "none"
    DICT = "dict"
    SEQUENCE = "sequence"
    CONTAINER = "other container"
    REFERENCE = "reference"
    LEAF = "leaf"
    OTHER = "other"


# An enum's attributes are looked up slowly.
_DICT, _SEQUENCE, _LEAF, _OTHER = _Role.DICT, _Role.SEQUENCE, _Role.LEAF, _Role.OTHER
_roles: ByType[_Role] = ByType({type(None): _Role.NONE, dict: _DICT, list: _SEQUENCE, tuple: _SEQUENCE})
_ROLES = _roles.permanent


def _role(node: Any) -> _Role:
    kind = type(node)
    return _roles.get(kind) or _roles.put(kind, _role_of(node))


def _role_of(node: Any) -> _Role:
    if objects.is_reference(node):
        return _Role.REFERENCE
    if isinstance(node, _CONTAINERS):
        return _Role.CONTAINER
    # A type that cannot be stored may yet be registered with JAX as a pytree.
    return _LEAF if kind_of(node) is not Kind.OTHER and jax.tree_util.all_leaves([node]) else _OTHER


def _stops(node: Any) -> bool:
    """Whether a pytree ends at `node`, for JAX: empty containers, None, and reference objects. Called for every node."""
    role = _ROLES.get(type(node)) or _role(node)
    if role is _LEAF or role is _OTHER:
        return False
    return role is _Role.REFERENCE or not node


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
        role = _ROLES.get(type(value)) or _role(value)
        if role is _LEAF:
            return self.leaf(value, path)
        if role is _Role.REFERENCE:
            return self._take_reference(value, path)
        references: list[Builder] = []
        self._walk(value, path, references)
        return _PytreeBuilder(value, references)

    def leaf(self, value: Any, path: KnownPath) -> Builder:
        self.flat.leaves.append(_leaf(Leaf, (path.path, value, self.variable_depth)))
        return LEAF

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
        role = _ROLES.get(type(node)) or _role(node)
        if role is _LEAF:
            self.leaf(node, path)
        elif role is _Role.REFERENCE:
            references.append(self._take_reference(node, path))
        elif role is not _OTHER and not node:
            self.empty(node, path)
        elif role is _DICT:
            leaves, depth = self.flat.leaves, self.variable_depth
            for key, below in path.items(node):
                child = node[key]
                if _ROLES.get(type(child)) is _LEAF:
                    leaves.append(_leaf(Leaf, (below.path, child, depth)))
                else:
                    self._walk(child, below, references)
        elif role is _SEQUENCE:
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
        nodes, structure = jax.tree_util.tree_flatten(self._value, is_leaf=_stops)
        references = iter(self._references)
        new = []
        for node in nodes:
            role = _role(node)
            if role is _Role.REFERENCE:
                new.append(next(references).build(rebuild))
            elif role is _LEAF or role is _OTHER or node:
                new.append(rebuild.leaf())
            else:
                new.append(node)
        if all(one is other for one, other in zip(new, nodes, strict=True)):
            return self._value
        return jax.tree_util.tree_unflatten(structure, new)


def rebuild(flats: Mapping[str, Flat], new: Mapping[str, Any]) -> tuple[dict[str, Any], list[Change]]:
    """Puts values together from new leaves.

    Args:
      flats: the values by name, taken apart.
      new: new values by the leaf's name; leaves without one keep theirs.

    Returns:
      The values that have new leaves, by name, and the changes that reference objects still need: carrying one out returns its undo.
      Nothing has been changed before.

    Raises:
      ValueError: an object that stands under two names was to get two different values; names both leaves.
    """
    values = {name: [new.get(leaf.name, KEPT) for leaf in flat.leaves] for name, flat in flats.items()}
    _share(flats, values)
    state = Rebuild({id(owned.owner) for flat in flats.values() for owned in flat.owned if owned.in_place})
    replacements: dict[str, Any] = {}
    for name, flat in flats.items():
        if any(value is not KEPT for value in values[name]):
            state.start([leaf.value for leaf in flat.leaves], values[name])
            replacements[name] = flat.builder.build(state)
            state.require(len(flat.leaves))
    return replacements, state.changes


def _share(flats: Mapping[str, Flat], values: dict[str, list[Any]]) -> None:
    """Gives what stands under several names the same new value under each."""
    found: dict[tuple[int, Hashable], list[tuple[str, Owned]]] = {}
    for name, flat in flats.items():
        for owned in flat.owned:
            found.setdefault((id(owned.owner), owned.key), []).append((name, owned))
    for places in found.values():
        if len(places) > 1:
            for leaves in zip(*(range(owned.start, owned.stop) for _, owned in places), strict=True):
                _share_leaf(flats, values, [(name, index) for (name, _), index in zip(places, leaves, strict=True)])


def _share_leaf(flats: Mapping[str, Flat], values: dict[str, list[Any]], places: list[tuple[str, int]]) -> None:
    given = [(name, index) for name, index in places if values[name][index] is not KEPT]
    if not given:
        return
    first_name, first_index = given[0]
    value = values[first_name][first_index]
    for name, index in given[1:]:
        require_same(
            (flats[first_name].leaves[first_index].name, value), (flats[name].leaves[index].name, values[name][index])
        )
    for name, index in places:
        values[name][index] = value
