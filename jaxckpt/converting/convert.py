"""One conversion: opens the source, chooses leaves and names, and writes them as a checkpoint or as safetensors files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxckpt import storage
from jaxckpt.converting.leaves import ArrayLeaf
from jaxckpt.converting.selection import Choice, Selected, select
from jaxckpt.converting.target import refuse_existing, refuse_itself, refuse_near_miss
from jaxckpt.directory import paths
from jaxckpt.leaf_kinds import contents, dtypes
from jaxckpt.saving.snapshot import refuse_collisions
from jaxckpt.storage import CheckpointPath, stores
from jaxckpt.storage.item import description, notes
from jaxckpt.storage.item.content import (
    ArrayContent,
    EmptyContent,
    EmptyType,
    Entry,
    Piece,
    Snapshot,
    StringContent,
    ValueType,
)
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.safetensors import header, writer
from jaxckpt.storage.safetensors.source import INDEX_SUFFIX, SUFFIX
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.source import OpenCheckpoint
from jaxckpt.tree.names import Path, leaf_name

# Orbax stores an empty named tuple as "None".
_EMPTY: dict[str, EmptyType] = {"None": "None", "NamedTuple": "None", "Dict": "Dict", "List": "List", "Tuple": "Tuple"}
# A conversion may take long. Its waits are bounded all the same.
_TIMEOUT_SECS = 7 * 24 * 3600.0


class Watch(Protocol):
    """Follows a conversion."""

    def begin(self, nbytes: int) -> None:
        """Called before the first array, with the number of bytes of all arrays."""

    def advance(self, nbytes: int) -> None:
        """Called after each array, or part of one, with its number of bytes. Several threads may call it."""


@dataclass(frozen=True)
class Report:
    """The result of a conversion.

    Attributes:
      source: path of the source.
      target: path of the checkpoint, of the file, or of the index of several files.
      leaves: number of leaves that were written.
      bytes: size of all arrays that were written, in bytes.
      left_out: names of leaves that were left out, each with the reason.
      other_names: names of leaves of the target that have another name too in the source, each with one such name. The target does not
        know it.
    """

    source: str
    target: str
    leaves: int
    bytes: int
    left_out: dict[str, str] = field(default_factory=dict)
    other_names: dict[str, str] = field(default_factory=dict)


class _Work(NamedTuple):
    """What is written where.

    Attributes:
      target: path of the new checkpoint or file.
      selected: the leaves, and the reasons for which others are left out.
      arrays: those of the leaves that are arrays.
      texts: those that are texts.
      record: what the checkpoint says about itself.
      watch: follows the conversion.
    """

    target: str
    selected: Selected
    arrays: Sequence[ArrayLeaf]
    texts: Sequence[tuple[Path, str]]
    record: dict[str, Any]
    watch: Watch


def convert(
    source: str,
    target: str,
    choice: Choice,
    watch: Watch,
    *,
    cast: np.dtype[Any] | None = None,
    overwrite: bool = False,
    shard_bytes: int = writer.SHARD_BYTES,
) -> Report:
    """Converts a checkpoint. At most a few leaves are in memory at a time.

    Args:
      source: path of a checkpoint of jaxckpt, Orbax or TensorFlow, or of a safetensors file.
      target: path of the new checkpoint; or of the new safetensors file, if it ends in ``.safetensors``.
      choice: which leaves to take, and their names.
      watch: follows the conversion.
      cast: the dtype that numbers of its kind (floating, integer, complex) get; None for none.
      overwrite: whether to replace a target that exists.
      shard_bytes: the largest size of a safetensors file in bytes.

    Raises:
      FileExistsError: the target exists, and is not to be replaced; or it is not of the form that is written.
      ValueError: a leaf has a name or dtype that the target cannot hold, or a value that the dtype of the cast cannot.
      CheckpointError: the source cannot be read.
      OSError: with errno.
    """
    refuse_near_miss(target)
    target = paths.checked_path(target, "TARGET")
    is_file = target.endswith(SUFFIX)
    if target.endswith(INDEX_SUFFIX):
        raise ValueError(
            f"Give {target.removesuffix(INDEX_SUFFIX) + SUFFIX!r}: an index is written if there are several files."
        )
    refuse_existing(target, overwrite, is_file=is_file)
    stored = storage.open_checkpoint(source)
    refuse_itself(stored, target, is_file=is_file)
    selected = select(stored.tree, choice)
    record = dict(stored.record)
    if selected.counter is not None:
        record[description.COUNTER] = _counter(stored, selected.counter)
    texts = [(path, stored.string(leaf)) for path, leaf in selected.leaves if leaf.is_string]
    arrays = [
        ArrayLeaf(path, leaf, stored, cast) for path, leaf in selected.leaves if not (leaf.is_string or leaf.is_empty)
    ]
    work = _Work(target, selected, arrays, texts, record, watch)
    written = _write_files(work, shard_bytes) if is_file else _write_checkpoint(work, overwrite)
    stored.check_data_files()
    leaves = len(arrays) + len(texts) + (description.COUNTER in record)
    nbytes = sum(array.nbytes for array in arrays)
    return Report(stored.path, written, leaves, nbytes, selected.left_out, selected.other_names)


def _counter(stored: OpenCheckpoint, leaf: StoredLeaf) -> int:
    info = stored.infos([leaf])[leaf.param_name]
    if info.shape != () or info.dtype.kind not in "iu":
        raise ValueError(
            f"{leaf.name}: it has shape {info.shape} and dtype {info.dtype}, so it cannot be the number of a save. Rename it with --rename."
        )
    (array,) = stored.read([(leaf.param_name, None)])
    return int(array)


def _write_checkpoint(work: _Work, overwrite: bool) -> str:
    entries = []
    for array in work.arrays:
        if (reason := dtypes.refusal(array.dtype)) is not None:
            raise ValueError(
                f"{array.name}: {reason} (--cast converts floating numbers, integers, or complex numbers.)"
            )
        if len(array.shape) > contents.AXES:
            raise ValueError(
                f"{array.name}: this array has {len(array.shape)} axes; a checkpoint allows {contents.AXES} at most."
            )
        entries.append(Entry(array.path, _content(array, work.watch)))
    for path, text in work.texts:
        contents.require_text(leaf_name(path), text)
        entries.append(Entry(path, StringContent(text)))
    for path, leaf in work.selected.leaves:
        if leaf.is_empty:
            entries.append(Entry(path, EmptyContent(_EMPTY[leaf.value_type])))
    refuse_collisions(entries)
    settings = WriteSettings(timeout_secs=_TIMEOUT_SECS)
    snapshot = Snapshot(tuple(entries), work.record)
    place = CheckpointPath.of(stores.absolute(work.target))
    storage.check(stores.absolute(work.target), snapshot, settings)
    work.watch.begin(sum(array.nbytes for array in work.arrays))
    storage.save(place, snapshot, settings, replace=overwrite)
    return work.target


def _content(array: ArrayLeaf, watch: Watch) -> ArrayContent:
    leaf = array.leaf

    def fetch(start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        part = array.box(start, shape)
        watch.advance(part.nbytes)
        return part

    value_type: ValueType = "scalar" if leaf.value_type == "scalar" else "np.ndarray"
    note, sharding = leaf.note, None
    if leaf.key_impl is not None:
        # Orbax keeps the implementation of keys for a jax.Array only, and needs its sharding. Every program has this device.
        value_type, sharding = "jax.Array", jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    elif leaf.value_type == "jax.Array":
        # Nothing knows the devices that it will be on, so it is described like an array that several processes saved.
        note = note or notes.JAX_ARRAY.word
    piece = Piece((0,) * len(array.shape), array.shape, fetch)
    return ArrayContent(
        value_type,
        array.shape,
        array.dtype,
        array.shape,
        (piece,),
        note,
        leaf.key_impl,
        sharding,
    )


def _write_files(work: _Work, shard_bytes: int) -> str:
    listed = []
    for array in work.arrays:
        if header.name_of(array.dtype) is None:
            raise ValueError(
                f"{array.name}: safetensors does not have the dtype {array.dtype}. Convert the leaf with --cast, or leave it out with "
                "--filter."
            )
        _check_name(array.name)
        described = header.described(array.leaf, array.path)
        listed.append(writer.Array(array.name, array.shape, array.dtype, described, array.load))
    strings = {}
    for path, text in work.texts:
        _check_name(leaf_name(path))
        strings[leaf_name(path)] = (text, {"type": "string", "indices": header.indices(path)})
    for path, leaf in work.selected.leaves:
        if leaf.is_empty:
            work.selected.left_out[leaf_name(path)] = "an empty container, for which a safetensors file has no place"
    work.watch.begin(sum(array.nbytes for array in work.arrays))
    return writer.write(work.target, writer.Content(listed, strings, work.record), work.watch.advance, shard_bytes)


def _check_name(name: str) -> None:
    """Refuses a name that cannot be a key of a safetensors header."""
    if name == header.METADATA:
        raise ValueError(f"{name}: a safetensors file cannot hold a leaf of this name. Rename it with --rename.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name!a}: this name is not text, so a safetensors file cannot hold it. Rename it with --rename."
        ) from None
