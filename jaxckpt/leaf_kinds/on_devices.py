"""Arrays on devices: how they are described, and how new arrays are put where their targets lie.

All transfers are explicit, so `jax.transfer_guard("disallow")` allows them. A transfer is never a collective operation.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.boxes import Slices
from jaxckpt.leaf_kinds.kind import WHOLE, Delivery, Texts
from jaxckpt.storage import compat
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.tree.flatten import Leaf

_SINGLE = jax.sharding.SingleDeviceSharding


def sharding_of(value: Any) -> Any:
    """Returns the sharding (how an array is divided over devices) of an array, abstract or not; None if it does not have one."""
    return getattr(value, "sharding", None)


def is_weak(value: Any) -> bool:
    """Whether an array, abstract or not, is weakly typed; arrays of PRNG keys never are."""
    return getattr(value, "weak_type", False)


def form(value: Any) -> tuple[Any, ...]:
    """Returns what the description of an array depends on; see `LeafKind.form`. Equal shardings need not be the same object."""
    return value.shape, value.dtype, is_weak(value), sharding_of(value)


def describe(kind: str, value: Any, texts: Texts) -> str:
    """Returns the description of an array. Every process that has the same array gets the same text.

    Args:
      kind: name of the array's kind.
      value: the array, abstract or not.
      texts: the cache of descriptions.
    """
    # Thousands of leaves share a few texts, which take longer to make than to look up. Shardings are slow to hash, so their ids are used.
    # The cache keeps each sharding alive, so that another object cannot get its id: a PRNG key makes a new one at each access.
    sharding = sharding_of(value)
    key = kind, value.shape, value.dtype, is_weak(value), id(sharding)
    found = texts.known.get(key)
    if found is None:
        found = texts.known[key] = sharding, _text(kind, value, sharding, texts)
    return found[1]


def _text(kind: str, value: Any, sharding: Any, texts: Texts) -> str:
    shape = tuple(value.shape)
    # An array on devices of this process alone counts as a host leaf: each process has its own, so the place is not compared.
    where = ""
    if sharding is not None and not sharding.is_fully_addressable:
        if (problem := _parts_of_sums(sharding)) is not None:
            # The caller adds the name of the leaf.
            raise ValueError(problem)
        where = f", on {texts.place(sharding, shape)}"
    # Programs that differ in weak types compute with different dtypes.
    weak = " (weak)" if is_weak(value) else ""
    return f"{kind} of shape {shape}, dtype {value.dtype}{weak}{where}"


def delivery(value: Any, sharding: Any) -> Delivery:
    """Returns how a stored array becomes an array with the target's sharding. Called for thousands of leaves.

    Args:
      value: the target; not an array of PRNG keys.
      sharding: where the new array must lie; None to let JAX choose (and later move it).
    """
    return _delivery(sharding, is_weak(value))


@functools.lru_cache(maxsize=512)
def _delivery(sharding: Any, weak: bool) -> Delivery:
    return Delivery(WHOLE, ((sharding, 0),), _weak if weak else _only)


def _only(arrays: Sequence[Any]) -> Any:
    return arrays[0]


def _weak(arrays: Sequence[Any]) -> Any:
    """Makes the array weakly typed like its target, such as a step counter that began as a Python int: dtype promotion depends on it."""
    return compat.as_weak(arrays[0])


def divided_delivery(value: Any, info: ArrayInfo, key_impl: str | None) -> Delivery:
    """Returns how the shards of this process are read, each distinct box once, and assembled into an array.

    Args:
      value: the target, which has a sharding.
      info: the metadata of the stored array.
      key_impl: implementation of PRNG keys, whose data is stored; None for other arrays.
    """
    shape = tuple(value.shape)
    # The data of PRNG keys has further axes, which are not divided.
    trailing = info.shape[len(shape) :]
    # JAX compares dtypes of keys by what they are, so the implementation of the keys is part of the question.
    return _divided_delivery(shape, value.dtype, value.sharding, is_weak(value), trailing, key_impl)


@functools.lru_cache(maxsize=512)
def _divided_delivery(
    shape: tuple[int, ...], dtype: Any, sharding: Any, weak: bool, trailing: tuple[int, ...], key_impl: str | None
) -> Delivery:
    """Returns the delivery for all targets of one shape, dtype and sharding: thousands of leaves have the same ones."""
    memory_kind = sharding.memory_kind
    positions: dict[tuple[tuple[int, int], ...], int] = {}
    places = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        box = tuple(part.indices(extent)[:2] for part, extent in zip(index, shape, strict=True))
        places.append((_place(device, memory_kind), positions.setdefault(box, len(positions))))
    rest = tuple(slice(0, extent) for extent in trailing)
    boxes: list[Slices] = [(*(slice(start, stop) for start, stop in box), *rest) for box in positions]

    def build(shards: Sequence[Any]) -> Any:
        if key_impl is not None:
            shards = [jax.random.wrap_key_data(shard, impl=key_impl) for shard in shards]
        array = jax.make_array_from_single_device_arrays(shape, sharding, list(shards), dtype=dtype)
        return compat.as_weak(array) if weak else array

    devices = [place for place, _ in places]
    if key_impl is not None or not all(isinstance(device, jax.Device) for device in devices):
        return Delivery(boxes, places, build)
    in_one_step = compat.assembler(shape, dtype, sharding, devices)
    if in_one_step is None or (not weak and len(boxes) == len(places)):
        # Each device gets a box of its own, and they are in the order of the devices.
        return Delivery(boxes, places, build, in_one_step)

    def assemble(arrays: Sequence[np.ndarray]) -> Any:
        array = in_one_step([arrays[position] for _, position in places])
        return compat.as_weak(array) if weak else array

    return Delivery(boxes, places, build, assemble)


def require_whole(leaf: Leaf, sharding: Any) -> None:
    """Raises ValueError, with the leaf's name, if each device holds a part of a sum (the sharding is ``unreduced``)."""
    if (problem := _parts_of_sums(sharding)) is not None:
        raise ValueError(f"{leaf.name}: {problem}")


def _parts_of_sums(sharding: Any) -> str | None:
    axes = getattr(getattr(sharding, "spec", None), "unreduced", None)
    if not axes:
        return None
    return (
        f"the sharding is unreduced over {', '.join(sorted(map(str, axes)))}: the devices hold parts of a sum, and a checkpoint has the "
        "sum only. To save the array, add up its parts first: jax.sharding.reshard(array, PartitionSpec(...)). As a target of a restore, "
        "give it another sharding."
    )


def is_divided(sharding: Any) -> bool:
    """Whether an array of this sharding is assembled from shards: it lies on several devices, or on devices of other processes."""
    if sharding is None:
        return False
    if not sharding.is_fully_addressable:
        return True
    # The type is checked first, because JAX makes a new set of devices at each access.
    return type(sharding) is not _SINGLE and len(sharding.device_set) > 1


@functools.lru_cache(maxsize=4096)
def _place(device: Any, memory_kind: str | None) -> Any:
    """Returns the destination of a shard for `jax.device_put`: a device, or a sharding if the memory is not the device's default one."""
    if memory_kind is None or memory_kind == device.default_memory().kind:
        return device
    return jax.sharding.SingleDeviceSharding(device, memory_kind=memory_kind)
