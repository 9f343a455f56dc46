"""The kind of Python's str (not of subclasses). Orbax stores these leaves together in one file of their own, not as arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxckpt.leaf_kinds import contents
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.kind import Content, Delivery, LeafKind, OtherKindError, Terms
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.content import StringContent
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf


class _Strings(LeafKind):
    name = "str"
    reader_name = "str"
    stored_as = ("string",)
    is_one_value = True

    def owns(self, value: Any) -> bool:
        return type(value) is str

    def take(self, leaf: Leaf, copy: bool) -> Content:
        contents.require_text(leaf.name, leaf.value)
        return StringContent(leaf.value)

    def digest(self, value: Any) -> str | None:
        return contents.text_digest(value)

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        if info is not None:
            raise OtherKindError
        return None

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        return _DELIVERY

    def describe_stored(self, leaf: StoredLeaf, info: ArrayInfo | None) -> str:
        return "a str"

    def read(self, array: np.ndarray) -> Any:
        return str(array[()])


STRINGS = _Strings()


def _only(texts: Sequence[Any]) -> Any:
    return texts[0]


_DELIVERY = Delivery((), (), _only)
