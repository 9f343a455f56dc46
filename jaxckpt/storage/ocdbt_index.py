"""The index of an OCDBT database (its B-tree), read at once: key → value, or its place in a data file.

Every node is checked against its checksum. A damaged node hides the keys below it and no others, so that a reader can say which.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from jaxckpt.storage import ocdbt_format
from jaxckpt.storage.deadline import Deadline
from jaxckpt.storage.kvstore import OCDBT_MANIFEST
from jaxckpt.storage.ocdbt_format import DamagedError, Entry, Node, Place, UnknownFormatError

_NODE_BYTES = 1 << 30  # No node is larger: what says so is damaged.


class _Gap(NamedTuple):
    """Keys from `low` on, and below `high` (None: all), are behind a node that cannot be read."""

    low: bytes
    high: bytes | None
    error: Exception


class Index:
    """Keys and values of a database.

    Attributes:
      directory: of the database.
    """

    def __init__(self, directory: str, deadline: Deadline) -> None:
        """Reads the index.

        Raises:
          UnknownFormatError: the database is of a form that only TensorStore reads.
          DamagedError: the manifest is damaged.
          OSError: something cannot be read (but a missing file of nodes is a gap).
          TimeoutError: after the deadline.
        """
        self.directory = directory
        self._deadline = deadline
        self._values: dict[bytes, bytes | Place] = {}
        self._gaps: list[_Gap] = []
        with open(os.path.join(directory, OCDBT_MANIFEST), "rb") as file:
            root = ocdbt_format.decode_manifest(file.read())
        if root.node is not None:
            self._read(root.node, root.height, b"", b"", None)

    def get(self, key: str) -> bytes | Place | None:
        """Returns the value, where it is, or None if there is no such key.

        Raises:
          DamagedError, OSError: the node that would hold it cannot be read.
        """
        encoded = key.encode("utf-8", "surrogatepass")
        found = self._values.get(encoded)
        if found is None and self._gaps:
            for gap in self._gaps:
                if gap.low <= encoded and (gap.high is None or encoded < gap.high):
                    raise gap.error
        return found

    def entries(self) -> Iterator[Entry]:
        """Yields everything. Raises what `get` raises if anything cannot be read."""
        if self._gaps:
            raise self._gaps[0].error
        yield from map(Entry._make, self._values.items())

    def _read(self, node: Node, height: int, prefix: bytes, low: bytes, high: bytes | None) -> None:
        """Reads a node and what is below it, which are keys of that prefix, in that range."""
        self._deadline.left()
        try:
            content = read_place(self.directory, node.place)
            items = ocdbt_format.decode_node(content, height, node.base)
        except UnknownFormatError:
            raise
        except (DamagedError, FileNotFoundError) as error:
            self._gaps.append(_Gap(low, high, error))
            return
        if not height:
            self._values.update((prefix + key, value) for key, value in items)  # type: ignore[misc]
            return
        children = [item for item in items if isinstance(item, Node)]
        bounds = [prefix + child.first for child in children[1:]]
        for child, start, end in zip(children, [low, *bounds], [*bounds, high], strict=True):
            self._read(child, height - 1, prefix + child.first[: child.common], start, end)


def read_place(directory: str, place: Place) -> bytes:
    """Returns the bytes at a place.

    Raises:
      DamagedError: the file is shorter.
      OSError: it cannot be read.
    """
    path = os.path.join(directory, place.file)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if place.length > _NODE_BYTES or place.offset + place.length > os.fstat(descriptor).st_size:
            raise DamagedError(f"{path} is shorter than it was")
        content = os.pread(descriptor, place.length, place.offset)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)
    if len(content) != place.length:
        raise DamagedError(f"{path} is shorter than it was")
    return content
