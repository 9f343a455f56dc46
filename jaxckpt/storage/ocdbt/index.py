"""The index of an OCDBT database (its B-tree), read at once: key → value, or its place in a data file.

Every node is checked against its checksum. A damaged node hides the keys below it and no others, so that a reader can say which.

The tree may be a stranger's: no node is read twice, all of them together are no larger than their files, and neither are the values.
"""

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.ocdbt import decode
from jaxckpt.storage.ocdbt.decode import Memory
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST, Entry, Node, Place, UnknownFormatError

# No node is larger: one that claims to be is damaged.
_NODE_BYTES = 1 << 30


class Files(Protocol):
    """The files of a database. Names are relative to its directory.

    Every method raises DamagedError for a name that leads out of the directory, and OSError where the file cannot be read.
    """

    def path(self, name: str) -> str:
        """Returns the path of a file, for messages."""

    def read(self, name: str, limit: int) -> bytes:
        """Returns the content of a file, which has at most `limit` bytes."""

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Returns `length` bytes of a file from `offset` on. Raises DamagedError where it has fewer."""

    def size(self, name: str) -> int | None:
        """Returns the size of a file in bytes; None where it is not known without reading all of it."""


class _Gap(NamedTuple):
    """Keys from `low` on, and below `high` (None: all), are behind a node that cannot be read."""

    low: bytes
    high: bytes | None
    error: Exception


class Index:
    """Keys and values of a database.

    Attributes:
      value_bytes: of all values together; no array can have more that is not compressed.
    """

    def __init__(self, files: Files, check_time: Callable[[], object]) -> None:
        """Reads the index.

        Args:
          files: of the database.
          check_time: called before each node is read; raises where no time is left.

        Raises:
          UnknownFormatError: the database is of a form that only TensorStore reads.
          DamagedError: the manifest is damaged, a file is not a regular one, or values lie on top of each other.
          OSError: something cannot be read (but a missing file of nodes is a gap).
          Exception: whatever `check_time` raises.
        """
        self._files = files
        self._check_time = check_time
        self._values: dict[bytes, bytes | Place] = {}
        self._gaps: list[_Gap] = []
        self._memory = Memory()
        self._nodes: set[Place] = set()
        # Bytes of nodes that may still be read: those of the files that hold them.
        self._node_bytes = 0
        self._node_files: set[str] = set()
        self._used: defaultdict[str, int] = defaultdict(int)
        self._sorted: list[bytes] | None = None
        self._inline_bytes = 0
        root = decode.decode_manifest(self._files.read(OCDBT_MANIFEST, bounds.MANIFEST_BYTES))
        if root.node is not None:
            self._read(root.node, root.height, b"", b"", None)
        self._check_values()
        self.value_bytes = self._inline_bytes + sum(self._used.values())

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> bytes | Place | None:
        """Returns the value, where it is, or None if there is no such key.

        Raises:
          DamagedError, OSError: the node that would hold it cannot be read.
        """
        encoded = key.encode("utf-8", "surrogatepass")
        found = self._values.get(encoded)
        if found is None and self._gaps:
            position = bisect.bisect_right(self._gaps, encoded, key=lambda gap: gap.low) - 1
            gap = self._gaps[max(0, position)]
            if gap.low <= encoded and (gap.high is None or encoded < gap.high):
                raise gap.error.with_traceback(None)
        return found

    def entries(self) -> Iterator[Entry]:
        """Yields everything. Raises what `get` raises if anything cannot be read."""
        if self._gaps:
            raise self._gaps[0].error.with_traceback(None)
        yield from map(Entry._make, self._values.items())

    def lengths(self, prefix: str) -> list[int]:
        """Returns how many bytes each of the values has whose keys begin with `prefix`."""
        if self._sorted is None:
            self._sorted = sorted(self._values)
        low = prefix.encode("utf-8", "surrogatepass")
        found = []
        for position in range(bisect.bisect_left(self._sorted, low), len(self._sorted)):
            key = self._sorted[position]
            if not key.startswith(low):
                break
            value = self._values[key]
            found.append(value.length if isinstance(value, Place) else len(value))
        return found

    def _read(self, node: Node, height: int, prefix: bytes, low: bytes, high: bytes | None) -> None:
        """Reads a node and what is below it, which are keys of that prefix, in that range."""
        self._check_time()
        try:
            content = self._node(node.place)
            items = decode.decode_node(content, height, node.base, self._memory)
            if height:
                children = [item for item in items if isinstance(item, Node)]
                # The first child may be named by a key before its range, which has been cut since.
                self._memory.take(len(prefix) * len(children))
                starts = [low, *(prefix + child.first for child in children[1:])]
                if starts[-1] < low or starts[:2] != sorted(starts[:2]) or (high is not None and starts[-1] >= high):
                    raise DamagedError("a B-tree node holds keys that belong elsewhere")
            else:
                self._take(items, prefix, low, high)  # type: ignore[arg-type]
        except UnknownFormatError:
            raise
        except (DamagedError, FileNotFoundError) as error:
            # Its traceback would keep what the node was decoded to.
            self._gaps.append(_Gap(low, high, error.with_traceback(None)))
            return
        if not height:
            return
        for child, start, end in zip(children, starts, [*starts[1:], high], strict=True):
            self._read(child, height - 1, prefix + child.first[: child.common], start, end)

    def _node(self, place: Place) -> bytes:
        """Returns the bytes of a node, which no other node refers to."""
        if place.file not in self._node_files:
            self._node_files.add(place.file)
            size = self._files.size(place.file)
            # Of an object in a bucket the size is not known. A node costs a request there.
            self._node_bytes += _NODE_BYTES if size is None else size
        self._node_bytes -= place.length
        if place in self._nodes or self._node_bytes < 0:
            raise DamagedError("a B-tree node is referred to more than once")
        self._nodes.add(place)
        if place.length > _NODE_BYTES:
            raise DamagedError(f"a B-tree node claims {place.length} bytes")
        return self._files.read_range(place.file, place.offset, place.length)

    def _take(self, entries: list[Entry], prefix: bytes, low: bytes, high: bytes | None) -> None:
        if prefix + entries[0].key < low or (high is not None and prefix + entries[-1].key >= high):
            raise DamagedError("a B-tree node holds keys that belong elsewhere")
        self._memory.take(len(prefix) * len(entries))
        used, inline = self._used, 0
        for _, value in entries:
            if type(value) is bytes:
                inline += len(value)
            else:
                used[value.file] += value.length  # type: ignore[union-attr]
        self._inline_bytes += inline
        self._values.update((prefix + key, value) for key, value in entries)

    def _check_values(self) -> None:
        """Makes sure that values are in regular files, and that no two of them share bytes: what is read is not more than what is there."""
        for file, used in self._used.items():
            try:
                size = self._files.size(file)
            except FileNotFoundError:
                # The leaves whose data is missing will say so.
                continue
            except OSError as error:
                raise DamagedError(f"{self._files.path(file)}: {error.strerror}") from error
            if size is None or used > size:
                self._check_overlaps(file, used, size)

    def _check_overlaps(self, file: str, used: int, size: int | None) -> None:
        places = sorted(
            (value.offset, value.length)
            for value in self._values.values()
            if isinstance(value, Place) and value.file == file
        )
        end = 0
        for offset, length in places:
            if offset < end and length:
                raise DamagedError(f"two values share bytes of {file}")
            end = max(end, offset + length)
        if size is None and end:
            # In a bucket: what has its last byte is as large as it claims to be.
            self._files.read_range(file, end - 1, 1)
