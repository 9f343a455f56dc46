"""Where the values of a checkpoint directory are: in an OCDBT database, or each in a file of its own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.ocdbt.index import Index
from jaxckpt.storage.ocdbt.model import Place
from jaxckpt.storage.stores.inside import Inside, Stored


class Most(NamedTuple):
    """What an array can have at most: chunks, and bytes of all of them."""

    chunks: int
    bytes: int


class Places(Protocol):
    """The values of a directory. Every method raises DamagedError or OSError where it cannot be known."""

    def get(self, key: str) -> bytes | Place | None:
        """Returns a value, or where it is; None if there is none."""

    def contents(self, keys: Sequence[str], limit: int) -> Iterator[bytes | None]:
        """Yields values that have at most `limit` bytes each; None for one that is missing."""

    def stored(self, folder: str) -> Stored:
        """Returns what there is of the array whose keys begin with `folder`."""

    def most(self, folder: str) -> Most:
        """Returns what the array whose keys begin with `folder` can have at most. Costs less than `stored`, where that is possible."""


class InDatabase:
    """The values of an OCDBT database."""

    def __init__(self, inside: Inside, index: Index) -> None:
        """Args: the directory of the database; its index."""
        self._inside = inside
        self._index = index
        self._most = Most(len(index), index.value_bytes)
        # Asked for every leaf: not through a method of this class.
        self.get = index.get

    def contents(self, keys: Sequence[str], limit: int) -> Iterator[bytes | None]:
        """See `Places`."""
        get = self._index.get
        for key in keys:
            found = get(key)
            if isinstance(found, Place):
                if found.length > limit:
                    raise DamagedError(f"its {key.rpartition('/')[2]} has {found.length} bytes")
                found = self._inside.read_range(*found)
            yield found

    def stored(self, folder: str) -> Stored:
        """See `Places`."""
        lengths = self._index.lengths(folder)
        return Stored(len(lengths), sum(lengths), max(lengths, default=0))

    def most(self, folder: str) -> Most:
        """See `Places`."""
        return self._most


class InFiles:
    """The values of a local directory where each is a file."""

    def __init__(self, inside: Inside, known: Mapping[str, bytes]) -> None:
        """Args: the directory; content of files that have been read, and checked, already."""
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

    def contents(self, keys: Sequence[str], limit: int) -> Iterator[bytes | None]:
        """See `Places`."""
        for key in keys:
            try:
                yield self._known.get(key) or self._inside.read(key, limit)
            except FileNotFoundError:
                yield None

    def stored(self, folder: str) -> Stored:
        """See `Places`."""
        return self._inside.stored(folder)

    def most(self, folder: str) -> Most:
        """See `Places`."""
        stored = self._inside.stored(folder)
        return Most(stored.files, stored.bytes)
