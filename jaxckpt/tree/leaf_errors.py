"""Adds the leaf's name to errors of JAX, numpy or Orbax about one leaf, because these libraries do not know it."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

from jaxckpt.tree.flatten import Leaf


class Walk:
    """Iterates over leaves. As a context manager, it adds the name of the current leaf to an exception inside the block."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._leaves = leaves
        self._at: Leaf | None = None

    def __iter__(self) -> Iterator[Leaf]:
        for leaf in self._leaves:
            self._at = leaf
            yield leaf
        self._at = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._at is not None and isinstance(error, Exception):
            found = named(error, self._at.name)
            if found is not error:
                raise found from error


# In lower case, because it is used like a function.
class naming:  # noqa: N801
    """Adds the name of a leaf to an exception inside the block."""

    def __init__(self, name: str) -> None:
        """Makes the context manager.

        Args:
          name: the leaf's name.
        """
        self._name = name

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            found = named(error, self._name)
            if found is not error:
                raise found from error


def named(error: Exception, name: str) -> Exception:
    """Returns an error of the same kind whose text begins with the leaf's name. The caller raises it from `error`.

    Args:
      error: the error about the leaf. It is returned unchanged if it names the leaf already.
      name: the leaf's name.
    """
    text = str(error)
    if name in text:
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return type(error)(error.errno, f"{name}: {error.strerror}", error.filename)
    for kind in (type(error), *_KINDS):
        if not isinstance(error, kind):
            continue
        try:
            found: Exception = kind(f"{name}: {text}")
        except Exception:
            # The constructor of this class takes other arguments.
            continue
        if name in str(found):
            return found
    return RuntimeError(f"{name}: {type(error).__name__}: {text}")


# A KeyError or an IndexError from inside a library tells a caller nothing. Such errors become a RuntimeError.
_KINDS = (TypeError, ValueError, MemoryError, NotImplementedError, RuntimeError)
