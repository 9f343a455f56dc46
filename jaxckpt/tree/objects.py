"""Which objects are *reference objects*: those that are updated in place, because their users hold on to them, and `nnx.State`.

Three families: Flax NNX (modules, optimizers, rngs, variables, states), objects with a state of their own, such as data iterators,
which offer ``serialize()``/``deserialize(value)`` or ``get_state()``/``set_state(state)``, and nested Checkpoints, which register
themselves. An adapter takes such an object apart.
"""

from typing import Any

from jaxckpt._lib.by_type import ByType
from jaxckpt.tree import nnx_objects
from jaxckpt.tree.builders import Adapter, RootAdapter
from jaxckpt.tree.state_objects import Serialized, Stateful

# False: objects of this type are not reference objects.
_adapters: ByType[Adapter | bool] = ByType({})
_registered: list[tuple[type, Adapter]] = []


def register(kind: type, adapter: Adapter) -> None:
    """Makes the objects of a class, and of those derived from it, reference objects."""
    _registered.append((kind, adapter))


def adapter(node: Any) -> Adapter | None:
    """Returns the adapter of a reference object; None if `node` is none."""
    kind = type(node)
    found = _adapters.get(kind)
    if found is None:
        found = _adapters.put(kind, _find(node, kind) or False)
    return None if isinstance(found, bool) else found


def root_adapter(node: Any) -> RootAdapter | None:
    """Returns the adapter of an object that can be the root of a Checkpoint, and is written into by restore; None for others."""
    found: Any = adapter(node)
    return found if hasattr(found, "children") else None


def nested_values(node: Any) -> dict[str, Any] | None:
    """Returns the values of a nested Checkpoint, by name; None for everything else."""
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
