"""Reference objects: values that are updated in place, because their users hold on to them.

Two families: Flax NNX (modules, optimizers, rngs, variables), and objects with a state of their own, such as data iterators, which
offer ``serialize()``/``deserialize(value)`` or ``get_state()``/``set_state(state)``. An adapter takes such an object apart into
ordinary values and describes the change that puts new values in. Flax is never imported here: an object can only be an NNX object
if the program has imported Flax already.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Undo = Callable[[], None]
Keys = tuple[tuple[str, bool], ...]
Parts = list[tuple[Keys, Any]]


class Adapter(Protocol):
    """How to take a reference object apart and to put new values into it."""

    def take(self, node: Any) -> Parts:
        """Returns the values inside `node`, each with its path below it."""

    def put(self, node: Any, parts: Parts, values: Sequence[Any]) -> tuple[Any, Callable[[], Undo] | None]:
        """Returns what stands in the place of `node` after restore (mostly `node` itself), and the change that updates it."""


def _nnx() -> Any:
    return sys.modules.get("flax.nnx")


_KIND: dict[type, "Adapter | None"] = {}


def adapter(node: Any) -> Adapter:
    """Returns the adapter of a reference object."""
    found = _find(type(node))
    assert found is not None
    return found


def is_reference(node: Any) -> bool:
    """Whether `node` is a reference object."""
    return _find(type(node)) is not None


def is_reference_type(kind: type) -> bool:
    """Whether objects of this class are reference objects."""
    return _find(kind) is not None


def is_nnx_object(node: Any) -> bool:
    """Whether `node` is an NNX graph node, such as a module (a lone NNX variable is not)."""
    return isinstance(_find(type(node)), _NnxObject)


def _find(kind: type) -> Adapter | None:
    try:
        return _KIND[kind]
    except KeyError:
        pass
    found: Adapter | None = None
    nnx = _nnx()
    if nnx is not None and issubclass(kind, nnx.Variable):
        found = _NnxVariable()
    elif nnx is not None and issubclass(kind, _nnx_graph_types(nnx)) and not issubclass(kind, nnx.State):
        found = _NnxObject()
    elif callable(getattr(kind, "serialize", None)) and callable(getattr(kind, "deserialize", None)):
        found = _Serialized()
    elif callable(getattr(kind, "get_state", None)) and callable(getattr(kind, "set_state", None)):
        found = _StateObject()
    _KIND[kind] = found
    return found


def _nnx_graph_types(nnx: Any) -> tuple[type, ...]:
    """NNX's classes of graph nodes: the base of them all has had two names."""
    return tuple(getattr(nnx, name) for name in ("Module", "Optimizer", "Pytree", "Object") if hasattr(nnx, name))


class _NnxVariable:
    """A lone variable: its value is the leaf; restoring sets the value."""

    def take(self, node: Any) -> Parts:
        return [((), node.get_value())]

    def put(self, node: Any, parts: Parts, values: Sequence[Any]) -> tuple[Any, Callable[[], Undo] | None]:
        (value,) = values

        def change() -> Undo:
            old = node.get_value()
            node.set_value(value)
            return lambda: node.set_value(old)

        return node, change


class _NnxObject:
    """A module, optimizer or rngs object: the variables and arrays of its graph, each shared one once."""

    def take(self, node: Any) -> Parts:
        nnx = _nnx()
        parts: Parts = []
        for path, leaf in nnx.to_flat_state(nnx.state(node)):
            keys = tuple((str(key), isinstance(key, int)) for key in path)
            parts.append((keys, leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf))
        return parts

    def put(self, node: Any, parts: Parts, values: Sequence[Any]) -> tuple[Any, Callable[[], Undo] | None]:
        nnx = _nnx()

        def change() -> Undo:
            flat = list(nnx.to_flat_state(nnx.state(node)))

            def state_with(contents: Sequence[Any]) -> Any:
                # The state's variables may be the live ones: replace() makes others, so that an old state keeps old values.
                return nnx.from_flat_state(
                    [
                        (path, leaf.replace(value) if isinstance(leaf, nnx.Variable) else value)
                        for (path, leaf), value in zip(flat, contents, strict=True)
                    ]
                )

            old = state_with([value for _, value in parts])
            nnx.update(node, state_with(values))
            return lambda: nnx.update(node, old)

        return node, change


class _Serialized:
    """``serialize()`` → str or bytes, ``deserialize(value)``."""

    def take(self, node: Any) -> Parts:
        state = node.serialize()
        if not isinstance(state, (str, bytes)):
            raise TypeError(f"{type(node).__name__}.serialize() must return str or bytes, got {type(state).__name__}.")
        return [((), state)]

    def put(self, node: Any, parts: Parts, values: Sequence[Any]) -> tuple[Any, Callable[[], Undo] | None]:
        return node, lambda: _swap(node, node.deserialize, parts[0][1], values[0])


class _StateObject:
    """``get_state()`` → JSON values or bytes, ``set_state(state)``; JSON values are stored as their text."""

    def take(self, node: Any) -> Parts:
        state = node.get_state()
        if isinstance(state, bytes):
            return [((), state)]
        try:
            text = json.dumps(state)
            same = _same_json(json.loads(text), state)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{type(node).__name__}.get_state() must return bytes or JSON values (got {type(state).__name__}): {error}"
            ) from error
        if not same:
            raise TypeError(
                f"{type(node).__name__}.get_state() must return bytes or JSON values; this state does not survive JSON "
                "(tuples, or keys that are not str?)."
            )
        return [((), text)]

    def put(self, node: Any, parts: Parts, values: Sequence[Any]) -> tuple[Any, Callable[[], Undo] | None]:
        try:
            old, new = (value if isinstance(value, bytes) else json.loads(value) for value in (parts[0][1], values[0]))
        except ValueError as error:
            raise ValueError(
                f"what is stored is no state of a {type(node).__name__}: it is not JSON ({error})"
            ) from error
        return node, lambda: _swap(node, node.set_state, old, new)


def _same_json(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same, nan included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same_json(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same_json, left, right))
    return bool(left == right or (left != left and right != right))


def _swap(node: Any, setter: Callable[[Any], object], old: Any, new: Any) -> Undo:
    try:
        setter(new)
    except BaseException:
        setter(old)
        raise
    return lambda: (setter(old), None)[1]


def nnx_children(root: Any) -> dict[str, Any]:
    """Returns the first level of an NNX object: the attributes (or items) that hold state, by name."""
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
