"""The kind of numpy.generic: scalars of numpy, which have a dtype that the program chose."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxckpt.leaf_kinds import contents
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.fitting import conversion, require_array, require_shape
from jaxckpt.leaf_kinds.kind import WHOLE, Content, Delivery, Terms
from jaxckpt.leaf_kinds.numpy_kind import NumpyKind
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf


class _NumpyScalars(NumpyKind):
    name = "numpy scalar"
    reader_name = "numpy scalar"
    stored_as = (notes.NUMPY_SCALAR.word,)
    note = notes.NUMPY_SCALAR

    def owns(self, value: Any) -> bool:
        return isinstance(value, np.generic)

    def take(self, leaf: Leaf, copy: bool) -> Content:
        contents.require_storable(leaf, leaf.value.dtype)
        return contents.whole("scalar", np.asarray(leaf.value), notes.NUMPY_SCALAR.word)

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        found = require_array(target.value, leaf, info)
        require_shape(target, target.value.shape, found, terms)
        return conversion(target, leaf, found, terms, is_numpy_scalar=True)

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        return Delivery(WHOLE, (), _build(target.value.dtype))

    def describe_stored(self, leaf: StoredLeaf, info: ArrayInfo | None) -> str:
        assert info is not None
        return f"a scalar of dtype {info.dtype}"

    def read(self, array: np.ndarray) -> Any:
        return array[()]


NUMPY_SCALARS = _NumpyScalars()


def _build(dtype: np.dtype[Any]) -> Callable[[Sequence[Any]], Any]:
    return lambda arrays: arrays[0].astype(dtype, copy=False)[()]
