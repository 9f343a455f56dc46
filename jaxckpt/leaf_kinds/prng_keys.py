"""The kind of typed PRNG keys. Stored are their data, an array of uint32 with one more axis, and the name of their implementation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxckpt.leaf_kinds import contents, dtypes, jax_arrays, on_devices
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.fitting import require_shape
from jaxckpt.leaf_kinds.kind import WHOLE, Content, Delivery, LeafKind, OtherKindError, Terms, Texts
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf


class _PrngKeys(LeafKind):
    # Other processes see an array like others. Its dtype tells that it holds PRNG keys.
    name = "jax.Array"
    reader_name = "PRNG key"
    stored_as = ("PRNG key",)

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.Array) and dtypes.is_key_dtype(value.dtype)

    def is_global(self, leaf: Leaf) -> bool:
        jax_arrays.require_data(leaf)
        return not leaf.value.is_fully_addressable

    def take(self, leaf: Leaf, copy: bool) -> Content:
        jax_arrays.require_data(leaf)
        value = leaf.value
        return jax_arrays.content(leaf, jax.random.key_data(value), str(jax.random.key_impl(value)))

    def describe(self, value: Any, texts: Texts) -> str:
        return on_devices.describe(self.name, value, texts)

    def form(self, value: Any) -> tuple[Any, ...] | None:
        return on_devices.form(value)

    def digest(self, value: Any) -> str | None:
        if not value.is_fully_addressable or value.is_deleted():
            return None
        return contents.checksum(np.asarray(jax.random.key_data(value)))

    def is_same(self, one: Any, other: Any) -> bool:
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and jax_arrays.have_same_shards(jax.random.key_data(one), jax.random.key_data(other))
        )

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        require_keys(target, require_stored_keys(leaf, info), leaf, terms, str(jax.random.key_impl(target.value)))
        return None

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        value = target.value
        return delivery(value, leaf, info, value.sharding if getattr(value, "committed", True) else None)

    def describe_stored(self, leaf: StoredLeaf, info: ArrayInfo | None) -> str:
        return f"a PRNG key ({leaf.key_impl})"


PRNG_KEYS = _PrngKeys()


def require_stored_keys(leaf: StoredLeaf, info: ArrayInfo | None) -> ArrayInfo:
    """Returns `info`, not None. Raises OtherKindError unless the stored leaf is the data of PRNG keys."""
    if info is None or leaf.key_impl is None:
        raise OtherKindError
    return info


def require_keys(target: Leaf, info: ArrayInfo, leaf: StoredLeaf, terms: Terms, impl: str) -> None:
    """Requires that stored PRNG keys are like those of a target.

    Args:
      target: an array of PRNG keys, abstract or not.
      info: the metadata of the stored data.
      leaf: the stored leaf.
      terms: the terms of the restore.
      impl: implementation of the target's keys.

    Raises:
      ValueError: the stored keys have another implementation or another shape; the message names the leaf and both sides.
    """
    if impl != leaf.key_impl:
        raise ValueError(
            f"{target.name}: the target is a PRNG key of implementation {impl}, but {terms.path} holds one of {leaf.key_impl}."
        )
    value = target.value
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(value.shape, value.dtype))
    require_shape(target, data.shape, info, terms)


def delivery(value: Any, leaf: StoredLeaf, info: ArrayInfo | None, sharding: Any) -> Delivery:
    """Returns how stored data becomes PRNG keys.

    Args:
      value: the target, an array of PRNG keys, abstract or not.
      leaf: the stored leaf.
      info: the metadata of the stored data.
      sharding: where keys must lie that are on devices of this process only; None to let JAX choose.
    """
    lies_on = on_devices.sharding_of(value)
    if lies_on is not None and not lies_on.is_fully_addressable:
        assert info is not None
        return on_devices.divided_delivery(value, info, leaf.key_impl)
    return Delivery(WHOLE, (), _build(leaf.key_impl, sharding))


def _build(key_impl: str | None, sharding: Any) -> Callable[[Sequence[Any]], Any]:
    def build(arrays: Sequence[Any]) -> Any:
        keys = jax.random.wrap_key_data(jax.device_put(arrays[0]), impl=key_impl)
        return keys if sharding is None else jax.device_put(keys, sharding)

    return build
