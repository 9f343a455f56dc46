"""What is written: a stream of entries, each a leaf with its pieces and where their bytes come from.

The writer asks every piece for its data when it is that piece's turn: at once if this process holds it, chunk by chunk if it comes
from elsewhere (`Piece.source` is a function then).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxckpt.tree.names import Path, leaf_name

ValueType = Literal["jax.Array", "np.ndarray", "scalar"]
EmptyType = Literal["None", "Dict", "List", "Tuple"]


class Blocks(NamedTuple):
    """The data of an array, which comes block by block.

    Attributes:
      shape, dtype: of the array.
      blocks: the bytes in C order, as contiguous arrays of uint8, each of which is there until the next one is asked for.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Iterator[np.ndarray]

    def whole(self) -> np.ndarray:
        """Returns the array. Can be called once."""
        array = np.empty(self.shape, self.dtype)
        flat, at = array.reshape(-1).view(np.uint8), 0
        for block in self.blocks:
            flat[at : at + block.size] = block
            at += block.size
        return array


class Piece(NamedTuple):
    """A box of an array.

    Attributes:
      start: first index along each axis.
      shape: extent along each axis.
      source: the data, an array of that shape, or what returns any box of it (as `stream` does).
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    source: np.ndarray | Callable[[tuple[int, ...], tuple[int, ...]], np.ndarray | Blocks]

    @property
    def is_remote(self) -> bool:
        """Whether the data has to be fetched from elsewhere."""
        return not isinstance(self.source, np.ndarray)

    def fetch(self, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """Returns a box of the data. May block; may be called in several threads at once.

        Args:
          start: first index along each axis, of the whole array.
          shape: extent along each axis.

        Returns:
          The box: a view if this process holds the data.
        """
        data = self.stream(start, shape)
        return data.whole() if isinstance(data, Blocks) else data

    def stream(self, start: tuple[int, ...], shape: tuple[int, ...]) -> "np.ndarray | Blocks":
        """Returns a box of the data, as `fetch` does, or block by block if that is how it comes."""
        if not isinstance(self.source, np.ndarray):
            return self.source(start, shape)
        # With the dots it is an array also without any axis.
        box: list[Any] = [slice(a - b, a - b + extent) for a, b, extent in zip(start, self.start, shape, strict=True)]
        return self.source[(*box, ...)]


class ArrayContent(NamedTuple):
    """An array (or a scalar) to store.

    Attributes:
      value_type: Orbax's word for what the leaf was.
      shape, dtype: of the whole array.
      write_shape: shape of one piece; pieces tile the array.
      pieces: every element exactly once; may be made as they are asked for. They are iterated over, not indexed.
      kind: the word of a note, if Orbax has no word for what the leaf is (see `jaxckpt.storage.item.notes`); else None.
      key_impl: PRNG implementation if this is the data of a typed PRNG key.
      sharding: the jax.sharding.Sharding of a jax.Array.
      share: in a job of several processes, who has which pieces; `pieces` are then those of this process.
    """

    value_type: ValueType
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    write_shape: tuple[int, ...]
    pieces: Sequence[Piece]
    kind: str | None = None
    key_impl: str | None = None
    sharding: Any = None
    share: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def share_bytes(self) -> int:
        """Bytes of the pieces."""
        return sum(math.prod(piece.shape) for piece in self.pieces) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StringContent:
    """A str."""

    text: str


@dataclass(frozen=True, slots=True)
class EmptyContent:
    """An empty container or None."""

    typestr: EmptyType


class Entry(NamedTuple):
    """One leaf of the tree that is written.

    Attributes:
      path: keys from the top, each with whether it is an index into a sequence.
      content: what to store.
    """

    path: Path
    content: ArrayContent | StringContent | EmptyContent

    @property
    def name(self) -> str:
        """The path joined by ``/``, for messages."""
        return leaf_name(self.path)

    @property
    def param_name(self) -> str:
        """Orbax's name of the leaf, the prefix of its keys in the store."""
        return ".".join([text for text, _ in self.path])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one save writes, fixed at one moment. A leaf to Orbax; opened by our handler.

    Attributes:
      entries: the leaves of the tree.
      record: what the checkpoint remembers of its save besides the tree, such as its number: names and JSON values. It stands in the
        checkpoint's own metadata (see `jaxckpt.storage.item.description`), where a program's targets need not know of it.
      groups: the arrays among the entries once more, each group with the pieces whose chunks share data files with no other group; None
        if the engine may choose.
    """

    entries: tuple[Entry, ...]
    record: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[tuple[Entry, ...], ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(entry.content.nbytes for entry in self.entries if isinstance(entry.content, ArrayContent))


def padded(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns contiguous data of that shape: what a chunk at the edge of an array lacks is filled up with zeros."""
    if data.shape != shape:
        filled = np.zeros(shape, data.dtype)
        filled[tuple(slice(0, extent) for extent in data.shape)] = data
        return filled
    return np.ascontiguousarray(data)
