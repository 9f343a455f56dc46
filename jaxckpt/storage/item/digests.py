"""The digests of a checkpoint: the file ``_JAXCKPT`` holds size and crc32c of every metadata file, and a crc32c of itself.

Every chunk of an array has its own checksum, and so has every node of an OCDBT database. The digests cover all other bytes of a
checkpoint. For a data file they hold its size and an identity, which detects that the file was exchanged for another intact one: either
that the file begins with its own name, or, if TensorStore wrote it, a hash of a sample of its content.
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
from jaxckpt.storage.item import account, description
from jaxckpt.storage.item.account import Account
from jaxckpt.storage.ocdbt.data_file import NAME_BYTES
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST
from jaxckpt.storage.stores.inside import Inside

FILE = "_JAXCKPT"
# The key of the account.
_SAVE = "save"
_NAMED = "named"
_ENDS, _END = "ends ", 4096
# A sample consists of this many parts of 64 bytes, and of the end of the file. The oldest checkpoints have the second kind.
_SAMPLES = {"sample64 ": 64, "sample ": 256}
_PART = 64
_OCDBT_DATA = re.compile(r"(ocdbt\.process_[^/]*/)?d/")
_IDENTITY = re.compile(r"[0-9a-f]{8}|named|(?:sample64|sample|ends) [0-9a-f]{16}")
# Orbax writes these files, with the time of the commit, after the handler has finished.
_LATE = {description.FILE, description.MARKER}


class Noted(NamedTuple):
    """The digest of one file.

    Attributes:
      size: size in bytes; None if it was not known (for a data file in a bucket).
      identity: the checksum of a metadata file, or the identity of a data file.
    """

    size: int | None
    identity: str

    @property
    def is_of_data(self) -> bool:
        """Whether this is the digest of a data file, which is not a checksum of all its bytes."""
        return self.identity.startswith((_NAMED, *_SAMPLES, _ENDS))


Digests = Mapping[str, Noted]


def write(directory: str, *, late: bool = False, ignored: Collection[str] = (), save: Account | None = None) -> None:
    """Writes the digests of the files of a checkpoint.

    Args:
      directory: directory of the checkpoint, which is not committed yet.
      late: whether to include the files that Orbax writes last.
      ignored: names of files that do not belong to the checkpoint.
      save: what the checkpoint remembers of its save; None for nothing. Readers that do not know it ignore it.
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
    document: dict[str, Any] = {"format": 1, "files": noted}
    if save is not None:
        document[_SAVE] = save._asdict()
    body = json.dumps(document, sort_keys=True)
    stores.write(os.path.join(directory, FILE), f"{body}\n{checksum(body.encode())}\n".encode())


def read(inside: Inside) -> dict[str, Noted]:
    """Returns the digest of every file, by its path in the checkpoint. The arguments and errors are those of `read_with_account`."""
    return read_with_account(inside)[0]


def read_with_account(inside: Inside) -> tuple[dict[str, Noted], Account | None]:
    """Returns the digest of every file, by its path in the checkpoint, and what the checkpoint remembers of its save.

    Args:
      inside: the files of the checkpoint.

    Returns:
      The digests, and the account; None if the checkpoint has none.

    Raises:
      CorruptCheckpointError: ``_JAXCKPT`` is missing or damaged.
      OSError: it cannot be read.
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
        noted = {
            checked_name(name): _noted(as_list(value, "an entry"))
            for name, value in as_dict(document.get("files"), "files").items()
        }
        return noted, None if document.get(_SAVE) is None else account.parsed(document[_SAVE])


def _noted(value: list[Any]) -> Noted:
    size, identity = value
    noted = Noted(None if size is None else as_int(size, "a size"), as_text(identity, "a digest"))
    if _IDENTITY.fullmatch(identity) is None:
        raise DamagedError(f"the digest {identity[:40]!r} is of an unknown kind")
    if size is None and not identity.startswith(_ENDS):
        raise DamagedError("it lacks a size")
    return noted


def check(directory: str, name: str, content: bytes, noted: Digests) -> None:
    """Checks a metadata file against its digest.

    Args:
      directory: directory of the checkpoint.
      name: name of the file in it.
      content: content of the file.
      noted: the digests.

    Raises:
      CorruptCheckpointError: the content does not match the digest, or the file has none.
    """
    expected = noted.get(name)
    if expected is not None and expected.size == len(content) and expected.identity == checksum(content):
        return
    path = os.path.join(directory, name)
    what = "it does not belong to this checkpoint" if expected is None else "its checksum does not match"
    raise CorruptCheckpointError.at(path, f"this file is damaged: {what}. Restore another checkpoint.")


def check_sizes(inside: Inside, noted: Digests) -> list[tuple[str, str]]:
    """Compares the sizes of all files with the digests.

    Args:
      inside: the files of the checkpoint.
      noted: the digests.

    Returns:
      Name and problem of each file that is missing, is not a regular file, or has another size. In a bucket, sizes are not checked.
    """
    problems = []
    present = set(stores.tree(inside.directory))
    for name, expected in noted.items():
        if name not in present:
            problems.append((name, "this file is missing"))
            continue
        try:
            size = inside.size(name)
        except (DamagedError, OSError) as error:
            problems.append((name, f"this is not a regular file of the checkpoint ({error})"))
            continue
        if size is not None and expected.size is not None and size != expected.size:
            problems.append((name, f"this file is {size} bytes long, expected {expected.size}"))
    return problems


def check_data(inside: Inside, name: str, noted: Digests) -> None:
    """Checks that a data file is the one that was written, by its size and identity.

    Args:
      inside: the files of the checkpoint.
      name: name of the file.
      noted: the digests.

    Raises:
      CorruptCheckpointError: the file is missing, or is another one.
      OSError: the file cannot be read.
    """
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
    """Returns the digest of a data file: its size and its identity."""
    size = stores.size(path)
    if size is None:
        return [size, _ends(path)]
    if ocdbt and _is_named(path):
        return [size, _NAMED]
    return [size, _sample(path, size, next(iter(_SAMPLES)))]


def _is_noted(path: str, size: int | None, noted: str) -> bool:
    """Whether a data file of that size has the identity `noted`."""
    if noted == _NAMED:
        return _is_named(path)
    if noted.startswith(_ENDS):
        return _ends(path) == noted
    # `_noted` makes sure that the size is known here: without a size, only `_ENDS` is allowed.
    assert size is not None
    return _sample(path, size, f"{noted.partition(' ')[0]} ") == noted


def _is_named(path: str) -> bool:
    """Whether a file begins with its own name, as the data files of our own writer do. Raises OSError."""
    (begin,) = stores.ranges(path, [(0, NAME_BYTES)])
    return begin.hex() == os.path.basename(path)


def _sample(path: str, size: int, kind: str) -> str:
    """Returns a hash of the end of a file (where a chunk has its checksum) and of small parts spread over it."""
    step = max(_PART, size // _SAMPLES[kind])
    parts = [(position, _PART) for position in range(0, size, step)]
    return kind + _digest(path, [*parts, (max(0, size - _END), _END)])


def _ends(path: str) -> str:
    """Returns a hash of the beginning and the end of an object, whose size is not known. More parts would take more requests."""
    return _ENDS + _digest(path, [(0, _END), (-_END, _END)])


def _digest(path: str, parts: list[tuple[int, int]]) -> str:
    # crc32c would not do: over a chunk and its own crc32c it gives the same value for every chunk.
    return hashlib.blake2b(b"".join(stores.ranges(path, parts)), digest_size=8).hexdigest()


def is_data(name: str, ocdbt: bool) -> bool:
    """Whether a file is a data file: its content has checksums of its own.

    Args:
      name: path of the file in the checkpoint.
      ocdbt: whether the checkpoint has an OCDBT database. Then data files hold its values and nodes; otherwise each holds a chunk.
    """
    if ocdbt:
        return _OCDBT_DATA.match(name) is not None
    return "/c/" in f"/{name}/" and not name.endswith("/zarr.json")


def checksum(content: bytes) -> str:
    """Returns the crc32c of `content` in hexadecimal."""
    return f"{crc32c(content):08x}"
