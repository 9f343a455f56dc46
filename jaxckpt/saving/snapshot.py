"""Leaves → a snapshot that later changes cannot reach. The only work of a save on the caller's thread.

Device arrays are immutable: on the CPU backend the snapshot is a view of the device's buffer (which JAX then does not donate), on
others a copy in host memory. Mutable host memory (numpy) is copied when the write happens in the background.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.boxes import grid_of
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.job.plan import HOST_OWNER, Plan
from jaxckpt.saving.shards import GlobalArray, host_content
from jaxckpt.storage.item import layout, strings
from jaxckpt.storage.item.content import ArrayContent, EmptyContent, EmptyType, Entry, Piece, Snapshot, StringContent
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import EmptyNode, Flat, Leaf
from jaxckpt.tree.kinds import STORABLE, Kind, is_key_dtype, kind_of, refusal
from jaxckpt.tree.names import Path

_JAX, _SINGLE = Kind.JAX, jax.sharding.SingleDeviceSharding
# TensorStore, with which Orbax reads, knows no more.
_AXES = 32


def take(flats: Iterable[Flat], *, copy: bool) -> Snapshot:
    """Takes the snapshot of flattened values.

    Args:
      flats: values taken apart by `jaxckpt.tree.flatten.flatten`.
      copy: copy mutable host memory (numpy), because the caller may change it before it is written.

    Raises:
      TypeError: a leaf of a kind or dtype that cannot be stored, or a traced value (inside jax.jit); names the leaf.
      ValueError: two leaves whose names Orbax cannot tell apart, or a deleted (donated) array; names the leaves.
      Exception: what JAX raised about a leaf, such as a computation that failed, with the name of the leaf.
    """
    flats = list(flats)
    leaves = [leaf for flat in flats for leaf in flat.leaves]
    # The copies are what the caller has asked for; a transfer guard is about those that nobody has.
    with jax.transfer_guard_device_to_host("allow"), leaf_errors.Walk(leaves) as walk:
        _start_transfers(leaves)
        entries = [Entry(leaf.path, _content(leaf, copy)) for leaf in walk]
    return _snapshot(entries, flats)


@quiet_gc()
def take_part(flats: Iterable[Flat], plan: Plan, *, copy: bool) -> Snapshot:
    """Takes this process's part of the snapshot of a job of several processes.

    Every leaf is described as on every other process; its pieces are those that this process owns. Host leaves, which belong to no
    process, have their pieces on process 0.

    Args:
      flats, copy: as for `take`.
      plan: says who owns what.

    Raises:
      As `take`.
    """
    flats = list(flats)
    leaves = [leaf for flat in flats for leaf in flat.leaves]
    shared: dict[int, GlobalArray] = {}
    entries = []
    with jax.transfer_guard_device_to_host("allow"), leaf_errors.Walk(leaves) as walk:
        for position, leaf in enumerate(walk):
            if kind_of(leaf.value) is Kind.JAX:
                _require_data(leaf, leaf.value)
                if not leaf.value.is_fully_addressable:
                    # Starts its transfers: all before the first is waited for.
                    shared[position] = GlobalArray(leaf.value, plan)
        for position, leaf in enumerate(walk):
            if (array := shared.get(position)) is not None:
                content: ArrayContent | StringContent = array.content()
                _check_dtype(leaf, array.dtype)
            else:
                content = _content(leaf, copy and plan.process == HOST_OWNER)
                if isinstance(content, ArrayContent):
                    content = host_content(content, plan)
            entries.append(Entry(leaf.path, content))
    return _snapshot(entries, flats)


def _snapshot(entries: list[Entry], flats: Iterable[Flat]) -> Snapshot:
    entries += [Entry(node.path, EmptyContent(_empty_type(node))) for flat in flats for node in flat.empties]
    _refuse_collisions(entries)
    return Snapshot(tuple(entries))


def _start_transfers(leaves: Sequence[Leaf]) -> None:
    """Starts all copies from devices to the host before the first is waited for."""
    if jax.default_backend() == "cpu":
        return  # Views: nothing is copied.
    for leaf in leaves:
        value = leaf.value
        if kind_of(value) is Kind.JAX and not value.is_deleted() and not is_key_dtype(value.dtype):
            value.copy_to_host_async()


def _content(leaf: Leaf, copy: bool) -> ArrayContent | StringContent:
    value = leaf.value
    kind = kind_of(value)
    if kind is _JAX:  # Thousands of them, while training waits: what can be done in one step here is.
        return _jax_array(leaf, value)
    match kind:
        case Kind.NUMPY:
            return _numpy_array(leaf, value, copy)
        case Kind.BOOL | Kind.FLOAT | Kind.COMPLEX:
            return _whole("scalar", np.asarray(value))
        case Kind.INT:
            return _whole("scalar", _int_array(leaf, value))
        case Kind.STR:
            return StringContent(value)
        case Kind.BYTES:
            return _whole("np.ndarray", np.frombuffer(value, np.uint8), kind="bytes")
        case Kind.NUMPY_SCALAR:
            _check_dtype(leaf, value.dtype)
            return _whole("scalar", np.asarray(value), kind="numpy")
        case Kind.ABSTRACT:
            raise TypeError(
                f"{leaf.name}: this is an abstract array ({value}), which has no data to save; it can only be a target of restore."
            )
        case _:
            raise _refused(leaf)


def _refused(leaf: Leaf) -> TypeError:
    return TypeError(f"{leaf.name}: {refusal(leaf.value, 'save')}")


def _too_many_axes(leaf: Leaf) -> ValueError:
    return ValueError(
        f"{leaf.name}: this array has {leaf.value.ndim} axes; Orbax and TensorStore know {_AXES} at most. Reshape it first."
    )


def _int_array(leaf: Leaf, value: int) -> np.ndarray:
    if -(2**63) <= value < 2**63:
        return np.asarray(value, np.int64)
    if 0 < value < 2**64:
        return np.asarray(value, np.uint64)
    raise _refused(leaf)


def _whole(value_type: Any, array: np.ndarray, kind: Any = None) -> ArrayContent:
    piece = Piece((0,) * array.ndim, array.shape, array)
    return ArrayContent(value_type, array.shape, array.dtype, array.shape, (piece,), kind)


def _check_dtype(leaf: Leaf, dtype: np.dtype[Any]) -> None:
    if dtype not in STORABLE and dtype.newbyteorder("=") not in STORABLE:
        raise _refused(leaf)


def _numpy_array(leaf: Leaf, value: np.ndarray, copy: bool) -> ArrayContent:
    if isinstance(value, np.ma.MaskedArray):
        raise _refused(leaf)
    _check_dtype(leaf, value.dtype)
    if value.ndim > _AXES:
        raise _too_many_axes(leaf)
    array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    elif copy:
        array = array.copy(order="C")
    return _whole("np.ndarray", array)


def _require_data(leaf: Leaf, value: jax.Array) -> None:
    if value.is_deleted():
        raise ValueError(
            f"{leaf.name}: this array has been deleted (it was donated to a jitted function). Save the array that the function returned."
        )


def _jax_array(leaf: Leaf, value: jax.Array) -> ArrayContent:
    """The content of an array of which this process has everything."""
    key_impl = None
    if value.is_deleted():
        _require_data(leaf, value)
    if value.dtype not in STORABLE:
        if is_key_dtype(value.dtype):
            key_impl = str(jax.random.key_impl(value))
            value = jax.random.key_data(value)
        else:
            _check_dtype(leaf, value.dtype)
    shape, dtype, sharding = value.shape, value.dtype, value.sharding
    if len(shape) > _AXES:
        raise _too_many_axes(leaf)
    if type(sharding) is _SINGLE or len(sharding.device_set) == 1:
        pieces: tuple[Piece, ...] = (Piece((0,) * len(shape), shape, np.asarray(value)),)
        return ArrayContent("jax.Array", shape, dtype, shape, pieces, None, key_impl, sharding)
    parts = tuple(_shard_piece(shard, shape) for shard in value.addressable_shards if shard.replica_id == 0)
    return ArrayContent("jax.Array", shape, dtype, grid_of(shape, parts), parts, None, key_impl, sharding)


def _shard_piece(shard: Any, shape: tuple[int, ...]) -> Piece:
    start = tuple(index.indices(extent)[0] for index, extent in zip(shard.index, shape, strict=True))
    array = np.asarray(shard.data)
    return Piece(start, array.shape, array)


def _empty_type(node: EmptyNode) -> EmptyType:
    value = node.value
    if value is None or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return "None"  # Orbax's word for an empty named tuple, such as optax.EmptyState.
    if isinstance(value, list):
        return "List"
    return "Tuple" if isinstance(value, tuple) else "Dict"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


_told_apart: tuple[Path, ...] = ()


def _refuse_collisions(entries: Sequence[Entry]) -> None:
    """Refuses names that Orbax cannot tell apart. A training loop saves the same paths (see `jaxckpt.tree.flatten`) again and again."""
    global _told_apart
    paths = tuple([entry.path for entry in entries])
    if len(paths) == len(_told_apart) and all(map(operator.is_, paths, _told_apart)):
        return
    names = [entry.param_name for entry in entries]
    text = "".join(names)
    try:
        text.encode()
    except UnicodeEncodeError:
        bad = next(entry for entry in entries if not _is_text(entry.param_name))
        raise ValueError(f"{bad.name}: this key holds a lone surrogate, which is no text. Rename the key.") from None
    texts: dict[str, Any] = {}
    for entry in entries:
        if isinstance(entry.content, StringContent) and ("/" in entry.param_name or "~" in entry.param_name):
            try:
                strings.put(texts, entry.param_name, "")
            except ValueError:
                raise ValueError(
                    f"{entry.name}: Orbax cannot tell this str from another one, because of a '/' or '~'. Rename the key."
                ) from None
    if "/" not in text and "~" not in text and len(set(names)) == len(names):
        _told_apart = paths  # Whichever of them are str.
        return
    layout.refuse_collisions(paths)
