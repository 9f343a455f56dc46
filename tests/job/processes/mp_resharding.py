"""Programs that restore into other shardings, and on other numbers of processes."""

from typing import Any

import jax
import mp_values
import numpy as np
from mp_programs import options

import jaxckpt


def save_layouts(directory: str, io: int | None, dtype: str = "float32") -> str:
    tree = {
        layout: mp_values.spread(layout_value(seed, dtype), layout) for seed, layout in enumerate(mp_values.LAYOUTS)
    }
    keys = mp_values.keys(mp_values.sharding("rows"), 7)
    large = mp_values.spread(mp_values.full((480, 240), seed=9), "grid")
    return jaxckpt.Checkpoint(tree=tree, keys=keys, large=large).save(directory + "/ckpt", options(io))


def layout_value(seed: int, dtype: str) -> np.ndarray:
    return mp_values.full((mp_values.SIDE, mp_values.SIDE), dtype, seed)


def restore_layouts(
    path: str, io: int | None, dtype: str = "float32", layouts: Any = tuple(mp_values.LAYOUTS)
) -> list[str]:
    """Restores every saved layout into every other one."""
    from jax.sharding import SingleDeviceSharding

    keys = mp_values.keys(mp_values.sharding("rows"), 7)
    large = mp_values.full((480, 240), seed=9)
    for number, layout in enumerate(layouts):
        where = mp_values.sharding(layout)
        abstract = number % 2 == 0
        target: Any = jax.ShapeDtypeStruct((mp_values.SIDE,) * 2, np.dtype(dtype), sharding=where)
        if not abstract:
            target = mp_values.spread(np.zeros((mp_values.SIDE,) * 2, dtype), where)
        by_rows = layout in ("rows", "crossed", "replicated", "both", "partial", "shuffled", "some")
        other_keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=where) if by_rows else keys
        checkpoint = jaxckpt.Checkpoint(
            tree=dict.fromkeys(mp_values.LAYOUTS, target),
            keys=other_keys,
            large=jax.ShapeDtypeStruct(large.shape, np.float32, sharding=where),
        )
        checkpoint.restore(path, options(io)).assert_consumed()
        expected = {
            name: mp_values.spread(layout_value(seed, dtype), where) for seed, name in enumerate(mp_values.LAYOUTS)
        }
        mp_values.assert_same(checkpoint.tree, expected)
        mp_values.assert_same({"large": checkpoint.large}, {"large": mp_values.spread(large, where)})
        everything = jax.random.key_data(jax.random.split(jax.random.key(7), mp_values.SIDE))
        for shard in checkpoint.keys.addressable_shards:
            assert mp_values.bits(shard.data) == mp_values.bits(everything[shard.index[0]])
    # Into the memory of each host: numpy, and arrays of local devices.
    checkpoint = jaxckpt.Checkpoint(
        tree={
            "rows": np.zeros((mp_values.SIDE,) * 2, dtype),
            "grid": jax.ShapeDtypeStruct(
                (mp_values.SIDE,) * 2, np.dtype(dtype), sharding=SingleDeviceSharding(jax.local_devices()[-1])
            ),
        }
    )
    checkpoint.restore(path, options(io)).expect_partial()
    names = list(mp_values.LAYOUTS)
    for name in ("rows", "grid"):
        assert mp_values.bits(checkpoint.tree[name]) == mp_values.bits(layout_value(names.index(name), dtype)), name
    return list(checkpoint.tree)


def reshard_large(directory: str, io: int | None, saved: str, restored: str) -> tuple[int, int, int]:
    """Restores 64 MiB into another layout. Returns the bytes that this process read from files, the bytes of its part, and its chunks."""
    from jaxckpt.storage.arrays import counts

    array = np.arange(4096 * 4096, dtype=np.int32).reshape(4096, 4096)
    path = jaxckpt.Checkpoint(v=mp_values.spread(array, saved)).save(directory + "/ckpt", options(io))
    where = mp_values.sharding(restored)
    found = (0, 0, 0)
    # The first restore of a process reads modules of Python.
    for _ in range(2):
        target = jaxckpt.Checkpoint(v=jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where))
        chunks, before = counts.so_far().chunks, _bytes_read()
        target.restore(path, options(io)).assert_consumed()
        part = sum(shard.data.nbytes for shard in target.v.addressable_shards)
        found = (_bytes_read() - before, part, counts.so_far().chunks - chunks)
    for shard in target.v.addressable_shards:
        np.testing.assert_array_equal(shard.data, array[shard.index])
    return found


def _bytes_read() -> int:
    with open("/proc/self/io") as file:
        return int(file.readline().removeprefix("rchar: "))
