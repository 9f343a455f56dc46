"""A table of facts about types, each found once per type: `isinstance` is slow for JAX's types, and a state has thousands of leaves."""

import sys
import weakref
from typing import Generic, TypeVar

_Value = TypeVar("_Value")
_PERMANENT = ("builtins", "jax", "jaxlib", "ml_dtypes", "numpy")


class ByType(Generic[_Value]):
    """A table from types to values. It does not keep the program's own types alive, because a class may hold its user's data.

    Attributes:
      permanent: the part of the table for the types of Python, NumPy and JAX, which never disappear. Look here first: it is a plain dict.
    """

    def __init__(self, known: dict[type, _Value]) -> None:
        """Makes a table.

        Args:
          known: the entries to start with. The table keeps this dict as `permanent`.
        """
        self.permanent = known
        self._others: weakref.WeakKeyDictionary[type, _Value] = weakref.WeakKeyDictionary()

    def clear(self) -> None:
        """Forgets everything."""
        self.permanent.clear()
        self._others.clear()

    def get(self, kind: type) -> _Value | None:
        """Returns the value for the type `kind`, or None."""
        found = self.permanent.get(kind)
        return self._others.get(kind) if found is None else found

    def put(self, kind: type, value: _Value) -> _Value:
        """Stores `value` for the type `kind`, and returns it."""
        module, name = str(kind.__module__), kind.__qualname__
        if module.partition(".")[0] in _PERMANENT and getattr(sys.modules.get(module), name, None) is kind:
            self.permanent[kind] = value
        else:
            self._others[kind] = value
        return value
