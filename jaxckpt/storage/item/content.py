"""The content of one save: a snapshot is a list of entries; each entry is a leaf; an array consists of pieces.

The writer asks a piece for its data when it writes it. If this process holds the data, it gets it at once. Otherwise `Piece.source` is a
function that fetches the data chunk by chunk.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxckpt._lib.transfer import Transfer
from jaxckpt.storage.item.account import Account
from jaxckpt.tree.names import Path, dotted_name, leaf_name

ValueType = Literal["jax.Array", "np.ndarray", "scalar"]
EmptyType = Literal["None", "Dict", "List", "Tuple"]


class Blocks(NamedTuple):
    """The data of an array that arrives block by block.

    Attributes:
      shape: shape of the array.
      dtype: dtype of the array.
      blocks: the bytes of the array in C order, as contiguous arrays of uint8. Each is valid until the next one is asked for.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Iterator[np.ndarray]

    def whole(self) -> np.ndarray:
        """Reads all blocks and returns the array. Can be called once."""
        array = np.empty(self.shape, self.dtype)
        flat, at = array.reshape(-1).view(np.uint8), 0
        for block in self.blocks:
            flat[at : at + block.size] = block
            at += block.size
        return array


class InPack:
    """The source of a piece whose data lies in the pack of its snapshot, see `Snapshot.pack`.

    It depends on the structure of the values alone, so it is the same object in all saves of a structure.

    Attributes:
      number: number of the piece in the pack.
      first: position of its first byte in the pack.
      last: position behind its last byte.
    """

    __slots__ = ("first", "last", "number")

    def __init__(self, number: int, first: int, last: int) -> None:
        """Creates the source. The arguments are the attributes."""
        self.number = number
        self.first = first
        self.last = last

    def __call__(self, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | Blocks:
        """Raises an error: the data has to be taken from the pack."""
        raise AssertionError("The data of this piece lies in the pack of its snapshot")


class Piece(NamedTuple):
    """A box of an array that is written.

    Attributes:
      start: first index along each axis of the whole array.
      shape: extent along each axis.
      source: an array of that shape; or, if the data is elsewhere, a function with the arguments and the result of `stream`; or `InPack`.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    source: np.ndarray | Callable[[tuple[int, ...], tuple[int, ...]], np.ndarray | Blocks]

    @property
    def is_remote(self) -> bool:
        """Whether the data must be fetched from elsewhere."""
        return not isinstance(self.source, np.ndarray)

    def fetch(self, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """Returns a box of the data. May block. Several threads may call it at once.

        Args:
          start: first index of the box along each axis of the whole array.
          shape: extent of the box along each axis.

        Returns:
          The box, as a view if this process holds the data.
        """
        data = self.stream(start, shape)
        return data.whole() if isinstance(data, Blocks) else data

    def stream(self, start: tuple[int, ...], shape: tuple[int, ...]) -> "np.ndarray | Blocks":
        """Returns a box of the data, as `fetch` does, or as `Blocks` if it arrives block by block.

        Args:
          start: first index of the box along each axis of the whole array.
          shape: extent of the box along each axis.
        """
        if not isinstance(self.source, np.ndarray):
            return self.source(start, shape)
        if shape == self.shape:
            return self.source
        # The ellipsis makes the result an array even if it has no axes.
        box: list[Any] = [slice(a - b, a - b + extent) for a, b, extent in zip(start, self.start, shape, strict=True)]
        return self.source[(*box, ...)]


class ArrayContent(NamedTuple):
    """An array (or a scalar) to store.

    Attributes:
      value_type: Orbax's word for the type of the leaf.
      shape: shape of the whole array.
      dtype: dtype of the whole array.
      write_shape: shape of one piece; the pieces tile the array.
      pieces: contain every element exactly once. May be made on demand, so they are only iterated over, never indexed.
      note: word of the leaf's note, if Orbax has no word for its type (see `jaxckpt.storage.item.notes`); otherwise None.
      key_impl: PRNG implementation, if this is the data of a typed PRNG key; otherwise None.
      sharding: the jax.sharding.Sharding of a jax.Array; otherwise None.
      share: in a job of several processes, which process has which pieces; `pieces` then has only those of this process.
      chunk_byte_size: the size in bytes that no chunk may exceed, if the program set one for this array; otherwise None.
    """

    value_type: ValueType
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    write_shape: tuple[int, ...]
    pieces: Sequence[Piece]
    note: str | None = None
    key_impl: str | None = None
    sharding: Any = None
    share: Any = None
    chunk_byte_size: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return nbytes(self.shape, self.dtype)

    @property
    def share_bytes(self) -> int:
        """Size of all `pieces` in bytes."""
        if self.share is None:
            return self.nbytes
        return sum([math.prod(piece.shape) for piece in self.pieces]) * self.dtype.itemsize

    def with_pieces(self, pieces: Sequence[Piece], write_shape: tuple[int, ...]) -> "ArrayContent":
        """Returns the same content with other pieces. Called for thousands of leaves: `_replace` takes three times as long.

        Args:
          pieces: the pieces.
          write_shape: their shape.
        """
        return tuple.__new__(ArrayContent, (*self[:3], write_shape, pieces, *self[5:]))


@dataclass(frozen=True, slots=True)
class StringContent:
    """A str to store."""

    text: str


@dataclass(frozen=True, slots=True)
class EmptyContent:
    """An empty container or None to store."""

    typestr: EmptyType


class Entry(NamedTuple):
    """One leaf of the tree that is written.

    Attributes:
      path: keys from the root to the leaf. Each key says whether it is an index into a sequence.
      content: the value to store.
    """

    path: Path
    content: ArrayContent | StringContent | EmptyContent

    @property
    def name(self) -> str:
        """The path joined by ``/``, for messages."""
        return leaf_name(self.path)

    @property
    def param_name(self) -> str:
        """Orbax's name of the leaf: the path joined by dots. The leaf's keys in the key-value store begin with it."""
        return dotted_name(self.path)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Immutable snapshot of what one save writes. Orbax sees it as one opaque leaf; only our handler looks inside.

    Attributes:
      entries: the leaves of the tree.
      record: facts about the save that are not in the tree, such as its number: names and JSON values. They are stored in the metadata
        of the checkpoint (see `jaxckpt.storage.item.description`), so the program's targets need not have them.
      metrics: the program's metrics of this save, numbers by name; None if there are none. They are a file of their own (see
        `jaxckpt.storage.item.metrics`).
      groups: the array entries again, in groups with the pieces that belong to them. No two groups share a data file. None if the
        engine may share files as it likes.
      states: in a job of several processes, the states of this process's objects, such as data iterators, each with its path.
      custom_metadata: what the program stores beside the tree, as JSON values; None for nothing.
      transfer: counts the bytes that this process writes.
      kept: in a job of several processes, where later saves of the same structure find what depends on the structure alone, by what it is;
        None if nothing is kept.
      pack: in a job of several processes, the bytes of very small pieces of this process, one after the other (see `InPack`).
      rest: the positions of the entries whose data is not in the pack; None if there is no pack. The other entries depend on the structure
        alone, as `kept` does.
      account: returns what the checkpoint is to remember of its save. Called once everything is written, right before the commit; None
        for nothing.
    """

    entries: tuple[Entry, ...]
    record: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] | None = None
    groups: tuple[tuple[Entry, ...], ...] | None = None
    custom_metadata: Mapping[str, Any] | None = None
    states: tuple[tuple[Path, str | bytes], ...] = ()
    transfer: Transfer = field(default_factory=Transfer, compare=False)
    kept: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    pack: np.ndarray | None = field(default=None, compare=False, repr=False)
    rest: Sequence[int] | None = field(default=None, compare=False, repr=False)
    account: Callable[[], Account] | None = field(default=None, compare=False)

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return self._total("nbytes", lambda content: nbytes(content.shape, content.dtype))

    @property
    def share_bytes(self) -> int:
        """Size of the pieces of arrays that this process has, in bytes. It must not have been completed with those of others yet."""
        return self._total("share_bytes", lambda content: content.share_bytes)

    def _total(self, what: str, size: Callable[[ArrayContent], int]) -> int:
        """Returns the sum of a size of all arrays. That of the arrays in the pack is kept."""
        if self.kept is None or self.rest is None:
            return sum([size(content) for _, content in self.entries if isinstance(content, ArrayContent)])
        rest = sum([size(content) for content in map(self._content, self.rest) if isinstance(content, ArrayContent)])
        packed: int | None = self.kept.get(what)
        if packed is None:
            everything = sum([size(content) for _, content in self.entries if isinstance(content, ArrayContent)])
            packed = self.kept[what] = everything - rest
        return packed + rest

    def _content(self, position: int) -> ArrayContent | StringContent | EmptyContent:
        return self.entries[position].content


@functools.lru_cache(maxsize=4096)
def nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Returns the size of an array in bytes. It is asked several times for each of thousands of leaves, which have few shapes.

    Args:
      shape: shape of the array.
      dtype: its dtype.
    """
    return math.prod(shape) * dtype.itemsize


def padded(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the data of a whole chunk, contiguous.

    Args:
      data: the elements of the chunk. At the edge of an array these are fewer than the chunk holds; the rest is filled with zeros.
      shape: shape of the chunk.
    """
    if data.shape != shape:
        filled = np.zeros(shape, data.dtype)
        filled[tuple(slice(0, extent) for extent in data.shape)] = data
        return filled
    return np.ascontiguousarray(data)
