"""The kinds of Python's bool, int, float and complex. Subclasses are not included, because they would not come back as such.

A Python scalar has a kind of number, but not a dtype. A float is stored in 64 bits, and restores into arrays of any floating dtype that
holds it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxckpt.leaf_kinds import contents
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.dtypes import number_kind
from jaxckpt.leaf_kinds.fitting import require_numbers
from jaxckpt.leaf_kinds.kind import WHOLE, Content, Delivery, LeafKind, OtherKindError, OtherShapeError, Terms
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf


class _PythonScalars(LeafKind):
    """The kind of Python scalars of one type."""

    reader_name = "scalar"
    stored_as = ("scalar",)

    def __init__(self, scalar: type, numbers: str) -> None:
        """Makes the kind.

        Args:
          scalar: the type.
          numbers: the kind of number, as `number_kind` returns it.
        """
        self.name = scalar.__name__
        self._type = scalar
        self._numbers = numbers

    def owns(self, value: Any) -> bool:
        return type(value) is self._type

    def take(self, leaf: Leaf, copy: bool) -> Content:
        return contents.whole("scalar", np.asarray(leaf.value))

    def digest(self, value: Any) -> str | None:
        return contents.text_digest(value)

    def is_same(self, one: Any, other: Any) -> bool:
        return contents.is_same_array(one, other)

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        found = require_numbers(leaf, info)
        if number_kind(found.dtype) != self._numbers:
            raise OtherKindError
        if found.shape != ():
            raise OtherShapeError(
                f"{target.name}: the target is a {type(target.value).__name__}, but {terms.path} holds an array of shape {found.shape} "
                f"and dtype {found.dtype}."
            )
        return None

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        return Delivery(WHOLE, (), self._build)

    def _build(self, arrays: Sequence[Any]) -> Any:
        return self._type(arrays[0].item())

    def describe_stored(self, leaf: StoredLeaf, info: ArrayInfo | None) -> str:
        assert info is not None
        return f"a scalar of dtype {info.dtype}"

    def read(self, array: np.ndarray) -> Any:
        return array.item() if array.shape == () else super().read(array)


class _Ints(_PythonScalars):
    """The kind of Python's int, stored as int64, or as uint64 if it is too large for that."""

    def refusal(self, value: Any, action: str) -> str | None:
        if -(2**63) <= value < 2**64:
            return None
        return (
            f"Python int {value} does not fit into 64 bits and cannot be stored. Store it as a str, or as several ints."
        )

    def take(self, leaf: Leaf, copy: bool) -> Content:
        value = leaf.value
        if (reason := self.refusal(value, "save")) is not None:
            raise TypeError(f"{leaf.name}: {reason}")
        return contents.whole("scalar", np.asarray(value, np.int64 if value < 2**63 else np.uint64))


PYTHON_SCALARS = (
    _PythonScalars(bool, "b"),
    _Ints(int, "i"),
    _PythonScalars(float, "f"),
    _PythonScalars(complex, "c"),
)
