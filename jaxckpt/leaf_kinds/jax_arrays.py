"""The kind of jax.Array, except arrays of PRNG keys."""

from typing import Any

import jax
import numpy as np

from jaxckpt._lib.boxes import grid_of
from jaxckpt.leaf_kinds import contents, dtypes, fitting, on_devices
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.dtypes import STORABLE
from jaxckpt.leaf_kinds.fitting import conversion, require_array, require_shape
from jaxckpt.leaf_kinds.kind import Content, Delivery, LeafKind, Terms, Texts
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.content import ArrayContent, Piece
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf

_SINGLE = jax.sharding.SingleDeviceSharding
# JAX has a dtype of fewer bytes even if 64 bits are not enabled.
_WIDE_BYTES = 8
# A NamedTuple's own constructor takes three times as long, and thousands of leaves need two.
_new = tuple.__new__


class _JaxArrays(LeafKind):
    name = "jax.Array"
    reader_name = "jax.Array"
    stored_as = ("jax.Array", notes.JAX_ARRAY.word)

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.Array) and not dtypes.is_key_dtype(value.dtype)

    def refusal(self, value: Any, action: str) -> str | None:
        return dtypes.refusal(value.dtype)

    def is_global(self, leaf: Leaf) -> bool:
        require_data(leaf)
        return not leaf.value.is_fully_addressable

    def start(self, value: Any) -> None:
        if not value.is_deleted():
            value.copy_to_host_async()

    def take(self, leaf: Leaf, copy: bool) -> Content:
        value = leaf.value
        if value.is_deleted():
            require_data(leaf)
        if value.dtype not in STORABLE:
            contents.require_storable(leaf, value.dtype)
        return content(leaf, value)

    def describe(self, value: Any, texts: Texts) -> str:
        return on_devices.describe(self.name, value, texts)

    def form(self, value: Any) -> tuple[Any, ...] | None:
        return on_devices.form(value)

    def origin(self, value: Any) -> tuple[Any, Any] | None:
        # JAX makes one object for all arrays of the same shape, dtype and weak type. It is never changed, only replaced.
        aval = getattr(value, "aval", None)
        return None if aval is None else (aval, value.sharding)

    def digest(self, value: Any) -> str | None:
        if not value.is_fully_addressable or value.is_deleted():
            return None
        return contents.checksum(np.asarray(value))

    def is_same(self, one: Any, other: Any) -> bool:
        return one.dtype == other.dtype and one.shape == other.shape and have_same_shards(one, other)

    def traits(self, value: Any) -> tuple[Any, tuple[Any, ...]] | None:
        aval = getattr(value, "aval", None)
        return None if aval is None else (getattr(value, "committed", True), (aval, value.sharding))

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        value = target.value
        on_devices.require_whole(target, value.sharding)
        if is_like(value, leaf, info):
            return None
        found = require_array(value, leaf, info)
        require_shape(target, value.shape, found, terms)
        return conversion(target, leaf, found, terms, is_on_devices=True)

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        value = target.value
        sharding = value.sharding
        if on_devices.is_divided(sharding):
            assert info is not None
            return on_devices.divided_delivery(value, info, None)
        # If the target is uncommitted, JAX is free to move it. The new array stays uncommitted too.
        return on_devices.delivery(value, sharding if getattr(value, "committed", True) else None)


JAX_ARRAYS = _JaxArrays()


def is_like(value: Any, leaf: StoredLeaf, info: ArrayInfo | None) -> bool:
    """Whether a stored array is exactly like the target. A short cut for thousands of leaves.

    False means that a closer look is needed. It is always False for 64-bit dtypes, which JAX may not have.

    Args:
      value: the target, an array or an abstract one.
      leaf: the stored leaf.
      info: the metadata of the stored array; None for a str.
    """
    return info is not None and info.dtype.itemsize < _WIDE_BYTES and fitting.is_like(value, leaf, info)


def require_data(leaf: Leaf) -> None:
    """Raises ValueError, with the leaf's name, if the array's data has been deleted."""
    if leaf.value.is_deleted():
        raise ValueError(
            f"{leaf.name}: this array has been deleted (it was donated to a jitted function). Save the array that the function returned."
        )


def have_same_shards(one: Any, other: Any) -> bool:
    """Whether two arrays of one shape and dtype have the same bytes on this process. Other processes compare their own shards."""
    # Both arrays were restored for the same target, so they lie on the devices in the same way.
    pairs = zip(one.addressable_shards, other.addressable_shards, strict=True)
    return all(contents.is_same_array(left.data, right.data) for left, right in pairs)


def content(leaf: Leaf, value: jax.Array, key_impl: str | None = None) -> ArrayContent:
    """Returns the content of an array all of whose data is on this process. Called for thousands of leaves, so it does few steps.

    Args:
      leaf: the leaf, for errors.
      value: the array, or the data of PRNG keys.
      key_impl: implementation of the PRNG keys; None for other arrays.

    Raises:
      ValueError: the array has too many axes.
    """
    shape, dtype, sharding = value.shape, value.dtype, value.sharding
    if len(shape) > contents.AXES:
        raise contents.too_many_axes(leaf)
    if type(sharding) is _SINGLE or len(sharding.device_set) == 1:
        piece = _new(Piece, ((0,) * len(shape), shape, np.asarray(value)))
        return _new(ArrayContent, ("jax.Array", shape, dtype, shape, (piece,), None, key_impl, sharding, None, None))
    on_devices.require_whole(leaf, sharding)
    parts = tuple(_shard_piece(shard, shape) for shard in value.addressable_shards if shard.replica_id == 0)
    return ArrayContent("jax.Array", shape, dtype, grid_of(shape, parts), parts, None, key_impl, sharding)


def _shard_piece(shard: Any, shape: tuple[int, ...]) -> Piece:
    start = tuple(index.indices(extent)[0] for index, extent in zip(shard.index, shape, strict=True))
    array = np.asarray(shard.data)
    return Piece(start, array.shape, array)
