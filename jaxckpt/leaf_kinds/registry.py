"""Which kinds of leaves there are, and which one a value, or a stored leaf, is of."""

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

# The first one that owns a value is its kind. A traced value says that it is a jax.Array, and a masked array is one of numpy.
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
    """Looks at the kinds anew."""
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
    """Returns the kind of a stored leaf, which is no empty container and not foreign."""
    if leaf.is_string:
        return STRINGS
    if leaf.key_impl is not None:
        return PRNG_KEYS
    return _by_word.get(leaf.kind or leaf.value_type) or _by_word[leaf.value_type]


def refusal(value: Any, action: str) -> str | None:
    """Says why a value cannot be a leaf of a checkpoint; see `LeafKind.refusal`."""
    return kind_of(value).refusal(value, action)


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are of the same kind, and the same, bit for bit."""
    if one is other:
        return True
    kind = kind_of(one)
    return kind is kind_of(other) and kind.is_same(one, other)


def register(kind: LeafKind) -> Callable[[], None]:
    """Adds a kind of leaf. It is asked before those that are there.

    Args:
      kind: the new one.

    Returns:
      What takes it out again. Its note stays known.

    Raises:
      ValueError: its note has the word of another one.
    """
    if kind.note is not None:
        notes.add(kind.note)
    _kinds.insert(0, kind)
    _index()

    def remove() -> None:
        _kinds.remove(kind)
        _index()

    return remove
