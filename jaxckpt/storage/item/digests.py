"""The file ``_JAXCKPT``: size and crc32c of every metadata file, and of itself.

Array bytes carry a checksum per chunk, OCDBT checks its own nodes; this covers the rest, so that every byte of a checkpoint is covered by
something. Of a data file the size is noted, and what tells it from another one, whose own checksums are all right: that it begins with
its name, or, where TensorStore wrote it, a sample of its content.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxckpt._lib import bounds
from jaxckpt._lib.checksum import crc32c
from jaxckpt._lib.documents import DamagedError, as_dict, as_int, as_list, as_text, damage, parse_strictly
from jaxckpt._lib.inner_path import checked_name
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import faults, stores
from jaxckpt.storage.item import description
from jaxckpt.storage.ocdbt.data_file import NAME_BYTES
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST
from jaxckpt.storage.stores.inside import Inside

FILE = "_JAXCKPT"
_NAMED = "named"
_ENDS, _END = "ends ", 4096
# What a sample is of: so many parts of 64 bytes, and the end. The second one is what the first checkpoints have.
_SAMPLES = {"sample64 ": 64, "sample ": 256}
_PART = 64
_OCDBT_DATA = re.compile(r"(ocdbt\.process_[^/]*/)?d/")
_IDENTITY = re.compile(r"[0-9a-f]{8}|named|(?:sample64|sample|ends) [0-9a-f]{16}")
# Orbax rewrites this one, with the time of the commit, after the handler has finished.
_LATE = {description.FILE, description.MARKER}


class Noted(NamedTuple):
    """What is noted of a file.

    Attributes:
      size: in bytes; None where it was not known (of a data file in a bucket).
      identity: the checksum of a metadata file, or what tells a data file from others.
    """

    size: int | None
    identity: str

    @property
    def is_of_data(self) -> bool:
        """Whether this is of a data file: not a checksum of all of it."""
        return self.identity.startswith((_NAMED, *_SAMPLES, _ENDS))


Digests = Mapping[str, Noted]


def write(directory: str, *, late: bool = False, ignored: Collection[str] = ()) -> None:
    """Writes the digests of the files of `directory`.

    Args:
      directory: of the checkpoint, not committed yet.
      late: include the files that Orbax writes last.
      ignored: names of files that are none of the checkpoint.
    """
    noted: dict[str, Any] = {}
    names = stores.tree(directory)
    ocdbt = OCDBT_MANIFEST in names
    for name in names:
        if name in (FILE, *ignored) or (name in _LATE and not late):
            continue
        path = os.path.join(directory, name)
        if is_data(name, ocdbt):
            noted[name] = _identity(path, ocdbt)
        else:
            content = stores.read(path)
            noted[name] = [len(content), checksum(content)]
    body = json.dumps({"format": 1, "files": noted}, sort_keys=True)
    stores.write(os.path.join(directory, FILE), f"{body}\n{checksum(body.encode())}\n".encode())


def read(inside: Inside) -> dict[str, Noted]:
    """Returns what is noted of every file, by its path in the checkpoint.

    Raises:
      CorruptCheckpointError: the file is missing or damaged.
    """
    path = os.path.join(inside.directory, FILE)
    with damage(path):
        try:
            content = inside.read(FILE, bounds.METADATA_FILE_BYTES)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise CorruptCheckpointError.at(
                path, "this file of the checkpoint is missing. Restore another checkpoint."
            ) from error
        except OSError as error:
            fault = faults.reading(error, path, inside.directory)
            raise fault from (None if fault is error else error)
        body, _, end = content.partition(b"\n")
        if end != checksum(body).encode() + b"\n":
            raise DamagedError("its checksum does not match")
        document = as_dict(parse_strictly(body), "it")
        if document.get("format") != 1:
            raise DamagedError("its format is unknown")
        return {
            checked_name(name): _noted(as_list(value, "an entry"))
            for name, value in as_dict(document.get("files"), "files").items()
        }


def _noted(value: list[Any]) -> Noted:
    size, identity = value
    noted = Noted(None if size is None else as_int(size, "a size"), as_text(identity, "a digest"))
    if _IDENTITY.fullmatch(identity) is None:
        raise DamagedError(f"the digest {identity[:40]!r} is of an unknown kind")
    if size is None and not identity.startswith(_ENDS):
        raise DamagedError("it lacks a size")
    return noted


def check(directory: str, name: str, content: bytes, noted: Digests) -> None:
    """Raises CorruptCheckpointError unless `content` is what was written as the metadata file `name`."""
    expected = noted.get(name)
    if expected is not None and expected.size == len(content) and expected.identity == checksum(content):
        return
    path = os.path.join(directory, name)
    what = "it does not belong to this checkpoint" if expected is None else "its checksum does not match"
    raise CorruptCheckpointError.at(path, f"this file is damaged: {what}. Restore another checkpoint.")


def check_sizes(inside: Inside, noted: Digests) -> list[tuple[str, str]]:
    """Returns what is wrong with which files: missing ones, and ones of another size (which is not known in a bucket)."""
    problems = []
    present = set(stores.tree(inside.directory))
    for name, expected in noted.items():
        if name not in present:
            problems.append((name, "this file is missing"))
            continue
        try:
            size = inside.size(name)
        except (DamagedError, OSError) as error:
            problems.append((name, f"this is not a file of the checkpoint ({error})"))
            continue
        if size is not None and expected.size is not None and size != expected.size:
            problems.append((name, f"this file has {size} bytes instead of {expected.size}"))
    return problems


def check_data(inside: Inside, name: str, noted: Digests) -> None:
    """Raises CorruptCheckpointError unless a data file is the one that was written."""
    path = os.path.join(inside.directory, name)
    size, identity = noted[name]
    with damage(path):
        try:
            found = inside.size(name)
            same = (None in (size, found) or found == size) and _is_noted(path, size, identity)
            what = "it is not the one that was written"
        except FileNotFoundError:
            same, what = False, "it is missing"
        except OSError as error:
            fault = faults.reading(error, path, inside.directory)
            raise fault from (None if fault is error else error)
        if not same:
            raise DamagedError(what)


def _identity(path: str, ocdbt: bool) -> list[Any]:
    """Returns what is noted of a data file: its size, and what tells it from others."""
    size = stores.size(path)
    if size is None:
        return [size, _ends(path)]
    if ocdbt and _is_named(path):
        return [size, _NAMED]
    return [size, _sample(path, size, next(iter(_SAMPLES)))]


def _is_noted(path: str, size: int | None, noted: str) -> bool:
    """Whether a data file of that size is the one of which `noted` was noted."""
    if noted == _NAMED:
        return _is_named(path)
    if noted.startswith(_ENDS):
        return _ends(path) == noted
    # Where the size was not known, only the ends were noted.
    assert size is not None
    return _sample(path, size, f"{noted.partition(' ')[0]} ") == noted


def _is_named(path: str) -> bool:
    """Whether a file begins with its own name, as the data files of our own writer do. Raises OSError."""
    (begin,) = stores.ranges(path, [(0, NAME_BYTES)])
    return begin.hex() == os.path.basename(path)


def _sample(path: str, size: int, kind: str) -> str:
    """Returns a digest of the end of a file (where a chunk's own checksum is) and of small parts all over it."""
    step = max(_PART, size // _SAMPLES[kind])
    parts = [(position, _PART) for position in range(0, size, step)]
    return kind + _digest(path, [*parts, (max(0, size - _END), _END)])


def _ends(path: str) -> str:
    """Returns a digest of the beginning and the end of a file whose size is not known: every part of an object is a request."""
    return _ENDS + _digest(path, [(0, _END), (-_END, _END)])


def _digest(path: str, parts: list[tuple[int, int]]) -> str:
    # Not crc32c: a chunk that ends in its own crc32c has the same one as every other.
    return hashlib.blake2b(b"".join(stores.ranges(path, parts)), digest_size=8).hexdigest()


def is_data(name: str, ocdbt: bool) -> bool:
    """Whether a file holds data that carries checksums of its own: OCDBT's values and nodes, or a chunk."""
    if ocdbt:
        return _OCDBT_DATA.match(name) is not None
    return "/c/" in f"/{name}/" and not name.endswith("/zarr.json")


def checksum(content: bytes) -> str:
    """Returns the crc32c of `content` in hexadecimal."""
    return f"{crc32c(content):08x}"
