"""Paths and names of leaves.

A leaf's **name** is its path joined by ``/``: mapping keys, attribute names and sequence indices. Inside a key, ``~`` is spelled
``~0`` and ``/`` is spelled ``~1`` (as JSON Pointer, RFC 6901, does), so that two different paths never share a name.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

# A true `Key.is_index`: of a container of an NNX object. NNX itself, and so Orbax, takes such an index for the key of a dict.
OBJECT_INDEX = 2


class Key(NamedTuple):
    """One step of a path: the key as text, and whether it is an index into a sequence (or, with `OBJECT_INDEX`, into which kind)."""

    text: str
    is_index: int = False


Path = tuple[Key, ...]


def as_key(entry: Any) -> Key:
    """Returns the key for one step of a JAX key path."""
    if isinstance(entry, jax.tree_util.SequenceKey):
        return Key(str(entry.idx), True)
    if isinstance(entry, jax.tree_util.DictKey):
        return Key(str(entry.key))
    if isinstance(entry, jax.tree_util.GetAttrKey):
        return Key(entry.name)
    if isinstance(entry, jax.tree_util.FlattenedIndexKey):
        return Key(str(entry.key), True)
    return Key(str(entry))


def leaf_name(path: Iterable[tuple[str, int]]) -> str:
    """Returns the name of the leaf at `path`, as errors, status, reader and command line show it."""
    texts = [text for text, _ in path]
    name = "/".join(texts)
    if "~" in name or name.count("/") != len(texts) - 1:
        name = "/".join(text.replace("~", "~0").replace("/", "~1") for text in texts)
    return name


class KnownPath:
    """A path, and the paths below it that have been seen: a training loop saves the same ones again and again.

    The path of a leaf that is saved again is the very same tuple. Only text is kept, and never a key of the user that is spelled
    the same but is something else (True and 1, a str and a member of an enum that equals it): names are always those of the value
    at hand, and nothing of the user stays alive.
    """

    __slots__ = ("_below", "_indices", "_order", "path")

    def __init__(self, path: Path = ()) -> None:
        self.path = path
        self._below: dict[str | tuple[str, int], KnownPath] = {}
        self._indices: list[KnownPath] = []
        self._order: tuple[tuple[str, ...], list[tuple[str, KnownPath]]] | None = None

    def below(self, text: str, is_index: int = False) -> "KnownPath":
        """Returns the path that is one key longer: `Key(text, is_index)`."""
        key = (text, is_index) if is_index else text
        found = self._below.get(key)
        if found is None:
            # A str of its own, should this be a subclass of str. Another thread may be doing the same: both get the one that came first.
            text = "".join((text,))
            new = KnownPath((*self.path, Key(text, is_index)))
            found = self._below.setdefault((text, is_index) if is_index else text, new)
            _count(1)
        return found

    def indices(self, length: int) -> Sequence["KnownPath"]:
        """Returns the paths of the items of a sequence: `length` of them, or more."""
        known = self._indices
        if len(known) < length:
            known = self._indices = [self.below(str(index), True) for index in range(length)]
        return known

    def items(self, mapping: Mapping[Any, Any]) -> Sequence[tuple[Any, "KnownPath"]]:
        """Returns the keys of a dict, in the order in which JAX takes them, and their paths.

        Raises:
          TypeError: the keys cannot be sorted.
        """
        if self._order is not None:
            keys, pairs = self._order
            # By identity: an equal key may be spelled otherwise.
            if len(keys) == len(mapping) and all(map(operator.is_, keys, mapping)):
                return pairs
        found = [(key, self.below(str(key))) for key in sorted(mapping)]
        if set(map(type, mapping)) == {str}:
            self._order = tuple(mapping), found
        return found


_KNOWN_AT_MOST = 200_000
_root = KnownPath()
_known = 0


def _count(number: int) -> None:
    global _known
    _known += number


def known_paths() -> KnownPath:
    """Returns the empty path, below which the others are known. They are forgotten where they have become too many."""
    global _root, _known
    if _known > _KNOWN_AT_MOST:
        _root, _known = KnownPath(), 0
    return _root
