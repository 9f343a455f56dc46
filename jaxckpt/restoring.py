"""Targets + a stored checkpoint → new values, on the devices where they belong. Changes nothing.

Everything is matched and validated before the first byte of an array is read.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxckpt.kinds import Kind, is_key_dtype, kind_of
from jaxckpt.quiet_gc import quiet_gc
from jaxckpt.storage.arrays import ArrayInfo
from jaxckpt.storage.ocdbt_chunks import Box
from jaxckpt.storage.tree_metadata import StoredLeaf, StoredTree
from jaxckpt.tree import Leaf

# Arrays are read and placed in groups, so that the host holds no second copy of a large model.
_GROUP_BYTES = 256 << 20
_BoxKey = tuple[tuple[int, int], ...]


class Source(Protocol):
    """An open checkpoint: a `StoredCheckpoint`, or one that another process has open."""

    path: str
    tree: StoredTree
    record: dict[str, Any]

    def infos(self, leaves: Iterable[StoredLeaf]) -> dict[str, ArrayInfo]:
        """Returns shape and dtype of array leaves, by Orbax's name."""

    def nbytes(self, leaf: StoredLeaf) -> int:
        """Returns the bytes of an array leaf of which `infos` was asked before."""

    def string(self, leaf: StoredLeaf) -> str:
        """Returns the value of a str leaf."""

    def read(self, requests: Sequence[tuple[str, Box | None]]) -> list[np.ndarray]:
        """Reads arrays, or boxes of them."""


@dataclass
class Matched:
    """Which targets found their leaf.

    Attributes:
      pairs: target and stored leaf.
      skipped: names of slot variables that keep their values.
      missing: names of targets that are not stored.
      unexpected: names of stored leaves that are no target.
    """

    pairs: list[tuple[Leaf, StoredLeaf]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def match(targets: Sequence[Leaf], stored: Source, skip: set[str], ignore: str) -> Matched:
    """Matches targets and stored leaves by name.

    Args:
      targets: leaves of the current values.
      stored: the checkpoint.
      skip: names of targets that keep their values and count as matched.
      ignore: a stored name that is nobody's business (the save counter).
    """
    by_name = {leaf.name: leaf for leaf in stored.tree.leaves if not leaf.is_empty}
    found = Matched()
    names = set()
    for target in targets:
        name = target.name
        names.add(name)
        if name in skip:
            found.skipped.append(name)
        elif name in by_name:
            found.pairs.append((target, by_name[name]))
        else:
            found.missing.append(name)
    found.unexpected = [name for name in by_name if name not in names and name != ignore]
    return found


@quiet_gc()
def load(pairs: Sequence[tuple[Leaf, StoredLeaf]], stored: Source) -> dict[str, Any]:
    """Validates all pairs, then reads and places them.

    Returns:
      New values by name, each of the kind, dtype and sharding of its target.

    Raises:
      ValueError: a stored shape, dtype or kind is not the target's; names the leaf and both sides.
      CorruptCheckpointError: stored data is damaged.
    """
    arrays = [(target, leaf) for target, leaf in pairs if not leaf.is_string]
    infos = stored.infos([leaf for _, leaf in arrays])
    for target, leaf in pairs:
        _validate(target, leaf, infos.get(leaf.param_name), stored.path)
    values = {target.name: stored.string(leaf) for target, leaf in pairs if leaf.is_string}
    for group in _groups(arrays, stored):
        values.update(_load_group(group, infos, stored))
    return values


def _groups(arrays: Sequence[tuple[Leaf, StoredLeaf]], stored: Source) -> Iterator[list[tuple[Leaf, StoredLeaf]]]:
    group: list[tuple[Leaf, StoredLeaf]] = []
    held = 0
    for target, leaf in arrays:
        nbytes = stored.nbytes(leaf)
        if group and held + nbytes > _GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append((target, leaf))
        held += nbytes
    yield group


_SCALARS = {Kind.BOOL: "b", Kind.INT: "iu", Kind.FLOAT: "f", Kind.COMPLEX: "c"}
_ARRAYS = {Kind.JAX, Kind.NUMPY, Kind.NUMPY_SCALAR, Kind.ABSTRACT}


def _validate(target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, path: str) -> None:
    value = target.value
    kind = kind_of(value)
    if kind is Kind.TRACER:
        raise TypeError(
            f"{target.name}: this value is traced (restore was called inside jax.jit); call restore outside of it."
        )
    if kind is Kind.OTHER:
        raise TypeError(
            f"{target.name}: a {type(value).__module__}.{type(value).__qualname__} cannot be a target of restore. Use an array, a "
            "jax.ShapeDtypeStruct, a scalar, str or bytes, or an object with deserialize() or set_state()."
        )
    if not _same_kind(kind, value, leaf, info):
        raise ValueError(
            f"{target.name}: the target is {_describe_target(value)}, but {path} holds {_describe(leaf, info)}. "
            "Restore into a target like what was saved."
        )
    if kind not in _ARRAYS:
        return
    if kind is Kind.ABSTRACT and _sharding_of(value) is None and jax.process_count() > 1:
        raise ValueError(
            f"{target.name}: the target is a jax.ShapeDtypeStruct without a sharding, in a job of {jax.process_count()} processes. Give it "
            "one, jax.ShapeDtypeStruct(shape, dtype, sharding=...): it says which process gets what."
        )
    assert info is not None
    shape, dtype = value.shape, value.dtype
    if leaf.key_impl is not None:
        if (impl := _key_impl(value)) != leaf.key_impl:
            raise ValueError(
                f"{target.name}: the target is a PRNG key of implementation {impl}, but {path} holds one of {leaf.key_impl}."
            )
        shape = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype)).shape
        dtype = info.dtype
    if shape != info.shape:
        raise ValueError(f"{target.name}: the target has shape {tuple(shape)}, but {path} holds shape {info.shape}.")
    if kind in (Kind.JAX, Kind.ABSTRACT) and jax.dtypes.canonicalize_dtype(info.dtype) != info.dtype:
        raise ValueError(
            f"{target.name}: {path} holds dtype {info.dtype}, which JAX would cast to {jax.dtypes.canonicalize_dtype(info.dtype)}. "
            "Enable 64 bits (jax.config.update('jax_enable_x64', True)), or restore into a numpy array."
        )
    if dtype != info.dtype and np.dtype(dtype).newbyteorder("=") != info.dtype:
        raise ValueError(
            f"{target.name}: the target has dtype {dtype}, but {path} holds dtype {info.dtype}; values are never cast. "
            "Restore into a target of the stored dtype and cast afterwards."
        )


def _same_kind(kind: Kind, value: Any, leaf: StoredLeaf, info: ArrayInfo | None) -> bool:
    """Whether a stored leaf can become a value of the target's kind, its shape and dtype aside."""
    if info is None:
        return kind is Kind.STR
    if kind is Kind.BYTES or leaf.kind == "bytes":
        return kind is Kind.BYTES and leaf.kind == "bytes"
    if kind in _SCALARS:
        return info.shape == () and info.dtype.kind in _SCALARS[kind] and leaf.key_impl is None
    return kind in _ARRAYS and is_key_dtype(value.dtype) == (leaf.key_impl is not None)


def _key_impl(value: Any) -> str:
    if kind_of(value) is Kind.JAX:
        return str(jax.random.key_impl(value))
    found: list[str] = []  # A dtype does not tell: ask an abstract array of it.

    def look(key: Any) -> Any:
        found.append(str(jax.random.key_impl(key)))
        return key

    jax.eval_shape(look, jax.ShapeDtypeStruct((), value.dtype))
    return found[0]


def _describe(leaf: StoredLeaf, info: ArrayInfo | None) -> str:
    if leaf.is_string:
        return "a str"
    assert info is not None
    if leaf.kind == "bytes":
        return f"bytes ({info.shape[0]} of them)"
    if leaf.key_impl is not None:
        return f"a PRNG key ({leaf.key_impl})"
    if leaf.value_type == "scalar":
        return f"a scalar of dtype {info.dtype}"
    return f"an array of shape {info.shape} and dtype {info.dtype}"


def _describe_target(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"a {type(value).__name__}"


def _load_group(
    group: Sequence[tuple[Leaf, StoredLeaf]], infos: Mapping[str, ArrayInfo], stored: Source
) -> dict[str, Any]:
    """Reads the boxes that a group of targets needs, in one batch, and builds their values."""
    requests: list[tuple[str, Box | None]] = []
    builders: list[tuple[str, int, int, Callable[[list[np.ndarray]], Any]]] = []
    values: dict[str, Any] = {}
    # What goes to devices is placed in one batched transfer: whole arrays for one device, and shards.
    plain: list[tuple[str, int, Any]] = []
    divided: list[tuple[str, int, list[tuple[Any, int]], Callable[[list[jax.Array]], Any]]] = []
    for target, leaf in group:
        value = target.value
        first = len(requests)
        if kind_of(value) in (Kind.JAX, Kind.ABSTRACT):
            sharding = _sharding_of(value)
            is_global = sharding is not None and not sharding.is_fully_addressable
            if is_global or (leaf.key_impl is None and sharding is not None and len(sharding.device_set) > 1):
                boxes, places, build = _sharded(target, infos[leaf.param_name], leaf.key_impl)
                requests += [(leaf.param_name, box) for box in boxes]
                divided.append((target.name, first, places, build))
                continue
            if leaf.key_impl is None:
                requests.append((leaf.param_name, None))
                plain.append((target.name, first, value))
                continue
        requests.append((leaf.param_name, None))
        builders.append((target.name, first, first + 1, _host_builder(target, leaf)))
    arrays = stored.read(requests)
    if plain:
        placed = jax.device_put(
            [arrays[position] for _, position, _ in plain], [_placement(value) for _, _, value in plain]
        )
        for (name, position, value), array in zip(plain, placed, strict=True):
            values[name] = _as_weak(value, array, arrays[position])
    if divided:
        devices = [device for _, _, places, _ in divided for device, _ in places]
        sources = [arrays[first + position] for _, first, places, _ in divided for _, position in places]
        shards = iter(jax.device_put(sources, devices))
        for name, _, places, build in divided:
            values[name] = build(list(itertools.islice(shards, len(places))))
    for name, first, end, finish in builders:
        values[name] = finish(arrays[first:end])
    return values


def _sharding_of(value: Any) -> Any:
    return getattr(value, "sharding", None)


def _placement(value: Any) -> Any:
    """Where a target lies; None for an array that JAX is free to move (uncommitted), which stays free."""
    if kind_of(value) is Kind.JAX and not getattr(value, "committed", True):
        return None
    return _sharding_of(value)


def _as_weak(target: Any, array: jax.Array, data: np.ndarray) -> jax.Array:
    """A weakly typed scalar (such as a step counter that began as a Python int) stays one: promotion depends on it."""
    if data.ndim == 0 and kind_of(target) is Kind.JAX and target.weak_type and data == data:
        weak = jnp.asarray(data.item())
        if weak.dtype == array.dtype:
            return weak if _placement(target) is None else jax.device_put(weak, target.sharding)
    return array


def _sharded(
    target: Leaf, info: ArrayInfo, key_impl: str | None
) -> tuple[list[Box], list[tuple[Any, int]], Callable[[list[jax.Array]], Any]]:
    """Returns the distinct boxes that this process's devices need, which box goes where, and what makes a global array of the shards."""
    shape, sharding = tuple(target.value.shape), target.value.sharding
    trailing = info.shape[len(shape) :]  # Of the data of PRNG keys, which is not divided.
    boxes: dict[_BoxKey, int] = {}
    places = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        key = tuple(part.indices(extent)[:2] for part, extent in zip(index, shape, strict=True))
        places.append((device, boxes.setdefault(key, len(boxes))))

    def build(shards: list[jax.Array]) -> Any:
        dtype: Any = info.dtype
        if key_impl is not None:
            shards = [jax.random.wrap_key_data(shard, impl=key_impl) for shard in shards]
            dtype = target.value.dtype
        return jax.make_array_from_single_device_arrays(shape, sharding, shards, dtype=dtype)

    whole = tuple(slice(0, extent) for extent in trailing)
    return [(*(slice(start, stop) for start, stop in key), *whole) for key in boxes], places, build


def _host_builder(target: Leaf, leaf: StoredLeaf) -> Callable[[list[np.ndarray]], Any]:
    value = target.value
    kind = kind_of(value)

    def build(arrays: list[np.ndarray]) -> Any:
        (array,) = arrays
        if kind is Kind.BYTES:
            return array.tobytes()
        if kind in _SCALARS:
            return type(value)(array.item())
        if kind is Kind.NUMPY:
            array = array.astype(value.dtype, copy=False)  # A change of byte order at most.
            return array if array.flags.writeable and array.flags.owndata else array.copy()
        if kind is Kind.NUMPY_SCALAR:
            return array.astype(value.dtype, copy=False)[()]
        data = jax.device_put(array)
        keys = jax.random.wrap_key_data(data, impl=leaf.key_impl)
        place = _placement(value)
        return keys if place is None else jax.device_put(keys, place)

    return build
