"""Paths and names of leaves.

A leaf's **name** is its path joined by ``/``: mapping keys, attribute names and sequence indices. Inside a key, ``~`` is spelled
``~0`` and ``/`` is spelled ``~1`` (as JSON Pointer, RFC 6901, does), so that two different paths never share a name.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

# The `Key.is_index` of an index into a container of an NNX object. It is true. NNX, and so Orbax, stores such an index as a dict's key.
OBJECT_INDEX = 2


VALUE = "value"
"""The key that an `nnx.State` puts between a Variable and its array. Orbax stores it; a Checkpoint does not."""


PROCESS = "@process_"
"""With the index of a process, the first key of the states that objects of that process had, if processes had different ones."""


class Key(NamedTuple):
    """One step of a path.

    Attributes:
      text: the key as text.
      is_index: whether the key is an index into a sequence; `OBJECT_INDEX` for an index into a container of an NNX object.
    """

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


class _NamedPath(tuple[Key, ...]):
    """A path that knows its name. A restore asks for the name of a leaf again and again.

    Attributes:
      name: the name.
    """

    name: str


def leaf_name(path: Iterable[tuple[str, int]]) -> str:
    """Returns the name of the leaf at `path`, as errors, the status of a restore, readers and commands show it."""
    if type(path) is _NamedPath:
        return path.name
    texts = [text for text, _ in path]
    name = "/".join(texts)
    if "~" in name or name.count("/") != len(texts) - 1:
        name = "/".join(text.replace("~", "~0").replace("/", "~1") for text in texts)
    return name


def leaf_names(paths: Iterable[Sequence[tuple[str, int]]]) -> list[str]:
    """Returns the names of many leaves. Most leaves lie beside the one before, so the name of their container is made once."""
    paths = paths if isinstance(paths, list) else list(paths)
    known = [path.name for path in paths if type(path) is _NamedPath]
    if len(known) == len(paths):
        return known
    names = []
    above: Sequence[tuple[str, int]] | None = None
    prefix = ""
    for path in paths:
        if not path:
            names.append("")
            continue
        if path[:-1] != above:
            above = path[:-1]
            prefix = f"{leaf_name(above)}/" if above else ""
        text = path[-1][0]
        if "~" in text or "/" in text:
            text = leaf_name(path[-1:])
        names.append(prefix + text)
    return names


def dotted_name(path: Path) -> str:
    """Returns Orbax's name of the leaf at `path`: its keys joined by dots. Keys that contain dots are not told apart."""
    name = leaf_name(path)
    # Most leaves know their name, and without escapes its slashes are the only ones.
    return name.replace("/", ".") if "~" not in name else ".".join([text for text, _ in path])


class KnownPath:
    """A cached path, and the cached paths below it. A training loop saves the same paths again and again.

    A leaf that is saved again gets the same tuple as its path. The cache holds plain text only and never the user's keys, for two reasons:
    keys may be equal and yet have different texts (True and 1, or a str and an equal member of an enum), and the cache must not keep the
    user's objects alive.
    """

    __slots__ = ("_below", "_indices", "_order", "path")

    def __init__(self, path: Path = ()) -> None:
        self.path = named = _NamedPath(path)
        named.name = leaf_name(path)
        self._below: dict[str | tuple[str, int], KnownPath] = {}
        self._indices: list[KnownPath] = []
        self._order: tuple[tuple[str, ...], list[tuple[str, KnownPath]]] | None = None

    def below(self, text: str, is_index: int = False) -> "KnownPath":
        """Returns the path that is longer by `Key(text, is_index)`."""
        key = (text, is_index) if is_index else text
        found = self._below.get(key)
        if found is None:
            # `join` makes a plain str of an instance of a subclass. If two threads do this at once, both get the path that came first.
            text = "".join((text,))
            new = KnownPath((*self.path, Key(text, is_index)))
            found = self._below.setdefault((text, is_index) if is_index else text, new)
            _count(1)
        return found

    def indices(self, length: int) -> Sequence["KnownPath"]:
        """Returns the paths of the items of a sequence: at least `length` of them."""
        known = self._indices
        if len(known) < length:
            known = self._indices = [self.below(str(index), True) for index in range(length)]
        return known

    def items(self, mapping: Mapping[Any, Any]) -> Sequence[tuple[Any, "KnownPath"]]:
        """Returns the keys of a dict in JAX's order, each with its path.

        Raises:
          TypeError: the keys cannot be sorted.
        """
        if self._order is not None:
            keys, pairs = self._order
            # Keys are compared by identity, because an equal key may have another text.
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
    """Returns the empty path, the root of the cache. The cache is emptied when it has become too large."""
    global _root, _known
    if _known > _KNOWN_AT_MOST:
        _root, _known = KnownPath(), 0
    return _root
