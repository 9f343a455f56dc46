"""The kind of jax.ShapeDtypeStruct: an array without data, which can be the target of a restore."""

from typing import Any

import jax
import numpy as np

from jaxckpt.leaf_kinds import dtypes, on_devices, prng_keys
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.fitting import conversion, require_array, require_shape
from jaxckpt.leaf_kinds.jax_arrays import is_like
from jaxckpt.leaf_kinds.kind import Content, Delivery, LeafKind, Terms, Texts
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf


class _Abstract(LeafKind):
    name = "abstract array"

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.ShapeDtypeStruct)

    def refusal(self, value: Any, action: str) -> str | None:
        return None if dtypes.is_key_dtype(value.dtype) else dtypes.refusal(value.dtype)

    def take(self, leaf: Leaf, copy: bool) -> Content:
        raise TypeError(
            f"{leaf.name}: this is an abstract array ({leaf.value}), which has no data to save; it can only be a target of restore."
        )

    def describe(self, value: Any, texts: Texts) -> str:
        return on_devices.describe(self.name, value, texts)

    def form(self, value: Any) -> tuple[Any, ...] | None:
        return on_devices.form(value)

    def digest(self, value: Any) -> str | None:
        return None

    def traits(self, value: Any) -> tuple[Any, tuple[Any, ...]] | None:
        dtype = value.dtype
        # Dtypes of PRNG keys do not tell their implementation.
        return ((value.shape, dtype, value.weak_type), (value.sharding,)) if isinstance(dtype, np.dtype) else None

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        value = target.value
        on_devices.require_whole(target, value.sharding)
        has_place = terms.is_alone or on_devices.sharding_of(value) is not None
        if has_place and is_like(value, leaf, info):
            return None
        is_key = dtypes.is_key_dtype(value.dtype)
        found = prng_keys.require_stored_keys(leaf, info) if is_key else require_array(value, leaf, info)
        if not has_place:
            raise ValueError(
                f"{target.name}: the target is a jax.ShapeDtypeStruct without a sharding, in a job of {jax.process_count()} processes. "
                "Give it one, jax.ShapeDtypeStruct(shape, dtype, sharding=...): it tells which process gets which part."
            )
        if is_key:
            prng_keys.require_keys(target, found, leaf, terms, _key_impl(value))
            return None
        require_shape(target, value.shape, found, terms)
        return conversion(target, leaf, found, terms, is_on_devices=True)

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        value = target.value
        sharding = on_devices.sharding_of(value)
        if leaf.key_impl is not None:
            return prng_keys.delivery(value, leaf, info, sharding)
        if on_devices.is_divided(sharding):
            assert info is not None
            return on_devices.divided_delivery(value, info, None)
        return on_devices.delivery(value, sharding)


ABSTRACT = _Abstract()


def _key_impl(value: Any) -> str:
    """Returns the implementation of abstract PRNG keys. Only an array tells it, so one is traced; the dtype does not tell it."""
    found: list[str] = []

    def look(key: Any) -> Any:
        found.append(str(jax.random.key_impl(key)))
        return key

    jax.eval_shape(look, jax.ShapeDtypeStruct((), value.dtype))
    return found[0]
