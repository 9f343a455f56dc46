"""The kind of numpy.ndarray. An instance of a subclass is stored as a plain array; a masked array is refused (see `refused`)."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxckpt.leaf_kinds import contents
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.dtypes import STORABLE
from jaxckpt.leaf_kinds.fitting import conversion, is_like, require_array, require_shape
from jaxckpt.leaf_kinds.kind import WHOLE, Content, Delivery, Terms, Texts
from jaxckpt.leaf_kinds.numpy_kind import NumpyKind
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf


class _NumpyArrays(NumpyKind):
    name = "numpy array"
    reader_name = "np.ndarray"
    stored_as = ("np.ndarray",)

    def owns(self, value: Any) -> bool:
        return isinstance(value, np.ndarray)

    def take(self, leaf: Leaf, copy: bool) -> Content:
        value = leaf.value
        if value.dtype not in STORABLE:
            contents.require_storable(leaf, value.dtype)
        if value.ndim > contents.AXES:
            raise contents.too_many_axes(leaf)
        array = np.asarray(value)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        elif copy:
            array = array.copy(order="C")
        return contents.whole("np.ndarray", array)

    def describe(self, value: Any, texts: Texts) -> str:
        return f"{self.name} of shape {value.shape}, dtype {value.dtype}"

    def traits(self, value: Any) -> tuple[Any, tuple[Any, ...]] | None:
        return (value.shape, value.dtype), ()

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        if is_like(target.value, leaf, info):
            return None
        found = require_array(target.value, leaf, info)
        require_shape(target, target.value.shape, found, terms)
        return conversion(target, leaf, found, terms)

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        return _delivery(target.value.dtype)


NUMPY_ARRAYS = _NumpyArrays()


@functools.lru_cache(maxsize=64)
def _delivery(dtype: np.dtype[Any]) -> Delivery:
    """Returns the delivery for all targets of one dtype: thousands of leaves have few."""

    def build(arrays: Sequence[Any]) -> Any:
        # A small array is a read-only view of the index, so it is copied. A larger one was read straight into the array returned here.
        array: np.ndarray = arrays[0] if arrays[0].flags.writeable else arrays[0].copy()
        if array.dtype == dtype:
            return array
        # Only the byte order differs. It is changed in place, because a second array might not fit into memory.
        return array.byteswap(inplace=True).view(dtype)

    return Delivery(WHOLE, (), build)
