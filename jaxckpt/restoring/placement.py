"""Reading a group of leaves, and putting each where its target lies.

All transfers are explicit, so that `jax.transfer_guard("disallow")` lets them pass, and none is a collective.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.boxes import Slices
from jaxckpt.restoring.conversion import Conversion
from jaxckpt.restoring.matching import Pair, Source
from jaxckpt.restoring.targets import sharding_of
from jaxckpt.restoring.validation import SCALARS
from jaxckpt.storage import compat
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf
from jaxckpt.tree.kinds import Kind, is_weak, kind_of

_BoxKey = tuple[tuple[int, int], ...]
_Build = Callable[[list[jax.Array]], Any]


def load_group(
    group: Sequence[Pair], infos: Mapping[str, ArrayInfo], stored: Source, conversions: Mapping[str, Conversion]
) -> dict[str, Any]:
    """Reads the boxes that a group of targets needs, in one batch, and builds their values.

    Args:
      group: validated pairs, all of array leaves.
      infos: of their arrays, by Orbax's name.
      stored: the checkpoint.
      conversions: of those whose numbers need one, by Orbax's name.

    Returns:
      New values by name of the leaf.
    """
    requests: list[tuple[str, Slices | None]] = []
    builders: list[tuple[Leaf, int, Callable[[np.ndarray], Any]]] = []
    # What goes to devices is placed in one batched transfer: whole arrays for one device, and shards.
    plain: list[tuple[Leaf, int]] = []
    divided: list[tuple[Leaf, int, list[tuple[Any, int]], _Build]] = []
    for target, leaf in group:
        value = target.value
        first = len(requests)
        if kind_of(value) in _ON_DEVICES:
            sharding = sharding_of(value)
            is_global = sharding is not None and not sharding.is_fully_addressable
            if is_global or (leaf.key_impl is None and sharding is not None and len(sharding.device_set) > 1):
                boxes, places, build = _sharded(target, infos[leaf.param_name], leaf.key_impl)
                requests += [(leaf.param_name, box) for box in boxes]
                divided.append((target, first, places, build))
                continue
            if leaf.key_impl is None:
                requests.append((leaf.param_name, None))
                plain.append((target, first))
                continue
        requests.append((leaf.param_name, None))
        builders.append((target, first, _host_builder(target, leaf)))
    arrays = stored.read(requests)
    if conversions:
        for position, (name, _) in enumerate(requests):
            if (conversion := conversions.get(name)) is not None:
                arrays[position] = conversion(arrays[position])
    values: dict[str, Any] = {}
    if plain:
        targets = [target for target, _ in plain]
        placed = _put(
            targets, [arrays[position] for _, position in plain], [_placement(each.value) for each in targets]
        )
        for target, array in zip(targets, placed, strict=True):
            values[target.name] = _as_weak(target.value, array)
    if divided:
        owners = [target for target, _, places, _ in divided for _ in places]
        devices = [device for _, _, places, _ in divided for device, _ in places]
        sources = [arrays[first + position] for _, first, places, _ in divided for _, position in places]
        shards = iter(_put(owners, sources, devices))
        for target, _, places, build in divided:
            mine = list(itertools.islice(shards, len(places)))
            values[target.name] = _as_weak(target.value, _about(target, build, mine))
    for target, position, finish in builders:
        values[target.name] = _about(target, finish, arrays[position])
    return values


_ON_DEVICES = (Kind.JAX, Kind.ABSTRACT)


def _put(owners: Sequence[Leaf], arrays: Sequence[np.ndarray], places: Sequence[Any]) -> list[jax.Array]:
    """Transfers arrays to their places, all in one batch. Where JAX refuses one, the error names its leaf."""
    try:
        placed: list[jax.Array] = jax.device_put(list(arrays), list(places))
    except Exception:
        for owner, array, place in zip(owners, arrays, places, strict=True):
            _about(owner, functools.partial(jax.device_put, array), place)
        raise
    return placed


def _about(target: Leaf, step: Callable[[Any], Any], argument: Any) -> Any:
    """Does a step for one leaf. What it raises gets the name of the leaf."""
    try:
        return step(argument)
    except Exception as error:
        found = leaf_errors.named(error, target.name)
        raise found from (None if found is error else error)


def _placement(value: Any) -> Any:
    """Where a target lies; None for an array that JAX is free to move (uncommitted), which stays free."""
    if kind_of(value) is Kind.JAX and not getattr(value, "committed", True):
        return None
    return sharding_of(value)


def _as_weak(target: Any, array: jax.Array) -> jax.Array:
    """A weakly typed array (such as a step counter that began as a Python int) stays one: promotion depends on it."""
    return compat.as_weak(array) if is_weak(target) else array


@functools.lru_cache(maxsize=4096)
def _place(device: Any, memory_kind: str | None) -> Any:
    """Returns what `jax.device_put` needs to place a shard: a device, or, for memory that is not its default one, a sharding."""
    if memory_kind is None or memory_kind == device.default_memory().kind:
        return device
    return jax.sharding.SingleDeviceSharding(device, memory_kind=memory_kind)


def _sharded(
    target: Leaf, info: ArrayInfo, key_impl: str | None
) -> tuple[list[Slices], list[tuple[Any, int]], Callable[[list[jax.Array]], Any]]:
    """Returns the distinct boxes that this process's devices need, which box goes where, and what makes a global array of the shards."""
    shape, dtype, sharding = tuple(target.value.shape), target.value.dtype, target.value.sharding
    # Of the data of PRNG keys, which is not divided.
    trailing = info.shape[len(shape) :]
    memory_kind = sharding.memory_kind
    boxes: dict[_BoxKey, int] = {}
    places = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        key = tuple(part.indices(extent)[:2] for part, extent in zip(index, shape, strict=True))
        places.append((_place(device, memory_kind), boxes.setdefault(key, len(boxes))))

    def build(shards: list[jax.Array]) -> Any:
        if key_impl is not None:
            shards = [jax.random.wrap_key_data(shard, impl=key_impl) for shard in shards]
        return jax.make_array_from_single_device_arrays(shape, sharding, shards, dtype=dtype)

    whole = tuple(slice(0, extent) for extent in trailing)
    return [(*(slice(start, stop) for start, stop in key), *whole) for key in boxes], places, build


def _host_builder(target: Leaf, leaf: StoredLeaf) -> Callable[[np.ndarray], Any]:
    value = target.value
    kind = kind_of(value)

    def build(array: np.ndarray) -> Any:
        if kind is Kind.BYTES:
            return array.tobytes()
        if kind in SCALARS:
            return type(value)(array.item())
        if kind is Kind.NUMPY:
            # A change of byte order at most.
            array = array.astype(value.dtype, copy=False)
            # Of a small array that stands in the index; a larger one has been read straight into what is returned.
            return array if array.flags.writeable else array.copy()
        if kind is Kind.NUMPY_SCALAR:
            return array.astype(value.dtype, copy=False)[()]
        data = jax.device_put(array)
        keys = jax.random.wrap_key_data(data, impl=leaf.key_impl)
        place = _placement(value)
        return keys if place is None else jax.device_put(keys, place)

    return build
