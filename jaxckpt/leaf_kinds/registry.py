"""The list of all kinds of leaves, and the look-up of the kind of a value or of a stored leaf."""

from collections.abc import Callable
from typing import Any

from jaxckpt._lib.by_type import ByType
from jaxckpt.leaf_kinds.abstract import ABSTRACT
from jaxckpt.leaf_kinds.byte_strings import BYTE_STRINGS
from jaxckpt.leaf_kinds.jax_arrays import JAX_ARRAYS
from jaxckpt.leaf_kinds.kind import LeafKind
from jaxckpt.leaf_kinds.numpy_arrays import NUMPY_ARRAYS
from jaxckpt.leaf_kinds.numpy_scalars import NUMPY_SCALARS
from jaxckpt.leaf_kinds.prng_keys import PRNG_KEYS
from jaxckpt.leaf_kinds.python_scalars import PYTHON_SCALARS
from jaxckpt.leaf_kinds.refused import MASKED, OTHERS, TRACED
from jaxckpt.leaf_kinds.strings import STRINGS
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.tree_metadata import StoredLeaf

# The first kind that owns a value is its kind. Traced values pass for jax.Arrays, and masked arrays are numpy arrays, so these come first.
_kinds: list[LeafKind] = [
    TRACED,
    PRNG_KEYS,
    JAX_ARRAYS,
    ABSTRACT,
    MASKED,
    NUMPY_ARRAYS,
    NUMPY_SCALARS,
    *PYTHON_SCALARS,
    STRINGS,
    BYTE_STRINGS,
    OTHERS,
]
_by_type: ByType[LeafKind] = ByType({})
_permanent = _by_type.permanent
_by_word: dict[str, LeafKind] = {}


def _index() -> None:
    """Rebuilds the look-up tables from `_kinds`."""
    _by_type.clear()
    _by_word.clear()
    for kind in reversed(_kinds):
        _by_word.update(dict.fromkeys(kind.stored_as, kind))


_index()


def kind_of(value: Any) -> LeafKind:
    """Returns the kind of a value."""
    found = type(value)
    return _permanent.get(found) or _by_type.get(found) or _by_type.put(found, _owner(value))


def _owner(value: Any) -> LeafKind:
    return next(kind for kind in _kinds if kind.owns(value))


def stored_kind(leaf: StoredLeaf) -> LeafKind:
    """Returns the kind of a stored leaf. The leaf must not be an empty container or foreign (of a type that only Orbax knows)."""
    if leaf.is_string:
        return STRINGS
    if leaf.key_impl is not None:
        return PRNG_KEYS
    return _by_word.get(leaf.note or leaf.value_type) or _by_word[leaf.value_type]


def named(reader_name: str) -> LeafKind | None:
    """Returns the kind of the leaves that a reader describes by this word (see `LeafMetadata.kind`); None for foreign leaves.

    Args:
      reader_name: the word. jax.Arrays and numpy arrays may share one.
    """
    return next((kind for kind in _kinds if kind.reader_name == reader_name), None)


def refusal(value: Any, action: str) -> str | None:
    """Returns why a value cannot be a leaf of a checkpoint; None if it can.

    Args:
      value: a value to save, or the target of a restore.
      action: "save" or "restore".
    """
    return kind_of(value).refusal(value, action)


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are of the same kind, and equal bit for bit."""
    if one is other:
        return True
    kind = kind_of(one)
    return kind is kind_of(other) and kind.is_same(one, other)


def register(kind: LeafKind) -> Callable[[], None]:
    """Adds a kind of leaf. It is asked before the existing kinds.

    Args:
      kind: the new kind.

    Returns:
      A function that removes the kind again. The kind's note stays known.

    Raises:
      ValueError: another note has the same word.
    """
    if kind.note is not None:
        notes.add(kind.note)
    _kinds.insert(0, kind)
    _index()

    def remove() -> None:
        _kinds.remove(kind)
        _index()

    return remove
