"""Adapters for objects with a state of their own, such as data iterators. These objects are updated in place."""

from collections.abc import Callable
from typing import Any

from jaxckpt.tree import object_state
from jaxckpt.tree.builders import Builder, Rebuild, Undo, Walk
from jaxckpt.tree.names import KnownPath, leaf_name


class Serialized:
    """The adapter for objects with ``serialize()``, which returns str or bytes, and ``deserialize(value)``."""

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes `node` apart. Its state is the leaf."""
        state = node.serialize()
        if not isinstance(state, (str, bytes)):
            raise TypeError(
                f"{leaf_name(path.path)}: {type(node).__name__}.serialize() must return str or bytes, got {type(state).__name__}."
            )
        return _take(node, state, path, walk, node.deserialize, _as_it_is)


class Stateful:
    """The adapter for objects with ``get_state()``, whose result `object_state` can encode, and ``set_state(state)``."""

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes `node` apart. Its encoded state is the leaf."""
        try:
            state = object_state.encode(node.get_state())
        except object_state.UnsupportedStateError as error:
            raise TypeError(f"{leaf_name(path.path)}: {type(node).__name__}.get_state() {error}") from error
        return _take(node, state, path, walk, node.set_state, object_state.decode)


def _as_it_is(state: str | bytes) -> str | bytes:
    return state


def _take(
    node: Any,
    state: str | bytes,
    path: KnownPath,
    walk: Walk,
    setter: Callable[[Any], object],
    decode: Callable[[Any], Any],
) -> Builder:
    start = walk.position
    walk.leaf(state, path, is_state=True)
    walk.own(node, start)
    return _StateBuilder(node, state, path, setter, decode)


def restore(node: Any, state: str | bytes, where: str) -> None:
    """Gives an object a stored state.

    Args:
      node: an object with ``set_state(state)`` or ``deserialize(value)``.
      state: the state as it was stored.
      where: name of the stored state, for errors.

    Raises:
      TypeError: the object has neither method.
      ValueError: `state` is not a state of such an object.
    """
    if callable(setter := getattr(node, "deserialize", None)):
        setter(state)
        return
    if not callable(setter := getattr(node, "set_state", None)):
        raise TypeError(f"{where}: a {type(node).__name__} has neither set_state() nor deserialize().")
    try:
        decoded = object_state.decode(state)
    except ValueError as error:
        raise ValueError(f"{where}: the stored value is not a state of a {type(node).__name__}: {error}") from error
    setter(decoded)


class _StateBuilder:
    def __init__(
        self,
        node: Any,
        state: str | bytes,
        path: KnownPath,
        setter: Callable[[Any], object],
        decode: Callable[[Any], Any],
    ) -> None:
        self._node, self._old, self._path, self._setter, self._decode = node, state, path, setter, decode

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the object itself, and adds the change that sets its state."""
        state = rebuild.leaf()
        if rebuild.kept:
            return self._node
        try:
            new, old = self._decode(state), self._decode(self._old)
        except ValueError as error:
            raise ValueError(
                f"{leaf_name(self._path.path)}: the stored value is not a state of a {type(self._node).__name__}: {error}"
            ) from error
        rebuild.changes.append(lambda: self._swap(old, new))
        return self._node

    def _swap(self, old: Any, new: Any) -> Undo:
        try:
            self._setter(new)
        except BaseException:
            self._setter(old)
            raise
        return lambda: (self._setter(old), None)[1]
