"""Kinds of values that cannot be leaves of a checkpoint. Each explains why, and the way out."""

from typing import Any

import jax
import numpy as np

from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.kind import Content, Delivery, LeafKind, OtherKindError, Terms
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf


class _Refused(LeafKind):
    """The base class of these kinds."""

    def take(self, leaf: Leaf, copy: bool) -> Content:
        raise TypeError(f"{leaf.name}: {self.refusal(leaf.value, 'save')}")

    def digest(self, value: Any) -> str | None:
        return None

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        raise OtherKindError

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        raise TypeError(f"{target.name}: {self.refusal(target.value, 'restore')}")


class _Traced(_Refused):
    """Traced values: arrays inside a function that JAX transforms."""

    name = "traced value"

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.core.Tracer)

    def refusal(self, value: Any, action: str) -> str | None:
        return (
            f"this value is traced ({action} was called inside jax.jit, jax.grad or jax.vmap), so it has no data. "
            f"Call {action} outside of the transformed function."
        )


class _Masked(_Refused):
    """numpy.ma.MaskedArray."""

    name = "masked array"

    def owns(self, value: Any) -> bool:
        return isinstance(value, np.ma.MaskedArray)

    def refusal(self, value: Any, action: str) -> str | None:
        return "cannot store a numpy.ma.MaskedArray, whose mask would be lost. Store its .data and its .mask."


class _Others(_Refused):
    """All values that do not belong to another kind. Among them are instances of subclasses of Python's scalars, str and bytes."""

    name = "other"

    def owns(self, value: Any) -> bool:
        return True

    def refusal(self, value: Any, action: str) -> str | None:
        cls = f"{type(value).__module__}.{type(value).__qualname__}"
        if action == "save":
            return (
                f"cannot store a {cls}. A leaf can be a jax.Array, a numpy array, a Python or numpy scalar, str, bytes or None (not a "
                "subclass of these), or an object with serialize() and deserialize(), or get_state() and set_state(). Convert it, or "
                "leave it out of the Checkpoint."
            )
        return (
            f"a {cls} cannot be a target of restore. Use an array, a jax.ShapeDtypeStruct, a scalar, str or bytes, or an object with "
            "deserialize() or set_state()."
        )


TRACED = _Traced()
MASKED = _Masked()
OTHERS = _Others()
