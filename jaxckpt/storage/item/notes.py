"""The notes: words with which jaxckpt marks leaves for which Orbax has no word of its own. The words are part of the format.

A note stands under ``custom_metadata.jaxckpt.kinds`` in ``_METADATA``, by Orbax's name of the leaf. A checkpoint that holds a note that
is not known counts as damaged, so a new one can only be read by the version that adds it, and by later ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Note:
    """One word of the format.

    Attributes:
      word: what is written.
      fits: says whether an array of this shape and dtype can be such a leaf; None if any can. What it refuses is damage.
      has_own_shape: shape or dtype depend on the value, so that two processes may have different ones.
    """

    word: str
    fits: Callable[[tuple[int, ...], np.dtype[Any]], bool] | None = None
    has_own_shape: bool = False


def _is_row_of_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return len(shape) == 1 and dtype == "uint8"


BYTES = Note("bytes", _is_row_of_bytes, has_own_shape=True)
"""Python's bytes, stored as an array of uint8."""

NUMPY_SCALAR = Note("numpy")
"""A scalar of numpy, which has a dtype that somebody chose. Orbax has one word for it and for Python's scalars."""

JAX_ARRAY = Note("jax")
"""A jax.Array that several processes saved. Orbax is told that it is a numpy array (see `jaxckpt.saving.shards`)."""

_notes = {note.word: note for note in (BYTES, NUMPY_SCALAR, JAX_ARRAY)}


def find(word: str) -> Note | None:
    """Returns the note with this word, or None if it is not known."""
    return _notes.get(word)


def checked() -> frozenset[str]:
    """Returns the words of the notes that say what an array can be."""
    return frozenset(note.word for note in _notes.values() if note.fits is not None)


def has_own_shape(word: str | None) -> bool:
    """Whether the shape or the dtype of a leaf with this note depends on its value. `word`: of the note; None for a leaf without one."""
    note = None if word is None else _notes.get(word)
    return note is not None and note.has_own_shape


def add(note: Note) -> None:
    """Makes a note known.

    Args:
      note: of a kind of leaf that is registered while the program runs. One that is known already may be added again.

    Raises:
      ValueError: another note has the same word.
    """
    if _notes.setdefault(note.word, note) != note:
        raise ValueError(f"The note {note.word!r} of another kind of leaf is known already. Choose another word.")
