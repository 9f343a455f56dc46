"""New names for leaves: a rule replaces a name, or the beginning of one. Pure."""

from collections.abc import Iterable
from typing import NamedTuple, Self

from jaxckpt.tree.names import Key, Path


class Rule(NamedTuple):
    """A rule for names.

    Attributes:
      old: the keys that a path begins with.
      new: the keys that replace them; none, to drop them.
      text: the rule as the user wrote it.
    """

    old: tuple[str, ...]
    new: tuple[str, ...]
    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the rule for a text ``OLD=NEW``, in which both are names of leaves, or beginnings of them up to a slash.

        Raises:
          ValueError: the text is not such a rule.
        """
        old, equals, new = text.partition("=")
        if not equals or not old:
            raise ValueError(f"{text!r} is not of the form OLD=NEW, such as model/dense=model/hidden")
        return cls(_keys(old), _keys(new), text)

    @classmethod
    def of(cls, old: str, new: str) -> Self:
        """Returns the rule that replaces the name `old`, or this beginning of a name, by `new`. An empty name is that of the whole tree."""
        return cls(_keys(old), _keys(new), f"{old!r}: {new!r}")

    def apply(self, path: Iterable[tuple[str, int]]) -> Path | None:
        """Returns the new path of a leaf; None if the rule does not apply to it.

        Args:
          path: the path of the leaf.
        """
        keys = tuple(Key(*key) for key in path)
        if tuple(key.text for key in keys[: len(self.old)]) != self.old:
            return None
        return (*(Key(text) for text in self.new), *keys[len(self.old) :])


def path_of(name: str) -> Path:
    """Returns the path of a name; the empty path for the empty name."""
    return tuple(Key(part.replace("~1", "/").replace("~0", "~")) for part in name.split("/")) if name else ()


def _keys(name: str) -> tuple[str, ...]:
    return tuple(key.text for key in path_of(name.rstrip("/")))
