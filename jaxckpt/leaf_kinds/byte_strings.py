"""The kind of Python's bytes (not of subclasses), stored as an array of uint8 with a note."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxckpt.leaf_kinds import contents
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.kind import WHOLE, Content, Delivery, LeafKind, OtherKindError, Terms
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.tree_metadata import STR_OR_BYTES, StoredLeaf
from jaxckpt.tree.flatten import Leaf


class _ByteStrings(LeafKind):
    name = "bytes"
    reader_name = "bytes"
    stored_as = (notes.BYTES.word,)
    note = notes.BYTES
    is_one_value = True

    def owns(self, value: Any) -> bool:
        return type(value) is bytes

    def take(self, leaf: Leaf, copy: bool) -> Content:
        return contents.whole("np.ndarray", np.frombuffer(leaf.value, np.uint8), notes.BYTES.word)

    def digest(self, value: Any) -> str | None:
        return contents.checksum(np.frombuffer(value, np.uint8))

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        if leaf.note != STR_OR_BYTES and (info is None or leaf.note != notes.BYTES.word):
            raise OtherKindError
        return None

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        return Delivery((), (), _encode) if leaf.is_string else Delivery(WHOLE, (), _build)

    def describe_stored(self, leaf: StoredLeaf, info: ArrayInfo | None) -> str:
        assert info is not None
        return f"bytes ({info.shape[0]} of them)"

    def read(self, array: np.ndarray) -> Any:
        return array.tobytes()


BYTE_STRINGS = _ByteStrings()


def _build(arrays: Sequence[Any]) -> Any:
    return arrays[0].tobytes()


def _encode(texts: Sequence[Any]) -> Any:
    return texts[0].encode()
