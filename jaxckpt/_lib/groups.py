"""Dividing a sequence of things into groups of a bounded size."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def groups(
    items: Iterable[_T], size: Callable[[_T], int], limit: int, *, fewest: int = 1, most: int | None = None
) -> Iterator[list[_T]]:
    """Yields the items in their order, in groups whose sizes add up to `limit` at most. No group is empty.

    Args:
      items: what to divide.
      size: returns the size of an item, such as its bytes.
      limit: of the sizes in a group. An item that is larger is in a group of `fewest` items.
      fewest: a group has at least so many items, whatever their size; only the last one may have fewer.
      most: a group has at most so many items; None for any number.
    """
    group: list[_T] = []
    held = 0
    for item in items:
        more = size(item)
        if group and ((held + more > limit and len(group) >= fewest) or len(group) == most):
            yield group
            group, held = [], 0
        group.append(item)
        held += more
    if group:
        yield group
