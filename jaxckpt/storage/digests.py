"""The file ``_JAXCKPT``: size and crc32c of every metadata file, and of itself.

Array bytes carry a checksum per chunk, OCDBT checks its own nodes; this covers the rest, so that every byte of a checkpoint is covered by
something. Of a data file the size and a sample of its content are noted: the sample tells files apart that were exchanged, whose own
checksums are all right.
"""

import hashlib
import json
import os
import re
from typing import Any

from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage.kvstore import OCDBT_MANIFEST

FILE = "_JAXCKPT"
# Orbax rewrites this one, with the time of the commit, after the handler has finished.
_SAMPLE, _PART, _PARTS, _END = "sample ", 64, 256, 4096
_OCDBT_DATA = re.compile(r"(ocdbt\.process_[^/]*/)?d/")
_LATE = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def write(directory: str, *, late: bool = False) -> None:
    """Writes the digests of the files of `directory`.

    Args:
      directory: of the checkpoint, not committed yet.
      late: include the files that Orbax writes last.
    """
    files: dict[str, Any] = {}
    ocdbt = os.path.exists(os.path.join(directory, OCDBT_MANIFEST))
    for name in _files(directory):
        if name == FILE or (name in _LATE and not late):
            continue
        path = os.path.join(directory, name)
        if is_data(name, ocdbt):
            files[name] = [os.path.getsize(path), _sample(path)]
        else:
            with open(path, "rb") as stream:
                content = stream.read()
            files[name] = [len(content), checksum(content)]
    body = json.dumps({"format": 1, "files": files}, sort_keys=True)
    with open(os.path.join(directory, FILE), "w", encoding="ascii") as stream:
        stream.write(f"{body}\n{checksum(body.encode())}\n")


def read(directory: str) -> dict[str, list[Any]]:
    """Returns the digests: file name → [size] or [size, checksum].

    Raises:
      CorruptCheckpointError: the file is missing or damaged.
    """
    path = os.path.join(directory, FILE)
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CorruptCheckpointError(
            f"{path}: this file of the checkpoint is missing. Restore another checkpoint."
        ) from error
    body, _, end = content.partition(b"\n")
    if end != checksum(body).encode() + b"\n":
        raise CorruptCheckpointError(
            f"{path}: this file is damaged: its checksum does not match. Restore another checkpoint."
        )
    files: dict[str, list[Any]] = json.loads(body)["files"]
    return files


def check(directory: str, name: str, content: bytes, files: dict[str, list[Any]]) -> None:
    """Raises CorruptCheckpointError unless `content` is what was written as the metadata file `name`."""
    expected = files.get(name)
    if expected is not None and expected[0] == len(content) and expected[1:] == [checksum(content)]:
        return
    path = os.path.join(directory, name)
    what = "it does not belong to this checkpoint" if expected is None else "its checksum does not match"
    raise CorruptCheckpointError(f"{path}: this file is damaged: {what}. Restore another checkpoint.")


def check_sizes(directory: str, files: dict[str, list[Any]]) -> list[tuple[str, str]]:
    """Returns what is wrong with which files: missing ones, and ones of another size."""
    problems = []
    for name, expected in files.items():
        try:
            size = os.path.getsize(os.path.join(directory, name))
        except FileNotFoundError:
            problems.append((name, "this file is missing"))
            continue
        if size != expected[0]:
            problems.append((name, f"this file has {size} bytes instead of {expected[0]}"))
    return problems


def check_data(directory: str, name: str, files: dict[str, list[Any]]) -> None:
    """Raises CorruptCheckpointError unless a data file has the size and the sample that were noted."""
    path = os.path.join(directory, name)
    try:
        found = [os.path.getsize(path), _sample(path)]
    except FileNotFoundError:
        found = []
    if found != files[name]:
        what = "it is not the one that was written" if found else "it is missing"
        raise CorruptCheckpointError(f"{path}: this file is damaged: {what}. Restore another checkpoint.")


def _sample(path: str) -> str:
    """Returns a digest of the end of a file (where a chunk's own checksum is) and of small parts all over it."""
    size = os.path.getsize(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        step = max(_PART, size // _PARTS)
        parts = [os.pread(descriptor, _PART, position) for position in range(0, size, step)]
        parts.append(os.pread(descriptor, _END, max(0, size - _END)))
    finally:
        os.close(descriptor)
    # Not crc32c: a chunk that ends in its own crc32c has the same one as every other.
    return _SAMPLE + hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


def is_data(name: str, ocdbt: bool) -> bool:
    """Whether a file holds data that carries checksums of its own: OCDBT's values and nodes, or a chunk."""
    if ocdbt:
        return _OCDBT_DATA.match(name) is not None
    return "/c/" in f"/{name}/" and not name.endswith("/zarr.json")


def is_sampled(expected: list[Any]) -> bool:
    """Whether only a sample of a file was noted."""
    return str(expected[1]).startswith(_SAMPLE)


def checksum(content: bytes) -> str:
    """Returns the crc32c of `content` in hexadecimal."""
    import google_crc32c

    return f"{google_crc32c.value(content):08x}"


def _files(directory: str) -> list[str]:
    found = []
    for folder, _, names in os.walk(directory):
        relative = os.path.relpath(folder, directory)
        found += [name if relative == "." else f"{relative}/{name}" for name in names]
    return sorted(found)
