"""What is known of types, decided once per type: JAX answers `isinstance` slowly, and states have thousands of leaves of few types."""

import sys
import weakref
from typing import Generic, TypeVar

_Value = TypeVar("_Value")
_PERMANENT = ("builtins", "jax", "jaxlib", "ml_dtypes", "numpy")


class ByType(Generic[_Value]):
    """What is known of types. It keeps no type of a program alive, because a class may hold its user's data.

    Attributes:
      permanent: what is known of the types of Python, NumPy and JAX, which never go. Look here first: it is a plain dict.
    """

    def __init__(self, known: dict[type, _Value]) -> None:
        """Makes a table.

        Args:
          known: what is known from the start, by type. The table keeps this dict, as `permanent`.
        """
        self.permanent = known
        self._others: weakref.WeakKeyDictionary[type, _Value] = weakref.WeakKeyDictionary()

    def clear(self) -> None:
        """Forgets everything."""
        self.permanent.clear()
        self._others.clear()

    def get(self, kind: type) -> _Value | None:
        """Returns what is known of the type `kind`, or None."""
        found = self.permanent.get(kind)
        return self._others.get(kind) if found is None else found

    def put(self, kind: type, value: _Value) -> _Value:
        """Remembers `value` for the type `kind`, and returns it."""
        module, name = str(kind.__module__), kind.__qualname__
        if module.partition(".")[0] in _PERMANENT and getattr(sys.modules.get(module), name, None) is kind:
            self.permanent[kind] = value
        else:
            self._others[kind] = value
        return value
