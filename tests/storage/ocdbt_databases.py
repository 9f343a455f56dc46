"""What the tests of OCDBT databases share: databases written by TensorStore and by us, and their contents as each of the two reads them."""

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from jaxckpt._lib.deadline import Deadline
from jaxckpt.storage.arrays.database import Chunk, Database
from jaxckpt.storage.ocdbt.index import Index
from jaxckpt.storage.ocdbt.model import Entry, Place
from jaxckpt.storage.stores.inside import Inside

# Databases that are copied have to share it.
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 0}})


def store(directory: Path, **spec: Any) -> Any:
    """The database in `directory`, opened (or made) by TensorStore."""
    base = {"driver": "file", "path": f"{directory}/"}
    return ts.KvStore.open({"driver": "ocdbt", "base": base, **spec}, context=_CONTEXT).result()


def by_tensorstore(directory: Path) -> dict[str, bytes]:
    """Everything in a database, as TensorStore reads it."""
    opened = store(directory)
    return {key.decode(): opened.read(key).result().value for key in opened.list().result()}


def by_us(directory: Path) -> dict[str, bytes]:
    """Everything in a database, as our reader reads it."""
    return {
        entry.key.decode(): read_place(directory, entry.value) if isinstance(entry.value, Place) else entry.value
        for entry in open_index(directory).entries()
    }


def open_index(directory: Path, seconds: float = 60) -> Index:
    """The index of a database."""
    return Index(Inside(str(directory)), Deadline(seconds, "the test").left)


def read_place(directory: Path, place: Place) -> bytes:
    """The bytes at a place of a database."""
    return Inside(str(directory)).read_range(*place)


def chunk(key: str, content: bytes, *, is_remote: bool = False) -> Chunk:
    """A value to write, which its checksum will follow."""
    return Chunk(key, len(content), is_remote, lambda: np.frombuffer(content, np.uint8))


def write(directory: Path, values: Mapping[str, bytes | Chunk], **settings: Any) -> None:
    """Writes a database with our writer."""
    arguments: dict[str, Any] = {
        "target_file_bytes": 1 << 20,
        "max_file_bytes": None,
        "memory_bytes": 1 << 20,
        "deadline": Deadline(60, "the test"),
        **settings,
    }
    database = Database(str(directory), **arguments)
    database.write([Entry(key.encode(), value)] if isinstance(value, bytes) else value for key, value in values.items())


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Checks that no thread and no open file of a database outlives the block."""

    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith(("Writ", "Sync", "Read"))}

    def files() -> Counter[str]:
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{number}"))
            except FileNotFoundError:
                continue
        return Counter(name for name in found if "/d/" in name or name.endswith("manifest.ocdbt"))

    before = files()
    try:
        yield
    finally:
        assert not threads()
        # TensorStore closes its own when it likes to.
        assert not files() - before
