"""What the kinds of numpy's arrays and scalars have in common: a value has a dtype that the program chose."""

from typing import Any

import numpy as np

from jaxckpt.leaf_kinds import contents, dtypes
from jaxckpt.leaf_kinds.kind import LeafKind


class NumpyKind(LeafKind):
    """A kind whose values belong to numpy. Derived classes say how they are stored and restored."""

    def refusal(self, value: Any, action: str) -> str | None:
        """See `LeafKind`."""
        return dtypes.refusal(value.dtype)

    def digest(self, value: Any) -> str | None:
        """See `LeafKind`."""
        array = np.asarray(value)
        return None if array.dtype.hasobject else contents.checksum(array)

    def is_same(self, one: Any, other: Any) -> bool:
        """See `LeafKind`."""
        return contents.is_same_array(one, other)
