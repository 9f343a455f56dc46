"""Named leaves → nested dicts and lists, for a reader that has no target to tell the types of the containers."""

from collections.abc import Collection
from typing import Any

from jaxckpt._lib.documents import DamagedError

# A longer number is not the index of a sequence.
_DIGITS = 19


class Container:
    """A dict or list under construction: `put` adds leaves below it, then `build` makes it."""

    def __init__(
        self, sequences: Collection[tuple[str, ...]], path: tuple[str, ...] = (), *, has_lists: bool = True
    ) -> None:
        """Makes an empty container.

        Args:
          sequences: paths of the containers that are sequences even if their keys are not marked as indices.
          path: path of this container.
          has_lists: whether a sequence without holes becomes a list; otherwise each sequence becomes a dict with integer keys.
        """
        self._has_lists = has_lists
        self._sequences = sequences
        self._path = path
        self._children: dict[str, Any] = {}
        self._is_indexed = True

    def put(self, path: tuple[tuple[str, bool], ...], value: Any) -> None:
        """Puts a leaf below this container.

        Args:
          path: the keys from this container down to the leaf, each with a flag: whether it is an index.
          value: the leaf.

        Raises:
          DamagedError: another leaf is in the way.
        """
        node = self
        for text, is_index in path[:-1]:
            node._is_indexed = node._is_indexed and is_index
            below = node._children.get(text)
            if below is None:
                below = node._children[text] = Container(
                    self._sequences, (*node._path, text), has_lists=self._has_lists
                )
            elif not isinstance(below, Container):
                raise DamagedError("a leaf lies below another leaf")
            node = below
        if not path or path[-1][0] in node._children:
            raise DamagedError("a leaf lies where another one is")
        text, is_index = path[-1]
        node._is_indexed = node._is_indexed and is_index
        node._children[text] = value

    def build(self) -> Any:
        """Returns the container. This does not recurse, because a stranger's tree may have more levels than Python's stack."""
        order = [self]
        for node in order:
            order.extend(child for child in node._children.values() if isinstance(child, Container))
        built: dict[int, Any] = {}
        for node in reversed(order):
            items = {
                text: built.pop(id(child)) if isinstance(child, Container) else child
                for text, child in node._children.items()
            }
            built[id(node)] = node._container(items)
        return built[id(self)]

    def _container(self, built: dict[str, Any]) -> Any:
        if not (built and (self._is_indexed or self._path in self._sequences) and all(map(_is_index, built))):
            return built
        items = {index: built[str(index)] for index in sorted(map(int, built))}
        # A sequence with holes keeps its indices.
        return list(items.values()) if self._has_lists and len(items) == max(items) + 1 else items


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < _DIGITS and (text == "0" or text[0] != "0")
