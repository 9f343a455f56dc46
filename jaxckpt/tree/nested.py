"""Nested Checkpoints: those that are a value, or the root, of another Checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxckpt.tree.builders import Builder, Rebuild, Undo, Walk
from jaxckpt.tree.named_values import NamedValues
from jaxckpt.tree.names import KnownPath


class NestedAdapter:
    """The adapter for nested Checkpoints. Their values get names below the Checkpoint's name, and the Checkpoint is updated in place.

    The `save_counter` of a nested Checkpoint counts only its own saves, and is not among its values.
    """

    def __init__(self, values_of: Callable[[Any], NamedValues]) -> None:
        """Makes the adapter.

        Args:
          values_of: returns the values of a Checkpoint.
        """
        self._values_of = values_of

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes the values apart."""
        named = self._values_of(node)
        values = named.current()
        parts: dict[str, Builder] = {}
        outside = walk.in_state
        try:
            for name, value in values.items():
                start = walk.position
                walk.in_state = named.is_in_state(name)
                parts[name] = walk.take(value, path.below(name))
                walk.own(self._holder(node, name), start, key=name)
        finally:
            walk.in_state = outside
        if not values:
            walk.empty({}, path)
        return _NestedBuilder(node, named, values, parts)

    def _holder(self, node: Any, name: str) -> Any:
        """Returns the Checkpoint that holds the value: `node` if it was given the name, else the Checkpoint that is its root."""
        named = self._values_of(node)
        return node if named.inner is None or named.has_own(name) else self._holder(named.root, name)

    def children(self, root: Any) -> dict[str, Any]:
        """Returns the values by name."""
        return self._values_of(root).current()

    def set_child(self, root: Any, name: str, value: Any) -> Undo:
        """Replaces a value."""
        return self._values_of(root).replace({name: value})


class _NestedBuilder:
    def __init__(self, node: Any, named: NamedValues, values: Mapping[str, Any], parts: Mapping[str, Builder]) -> None:
        self._node, self._named, self._values, self._parts = node, named, values, parts

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the Checkpoint itself, and adds the change that replaces its values."""
        built = {name: part.build(rebuild) for name, part in self._parts.items()}
        new = {name: value for name, value in built.items() if value is not self._values[name]}
        if new:
            rebuild.changes.append(lambda: self._named.replace(new))
        return self._node
