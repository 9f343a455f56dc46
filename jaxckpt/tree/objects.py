"""Finds *reference objects*, and the adapter that takes each of them apart.

Reference objects are updated in place, because the program holds references to them. (`nnx.State` has an adapter too, but is replaced.)
There are three families: Flax NNX (modules, optimizers, rngs, Variables, states); objects with a state of their own, such as data
iterators, which have ``serialize()``/``deserialize(value)`` or ``get_state()``/``set_state(state)``; and nested Checkpoints, whose class
registers itself here.
"""

from typing import Any

from jaxckpt._lib.by_type import ByType
from jaxckpt.tree import nnx_objects
from jaxckpt.tree.builders import Adapter, RootAdapter
from jaxckpt.tree.state_objects import Serialized, Stateful

# The adapter by type; False for types that are not reference objects.
_adapters: ByType[Adapter | bool] = ByType({})
_registered: list[tuple[type, Adapter]] = []


def register(kind: type, adapter: Adapter) -> None:
    """Makes the instances of a class reference objects.

    Args:
      kind: the class. Instances of derived classes are included.
      adapter: takes them apart.
    """
    _registered.append((kind, adapter))


def adapter(node: Any) -> Adapter | None:
    """Returns the adapter of `node`; None if it is not a reference object."""
    kind = type(node)
    found = _adapters.get(kind)
    if found is None:
        found = _adapters.put(kind, _find(node, kind) or False)
    return None if isinstance(found, bool) else found


def root_adapter(node: Any) -> RootAdapter | None:
    """Returns the adapter of `node` if it can be the root of a Checkpoint and restore assigns to its fields; else None."""
    found: Any = adapter(node)
    return found if hasattr(found, "children") else None


def nested_values(node: Any) -> dict[str, Any] | None:
    """Returns the values of a nested Checkpoint by name; None if `node` is something else."""
    kinds = tuple(kind for kind, _ in _registered)
    found = root_adapter(node)
    return found.children(node) if found is not None and isinstance(node, kinds) else None


def is_reference(node: Any) -> bool:
    """Whether `node` is a reference object."""
    return adapter(node) is not None


def _find(node: Any, kind: type) -> Adapter | None:
    for registered, found in _registered:
        if isinstance(node, registered):
            return found
    if (nnx := nnx_objects.adapter_for(node)) is not None:
        return nnx
    if callable(getattr(kind, "serialize", None)) and callable(getattr(kind, "deserialize", None)):
        return Serialized()
    if callable(getattr(kind, "get_state", None)) and callable(getattr(kind, "set_state", None)):
        return Stateful()
    return None
