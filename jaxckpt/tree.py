"""Values ↔ named leaves.

A checkpoint is a mapping from top-level names to values; a value is a pytree that may hold *reference objects* (NNX modules and
variables, objects with a state of their own). This module takes such a value apart into leaves with paths, and puts a value
together from new leaves. It knows nothing of files.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from jaxckpt import objects
from jaxckpt.names import OBJECT_INDEX, Key, Path, leaf_name
from jaxckpt.quiet_gc import quiet_gc


class Leaf(NamedTuple):
    """One leaf of a value: where it sits and what is there."""

    path: Path
    value: Any

    @property
    def name(self) -> str:
        """The path joined by ``/``."""
        return leaf_name(self.path)


class EmptyNode(NamedTuple):
    """An empty container (or None): nothing to store, but part of the structure. `value` is the container."""

    path: Path
    value: Any


Undo = Callable[[], None]


@dataclass(slots=True)
class Flat:
    """A value taken apart.

    Attributes:
      leaves: the leaves, in the order of the tree.
      empties: empty containers and Nones.
    """

    leaves: list[Leaf] = field(default_factory=list)
    empties: list[EmptyNode] = field(default_factory=list)
    _build: Callable[[Iterator[Any]], tuple[Any, list[Callable[[], Undo]]]] = lambda leaves: (None, [])

    def rebuild(self, values: Iterable[Any]) -> tuple[Any, list[Callable[[], Undo]]]:
        """Puts the value together again with other leaves.

        Args:
          values: one new value for each of `leaves`, in their order.

        Returns:
          The new value, and the changes that reference objects inside it still need: calling one carries it out and returns
          its undo. Nothing has been changed before they are called.
        """
        iterator = iter(values)
        return self._build(iterator)


def as_key(entry: Any) -> Key:
    """Returns the key for one step of a JAX key path."""
    if isinstance(entry, jax.tree_util.SequenceKey):
        return Key(str(entry.idx), True)
    if isinstance(entry, jax.tree_util.DictKey):
        return Key(str(entry.key))
    if isinstance(entry, jax.tree_util.GetAttrKey):
        return Key(entry.name)
    if isinstance(entry, jax.tree_util.FlattenedIndexKey):
        return Key(str(entry.key), True)
    return Key(str(entry))


_CONTAINERS = (dict, list, tuple, Mapping)


class _Role(enum.Enum):
    """What nodes of a type are to the walk. Decided once per type: `isinstance` of an abstract class is slow."""

    NONE = "none"
    CONTAINER = "container"
    REFERENCE = "reference"
    OTHER = "other"


_OTHER = _Role.OTHER  # An enum's attribute is looked up slowly.
_ROLES: dict[type, _Role] = {type(None): _Role.NONE, **dict.fromkeys((dict, list, tuple), _Role.CONTAINER)}


def _role(node: Any) -> _Role:
    kind = type(node)
    role = _ROLES.get(kind)
    if role is None:
        role = _ROLES[kind] = _role_of_type(kind)
    return role


def _role_of_type(kind: type) -> _Role:
    if objects.is_reference_type(kind):
        return _Role.REFERENCE
    return _Role.CONTAINER if issubclass(kind, _CONTAINERS) else _Role.OTHER


def _stops(node: Any) -> bool:
    """Whether the walk stops at `node`: empty containers, None, and reference objects. Called for every node."""
    role = _ROLES.get(type(node)) or _role(node)
    if role is _OTHER:
        return False
    return role is _Role.REFERENCE or _is_empty(role, node)


def _is_empty(role: _Role, node: Any) -> bool:
    return role is _Role.NONE or (role is _Role.CONTAINER and not node)


_known_paths: dict[Any, tuple[Path, ...]] = {}
_KNOWN_AT_MOST = 16


def _paths(prefix: Path, treedef: Any, value: Any) -> tuple[Path, ...]:
    """Returns the paths of all nodes. They depend on the structure only, and a training loop saves the same one again and again."""
    try:
        found = _known_paths.get((prefix, treedef))
    except Exception:  # The structure holds data of its user that cannot be hashed or compared.
        return _walk(prefix, value)[0]
    if found is None:
        found, exact = _walk(prefix, value)
        if exact:
            while len(_known_paths) >= _KNOWN_AT_MOST:
                _known_paths.pop(next(iter(_known_paths), None), None)
            _known_paths[prefix, treedef] = found
    return found


def _walk(prefix: Path, value: Any) -> tuple[tuple[Path, ...], bool]:
    """Returns the paths, and whether equal structures have equal paths: {1: x} equals {True: x}, but 1 is spelled otherwise."""
    keys: dict[Any, Key] = {}
    paths = []
    exact = True
    for entries, _ in jax.tree_util.tree_flatten_with_path(value, is_leaf=_stops)[0]:
        path = prefix
        for entry in entries:
            if type(entry) in _EXACT or type(getattr(entry, "key", None)) is str:
                key = keys.get(entry)
                if key is None:
                    key = keys[entry] = as_key(entry)
            else:
                key, exact = as_key(entry), False
            path += (key,)
        paths.append(path)
    return tuple(paths), exact


_EXACT = (jax.tree_util.SequenceKey, jax.tree_util.GetAttrKey, jax.tree_util.FlattenedIndexKey)


@quiet_gc()
def flatten(name: str, value: Any) -> Flat:
    """Takes the value called `name` apart.

    Args:
      name: top-level name; the first key of every path.
      value: a pytree, possibly holding reference objects.

    Raises:
      TypeError: a mapping whose keys cannot be ordered (JAX's own limit on pytrees); the message names the value.
      ValueError: the value contains itself.
    """
    return _flatten((Key(name),), value, ())


def _flatten(prefix: Path, value: Any, parents: tuple[int, ...]) -> Flat:
    if objects.is_reference(value):
        return _flatten_reference(prefix, value, parents)
    try:
        nodes, treedef = jax.tree_util.tree_flatten(value, is_leaf=_stops)
        paths = _paths(prefix, treedef, value)
    except (ValueError, TypeError) as error:
        if "Comparator raised exception" in str(error) or "not supported between instances" in str(error):
            raise TypeError(
                f"{leaf_name(prefix)}: a mapping in this value has keys of types that cannot be sorted together; "
                "JAX pytrees need mapping keys of one type. Use strings for all of its keys."
            ) from error
        raise
    except RecursionError as error:
        raise ValueError(f"{leaf_name(prefix)}: this value is nested too deeply; does it contain itself?") from error
    flat = Flat()
    builders: list[Flat | None] = []
    for path, node in zip(paths, nodes, strict=True):
        role = _ROLES.get(type(node)) or _role(node)
        if role is _OTHER:
            flat.leaves.append(Leaf(path, node))
            builders.append(None)
        elif _is_empty(role, node):
            flat.empties.append(EmptyNode(path, node))
            builders.append(Flat(_build=_constant(node)))
        elif role is _Role.REFERENCE:
            inner = _flatten_reference(path, node, parents)
            flat.leaves.extend(inner.leaves)
            flat.empties.extend(inner.empties)
            builders.append(inner)
        else:
            flat.leaves.append(Leaf(path, node))
            builders.append(None)

    def build(values: Iterator[Any]) -> tuple[Any, list[Callable[[], Undo]]]:
        nodes, changes = [], []
        for builder in builders:
            if builder is None:
                nodes.append(next(values))
            else:
                node, more = builder._build(values)
                nodes.append(node)
                changes.extend(more)
        return jax.tree_util.tree_unflatten(treedef, nodes), changes

    flat._build = build
    return flat


def _constant(node: Any) -> Callable[[Iterator[Any]], tuple[Any, list[Callable[[], Undo]]]]:
    return lambda _: (node, [])


def _flatten_reference(prefix: Path, node: Any, parents: tuple[int, ...]) -> Flat:
    if id(node) in parents:
        raise ValueError(f"{leaf_name(prefix)}: this value contains itself.")
    adapter = objects.adapter(node)
    parts = adapter.take(node)
    parents = (*parents, id(node))
    inner = [
        _flatten((*prefix, *[Key(text, is_index and OBJECT_INDEX) for text, is_index in keys]), part, parents)
        for keys, part in parts
    ]
    flat = Flat()
    for one in inner:
        flat.leaves.extend(one.leaves)
        flat.empties.extend(one.empties)
    if not parts:
        flat.empties.append(EmptyNode(prefix, {}))

    def build(values: Iterator[Any]) -> tuple[Any, list[Callable[[], Undo]]]:
        new, changes = [], []
        for one in inner:
            part, more = one._build(values)
            new.append(part)
            changes.extend(more)
        try:
            replacement, change = adapter.put(node, parts, new)
        except ValueError as error:
            raise ValueError(f"{leaf_name(prefix)}: {error}") from error
        if change is not None:
            changes.append(change)
        return replacement, changes

    flat._build = build
    return flat


def flatten_item(item: Any) -> Flat:
    """Takes a whole tree apart that has no top-level names of its own, as Orbax's users save it."""
    return _flatten((), item, ())


def expand_root(root: Any) -> dict[str, Any]:
    """Returns the first level of `root` as top-level names and values.

    Args:
      root: a mapping, a dataclass, an NNX object, a pytree with named children, or an object with attributes.

    Raises:
      TypeError: `root` has no names at its first level.
    """
    if objects.is_nnx_object(root):
        return objects.nnx_children(root)
    if isinstance(root, Mapping):
        for name in root:
            if not isinstance(name, str):
                raise TypeError(f"The keys of a root mapping become names: expected str, got {name!r}.")
        return dict(root)
    if isinstance(root, (str, bytes, int, float, complex, jax.Array)) or objects.is_reference(root):
        raise TypeError(
            f"root must be a mapping, a dataclass or an object with attributes, got {type(root).__name__}; "
            "pass it by name: Checkpoint(name=value)."
        )
    children = jax.tree_util.tree_flatten_with_path(root, is_leaf=lambda node: node is not root)[0]
    if (
        all(path and isinstance(path[0], (jax.tree_util.GetAttrKey, jax.tree_util.DictKey)) for path, _ in children)
        and children
    ):
        return {as_key(path[0]).text: child for path, child in children}
    if children and children[0][0]:
        raise TypeError(
            f"root must have names at its first level, but {type(root).__name__} has indices; pass its items by name."
        )
    if dataclasses.is_dataclass(root) and not isinstance(root, type):
        return {field.name: getattr(root, field.name) for field in dataclasses.fields(root)}
    try:
        attributes = {name: value for name, value in vars(root).items() if not name.startswith("_")}
        if not attributes and vars(root):
            raise TypeError("no public attributes")
        if callable(root):
            raise TypeError("a function")
    except TypeError:
        raise TypeError(
            f"root must be a mapping, a dataclass or an object with attributes, got {type(root).__name__}."
        ) from None
    return attributes
