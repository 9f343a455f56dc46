"""Errors of JAX, numpy or Orbax about one leaf, given the leaf's name: the libraries themselves don't know it."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

from jaxckpt.tree.flatten import Leaf


class Walk:
    """Walks over leaves. A context manager: an exception inside of the block gets the name of the leaf that the walk was at."""

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


def named(error: Exception, name: str) -> Exception:
    """Returns an error of the same kind that begins with the name of the leaf; raise it from `error`.

    Args:
      error: what was raised about the leaf.
      name: of the leaf. An error that names it already is returned as it is.
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
        except Exception:  # A class whose constructor wants something else.
            continue
        if name in str(found):
            return found
    return RuntimeError(f"{name}: {type(error).__name__}: {text}")


# A KeyError or an IndexError of a library's inside says nothing to a caller: those become a RuntimeError.
_KINDS = (TypeError, ValueError, MemoryError, NotImplementedError, RuntimeError)
