"""Writes safetensors files, one array after the other, so that only one of them is in memory."""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxckpt._lib import durable
from jaxckpt.storage.safetensors import header
from jaxckpt.storage.safetensors.source import INDEX_SUFFIX, SUFFIX

# A file does not become larger, unless one array is. Hubs and file systems have such limits.
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Array:
    """An array to write.

    Attributes:
      name: its name in the file.
      shape: its shape.
      dtype: its dtype, which the format has.
      described: what the metadata says about it; see `header.described`.
      load: returns the array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    described: dict[str, Any]
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Content:
    """Everything that is written.

    Attributes:
      arrays: the arrays.
      strings: texts by name, each with its description.
      record: jaxckpt's record of the save; see `Snapshot.record`.
    """

    arrays: Sequence[Array]
    strings: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def files_of(path: str) -> list[str]:
    """Returns the files that make up the target of an earlier write: a file, or an index and the files that it names. Empty if none.

    Args:
      path: path of the target, which ends in ``.safetensors``.
    """
    found = [path] if os.path.lexists(path) else []
    index = path.removesuffix(SUFFIX) + INDEX_SUFFIX
    if os.path.lexists(index):
        found.append(index)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            with open(index, encoding="utf-8") as file:
                names = {str(name) for name in json.load(file)["weight_map"].values()}
            # A file of another name, or outside of the directory, may belong to others too.
            own = os.path.basename(path).removesuffix(SUFFIX) + "-"
            inside = [
                name
                for name in names
                if os.path.basename(name) == name and name.startswith(own) and name.endswith(SUFFIX)
            ]
            found += [os.path.join(os.path.dirname(index), name) for name in inside]
    return [each for each in found if os.path.lexists(each)]


def write(path: str, content: Content, written: Callable[[int], None], shard_bytes: int = SHARD_BYTES) -> str:
    """Writes arrays into a file; or, if they are larger than one file may be, into several and an index.

    A target that exists is replaced once everything is written. After an error it is as it was.

    Args:
      path: path of the target, which ends in ``.safetensors``.
      content: what to write.
      written: called after each array with its number of bytes.
      shard_bytes: the largest size of a file, in bytes of arrays.

    Returns:
      The path of the file or index.

    Raises:
      ValueError: the names take more than a header may have.
      OSError: a file cannot be written; has errno.
    """
    shards = _shards(content.arrays, shard_bytes)
    directory, name = os.path.split(os.path.abspath(path))
    stem = name.removesuffix(SUFFIX)
    old = files_of(path)
    token = secrets.token_hex(4)
    if len(shards) == 1:
        names = [name]
    else:
        names = [f"{stem}-{number:05d}-of-{len(shards):05d}{SUFFIX}" for number in range(1, len(shards) + 1)]
        if any(os.path.lexists(os.path.join(directory, each)) for each in names):
            # The old index stays right until the new one replaces it.
            names = [f"{stem}-{token}-{each.removeprefix(stem + '-')}" for each in names]
    os.makedirs(directory, exist_ok=True)
    made: list[str] = []
    placed: list[str] = []
    try:
        for number, (shard, file) in enumerate(zip(shards, names, strict=True)):
            made.append(_temporary(directory, file, token))
            _write_file(made[-1], _beginning(shard, content, is_first=number == 0), shard, written)
        if len(shards) > 1:
            made.append(_temporary(directory, stem + INDEX_SUFFIX, token))
            names.append(stem + INDEX_SUFFIX)
            _write_index(made[-1], shards, names)
        for temporary, file in zip(list(made), names, strict=True):
            os.replace(temporary, os.path.join(directory, file))
            made.remove(temporary)
            placed.append(os.path.join(directory, file))
    except BaseException:
        if len(shards) > 1 and os.path.lexists(_temporary(directory, stem + INDEX_SUFFIX, token)):
            # The index is not in its place, so nothing refers to the files that are. Their names were free.
            made += placed
        for temporary in made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        raise
    # The old files may go when the new ones are certain to stay.
    _sync_directory(directory)
    new = [os.path.join(directory, file) for file in names]
    for each in old:
        if os.path.abspath(each) not in new:
            os.unlink(each)
    _sync_directory(directory)
    return os.path.join(os.path.dirname(path), names[-1])


def _temporary(directory: str, name: str, token: str) -> str:
    return os.path.join(directory, f".{name}.{token}.tmp")


def _shards(arrays: Sequence[Array], limit: int) -> list[list[Array]]:
    """Divides arrays into files. In each, those with large elements come first, so that all of them are aligned."""
    shards: list[list[Array]] = [[]]
    size = 0
    for array in arrays:
        if shards[-1] and size + array.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(array)
        size += array.nbytes
    return [sorted(shard, key=lambda array: (-array.dtype.itemsize, array.name)) for shard in shards]


def _beginning(shard: Sequence[Array], content: Content, *, is_first: bool) -> bytes:
    own: dict[str, Any] = {"format": header.FORMAT, "leaves": {array.name: array.described for array in shard}}
    if is_first:
        own["leaves"] |= {name: described for name, (_, described) in content.strings.items()}
        own["strings"] = {name: text for name, (text, _) in content.strings.items()}
        own["record"] = content.record
    # Programs look for "format" to learn which library's layout arrays have. It is the same for all of them.
    metadata = {"format": "np", header.OWN: json.dumps(own, separators=(",", ":"))}
    return header.encode({array.name: (array.dtype, array.shape) for array in shard}, metadata)


def _write_file(path: str, beginning: bytes, shard: Sequence[Array], written: Callable[[int], None]) -> None:
    with _new_file(path) as file:
        file.write(beginning)
        for array in shard:
            value = np.ascontiguousarray(array.load())
            if value.nbytes:
                file.write(memoryview(value.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
            # Not two at a time.
            del value
            written(array.nbytes)


def _write_index(path: str, shards: Sequence[Sequence[Array]], names: Sequence[str]) -> None:
    places = {array.name: name for shard, name in zip(shards, names, strict=False) for array in shard}
    total = sum(array.nbytes for shard in shards for array in shard)
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    with _new_file(path) as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False).encode())


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[Any]:
    with open(path, "xb") as file:
        yield file
        file.flush()
        durable.sync(file.fileno(), path)


def _sync_directory(path: str) -> None:
    durable.sync_and_close(os.open(path, os.O_RDONLY), path)
