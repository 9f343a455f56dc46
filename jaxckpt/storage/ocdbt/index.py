"""Reads the whole index of an OCDBT database (its B-tree): key → value, or its place in a data file.

Every node is checked against its checksum. A damaged node hides only the keys below it, so a reader can say which ones.

The tree may come from a stranger. So no node is read twice, and a database is refused if its nodes, or its values, together are larger
than their files.
"""

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.ocdbt import decode
from jaxckpt.storage.ocdbt.decode import Memory
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST, Entry, Node, Place, UnknownFormatError

# A node that claims to have more bytes is damaged.
_NODE_BYTES = 1 << 30


class Files(Protocol):
    """The files of a database. Names are relative to its directory.

    Every method raises DamagedError for a name that leads out of the directory, and OSError if the file cannot be read.
    """

    def path(self, name: str) -> str:
        """Returns the path of a file, for messages."""

    def read(self, name: str, limit: int) -> bytes:
        """Returns the content of a file. Raises OSError if it has more than `limit` bytes."""

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Returns `length` bytes of a file from `offset` on. Raises DamagedError if the file ends before."""

    def size(self, name: str) -> int | None:
        """Returns the size of a file in bytes; None if the whole file would have to be read for it."""


class _Gap(NamedTuple):
    """A range of keys below a node that cannot be read.

    Attributes:
      low: first key of the range.
      high: first key after the range; None if there is no end.
      error: the error of the read.
    """

    low: bytes
    high: bytes | None
    error: Exception


class Index:
    """Keys and values of a database.

    Attributes:
      value_bytes: size of all values together in bytes. An uncompressed array cannot be larger.
    """

    def __init__(self, files: Files, check_time: Callable[[], object]) -> None:
        """Reads the index. A damaged node, or a missing file of nodes, does not raise here: `get` raises for its keys.

        Args:
          files: the files of the database.
          check_time: called before each node is read; raises if the time is up.

        Raises:
          UnknownFormatError: the database has a format that only TensorStore reads.
          DamagedError: the manifest is damaged, a file is not a regular file, or values overlap.
          OSError: a file cannot be read.
          Exception: the exception that `check_time` raised.
        """
        self._files = files
        self._check_time = check_time
        self._values: dict[bytes, bytes | Place] = {}
        self._gaps: list[_Gap] = []
        self._memory = Memory()
        self._nodes: set[Place] = set()
        # So many more bytes of nodes may be read. At first these are the sizes of the files that hold nodes.
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
        """Returns the value of a key, or where it is; None if the database does not have the key.

        Args:
          key: the key.

        Raises:
          DamagedError: the node that would hold the key is damaged.
          OSError: the file of that node is missing.
        """
        # With an error handler it takes twice as long, and there are thousands of leaves.
        encoded = key.encode() if key.isascii() else key.encode("utf-8", "surrogatepass")
        found = self._values.get(encoded)
        if found is None and self._gaps:
            position = bisect.bisect_right(self._gaps, encoded, key=lambda gap: gap.low) - 1
            gap = self._gaps[max(0, position)]
            if gap.low <= encoded and (gap.high is None or encoded < gap.high):
                raise gap.error.with_traceback(None)
        return found

    def many(self, keys: Sequence[str]) -> Sequence[bytes | Place | None] | None:
        """Returns what `get` returns for each of thousands of keys; None if `get` might raise for one of them.

        Args:
          keys: the keys.
        """
        text = "\n".join(keys)
        if self._gaps or text.count("\n") != len(keys) - 1:
            return None
        # All keys are encoded in one step.
        return list(map(self._values.get, text.encode("utf-8", "surrogatepass").split(b"\n")))

    def entries(self) -> Iterator[Entry]:
        """Yields all entries. Raises DamagedError or OSError if any node cannot be read."""
        if self._gaps:
            raise self._gaps[0].error.with_traceback(None)
        yield from map(Entry._make, self._values.items())

    def lengths(self, prefix: str) -> list[int]:
        """Returns the size in bytes of each value whose key begins with `prefix`."""
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
        """Reads a node and all nodes below it.

        Args:
          node: reference to the node.
          height: number of levels of nodes below it.
          prefix: prefix of all its keys, which the node leaves out.
          low: its keys must not be smaller.
          high: its keys must be smaller; None for any.
        """
        self._check_time()
        try:
            content = self._node(node.place)
            items = decode.decode_node(content, height, node.base, self._memory)
            if isinstance(items, decode.Values):
                self._take(items, prefix, low, high)
            else:
                children = items
                # The first child may be named by a key below the range, if the range was narrowed later. So its keys begin at `low`.
                self._memory.take(len(prefix) * len(children))
                starts = [low, *(prefix + child.first for child in children[1:])]
                if starts[-1] < low or starts[:2] != sorted(starts[:2]) or (high is not None and starts[-1] >= high):
                    raise DamagedError("a B-tree node holds keys that belong elsewhere")
        except UnknownFormatError:
            raise
        except DamagedError as error:
            # The text names the file of the node, because the leaf that is asked for first need not be the damaged one. The error itself is
            # dropped: its traceback would keep the decoded node in memory.
            text = f"a part of its index, in {node.place.file}, is damaged: {error}"
            self._gaps.append(_Gap(low, high, DamagedError(text)))
            return
        except FileNotFoundError as error:
            self._gaps.append(_Gap(low, high, error.with_traceback(None)))
            return
        if not height:
            return
        for child, start, end in zip(children, starts, [*starts[1:], high], strict=True):
            self._read(child, height - 1, prefix + child.first[: child.common], start, end)

    def _node(self, place: Place) -> bytes:
        """Returns the bytes of a node. Raises DamagedError if the node has been read before."""
        if place.file not in self._node_files:
            self._node_files.add(place.file)
            size = self._files.size(place.file)
            # In a bucket the size is not known. There each node takes a request, which limits their number.
            self._node_bytes += _NODE_BYTES if size is None else size
        self._node_bytes -= place.length
        if place in self._nodes or self._node_bytes < 0:
            raise DamagedError("a B-tree node is referred to more than once")
        self._nodes.add(place)
        if place.length > _NODE_BYTES:
            raise DamagedError(f"a B-tree node claims {place.length} bytes")
        return self._files.read_range(place.file, place.offset, place.length)

    def _take(self, found: decode.Values, prefix: bytes, low: bytes, high: bytes | None) -> None:
        keys, values = found
        if prefix + keys[0] < low or (high is not None and prefix + keys[-1] >= high):
            raise DamagedError("a B-tree node holds keys that belong elsewhere")
        self._memory.take(len(prefix) * len(keys))
        places = [value for value in values if type(value) is Place]
        for place in places:
            self._used[place.file] += place.length
        inline = [value for value in values if type(value) is bytes] if places else values
        self._inline_bytes += sum(map(len, inline))
        self._values.update(zip([prefix + key for key in keys] if prefix else keys, values, strict=True))

    def _check_values(self) -> None:
        """Makes sure that values are in regular files and do not overlap. So all values together are not larger than the files."""
        for file, used in self._used.items():
            try:
                size = self._files.size(file)
            except FileNotFoundError:
                # A read of one of these values will raise the error.
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
            # In a bucket, a read of the last byte shows that the object is as large as the values claim.
            self._files.read_range(file, end - 1, 1)
