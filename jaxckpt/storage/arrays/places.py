"""Finds the values of a checkpoint directory: in an OCDBT database, or each in a file of its own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.ocdbt.index import Index
from jaxckpt.storage.ocdbt.model import Place
from jaxckpt.storage.stores.inside import Inside, Stored


class Most(NamedTuple):
    """An upper bound for an array: the number of its chunks, and the bytes of all of them."""

    chunks: int
    bytes: int


class Places(Protocol):
    """The values of a directory. Every method raises DamagedError or OSError if it cannot find out."""

    def get(self, key: str) -> bytes | Place | None:
        """Returns a value, or where it is; None if there is no such key."""

    def many(self, keys: Sequence[str]) -> Sequence[bytes | Place | None] | None:
        """Returns what `get` returns for each of thousands of keys; None if `get` must be asked for each."""

    def contents(self, keys: Sequence[str], limit: int) -> Iterator[bytes | None]:
        """Yields values; None for each one that is missing.

        Args:
          keys: keys of the values.
          limit: the largest size of a value in bytes. A larger one counts as damaged.
        """

    def part(self, value: bytes | Place, offset: int, length: int) -> bytes:
        """Returns a part of a value that `get` has found.

        Args:
          value: the value, or where it is.
          offset: first byte of the part.
          length: number of bytes. The value is not shorter than the part.
        """

    def stored(self, folder: str) -> Stored:
        """Returns number and sizes of the stored values whose keys begin with `folder`, which is the path of an array."""

    def most(self, folder: str) -> Most:
        """Returns an upper bound for the array whose keys begin with `folder`. In a database it is cheaper than `stored`."""


class InDatabase:
    """The values of an OCDBT database."""

    def __init__(self, inside: Inside, index: Index) -> None:
        """Keeps the index.

        Args:
          inside: the files of the database.
          index: index of the database.
        """
        self._inside = inside
        self._index = index
        self._most = Most(len(index), index.value_bytes)
        # `get` is called for every leaf, so it is not wrapped in a method.
        self.get = index.get
        self.many = index.many

    def contents(self, keys: Sequence[str], limit: int) -> Iterator[bytes | None]:
        """See `Places`."""
        for key, found in zip(keys, self.many(keys) or map(self.get, keys), strict=True):
            if isinstance(found, Place):
                if found.length > limit:
                    raise DamagedError(f"its {key.rpartition('/')[2]} has {found.length} bytes")
                found = self._inside.read_range(*found)
            yield found

    def part(self, value: bytes | Place, offset: int, length: int) -> bytes:
        """See `Places`."""
        return _part(self._inside, value, offset, length)

    def stored(self, folder: str) -> Stored:
        """See `Places`."""
        lengths = self._index.lengths(folder)
        return Stored(len(lengths), sum(lengths), max(lengths, default=0))

    def most(self, folder: str) -> Most:
        """See `Places`."""
        return self._most


class InFiles:
    """The values of a local directory in which each value is a file."""

    def __init__(self, inside: Inside, known: Mapping[str, bytes]) -> None:
        """Does not touch the files yet.

        Args:
          inside: the files of the directory.
          known: content of the files that have already been read and checked.
        """
        self._inside = inside
        self._known = known

    def get(self, key: str) -> Place | None:
        """See `Places`."""
        try:
            size = self._inside.size(key)
        except FileNotFoundError:
            return None
        assert size is not None
        return Place(key, 0, size)

    def many(self, keys: Sequence[str]) -> None:
        """See `Places`."""

    def contents(self, keys: Sequence[str], limit: int) -> Iterator[bytes | None]:
        """See `Places`."""
        for key in keys:
            try:
                yield self._known.get(key) or self._inside.read(key, limit)
            except FileNotFoundError:
                yield None

    def part(self, value: bytes | Place, offset: int, length: int) -> bytes:
        """See `Places`."""
        return _part(self._inside, value, offset, length)

    def stored(self, folder: str) -> Stored:
        """See `Places`."""
        return self._inside.stored(folder)

    def most(self, folder: str) -> Most:
        """See `Places`."""
        stored = self._inside.stored(folder)
        return Most(stored.files, stored.bytes)


def _part(inside: Inside, value: bytes | Place, offset: int, length: int) -> bytes:
    if isinstance(value, Place):
        return inside.read_range(value.file, value.offset + offset, length)
    return value[offset : offset + length]
