"""Divides a sequence of items into groups of a bounded size."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def groups(
    items: Iterable[_T], size: Callable[[_T], int], limit: int, *, fewest: int = 1, most: int | None = None
) -> Iterator[list[_T]]:
    """Yields the items, in order, in non-empty groups whose total size is at most `limit`.

    Args:
      items: the items to divide.
      size: returns the size of an item, such as its number of bytes.
      limit: the largest total size of a group. A group with a larger item has `fewest` items.
      fewest: the smallest number of items in a group, whatever their size. Only the last group may have fewer.
      most: the largest number of items in a group; None for any number.
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
