"""The notes: words by which jaxckpt marks leaves whose type Orbax has no word for. The words are part of the format.

A note is stored in ``_METADATA``, in ``custom_metadata.jaxckpt.kinds``, by Orbax's name of the leaf. A checkpoint with an unknown note
counts as damaged. So only the version of jaxckpt that adds a note, and later versions, can read checkpoints with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Note:
    """One word of the format.

    Attributes:
      word: the word that is written.
      fits: says whether an array of this shape and dtype can be such a leaf. An array that it refuses counts as damaged. None if every
        array fits.
      has_own_shape: whether shape or dtype depend on the value, so that they may differ between processes.
    """

    word: str
    fits: Callable[[tuple[int, ...], np.dtype[Any]], bool] | None = None
    has_own_shape: bool = False


def _is_row_of_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return len(shape) == 1 and dtype == "uint8"


BYTES = Note("bytes", _is_row_of_bytes, has_own_shape=True)
"""Python's bytes, stored as an array of uint8."""

NUMPY_SCALAR = Note("numpy")
"""A numpy scalar, whose dtype must be kept. Orbax has one word for numpy scalars and Python numbers."""

JAX_ARRAY = Note("jax")
"""A jax.Array that several processes saved. For Orbax it is described as a numpy array (see `jaxckpt.saving.shards`)."""

_notes = {note.word: note for note in (BYTES, NUMPY_SCALAR, JAX_ARRAY)}


def find(word: str) -> Note | None:
    """Returns the note with this word, or None if it is unknown."""
    return _notes.get(word)


def checked() -> frozenset[str]:
    """Returns the words of the notes that not every array fits."""
    return frozenset(note.word for note in _notes.values() if note.fits is not None)


def has_own_shape(word: str | None) -> bool:
    """Whether the shape or the dtype of a leaf with this note depends on its value.

    Args:
      word: word of the note; None for a leaf without a note.
    """
    note = None if word is None else _notes.get(word)
    return note is not None and note.has_own_shape


def add(note: Note) -> None:
    """Adds a note. A note may be added twice.

    Args:
      note: note of a leaf kind that the program registers.

    Raises:
      ValueError: another note has the same word.
    """
    if _notes.setdefault(note.word, note) != note:
        raise ValueError(f"Another leaf kind already uses the note {note.word!r}. Choose another word.")
