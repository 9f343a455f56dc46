"""Programs that save for plain Orbax, read with it, or restore what it saved."""

import os
import warnings
from typing import Any

import jax
import mp_values
import numpy as np
from mp_programs import options

import jaxckpt

# Orbax's StandardCheckpointer refuses str.
STANDARD = ("arrays", "keys", "local", "numpy")


def save_for_orbax(directory: str, io: int | None, **more: Any) -> str:
    tree = mp_values.values()
    arrays = {name: tree[name] for name in STANDARD}
    jaxckpt.Checkpoint(**arrays).save(directory + "/arrays", options(io, **more))
    return jaxckpt.Checkpoint(**tree).save(directory + "/ckpt", options(io, **more))


def as_orbax_reads(leaf: Any) -> Any:
    """What Orbax makes of a leaf if it is not told better."""
    if mp_values.is_key(leaf):
        return np.asarray(jax.random.key_data(leaf))
    if isinstance(leaf, bytes):
        return np.frombuffer(leaf, np.uint8)
    return np.asarray(leaf) if not isinstance(leaf, (str, bool, int, float, type(None))) else leaf


def orbax_trees() -> dict[str, Any]:
    """The values that any program can name, without objects that only jaxckpt knows."""
    from jax.sharding import SingleDeviceSharding

    first = SingleDeviceSharding(jax.local_devices()[0])
    keys = {
        "one": jax.random.key(8, impl="rbg"),
        "local": jax.random.key(3),
        "locals": jax.random.split(jax.random.key(4, impl="rbg"), (2, 3)),
        **{layout: jax.random.split(jax.random.key(7), mp_values.SIDE) for layout in ("rows", "replicated", "crossed")},
    }
    return {
        "arrays": mp_values.arrays(),
        "keys": jax.tree.map(lambda key: jax.device_put(key, first), keys),
        "local": {
            "one": np.arange(4, dtype=np.int32),
            "bfloat16": mp_values.full((3, 2), "bfloat16", 30),
            "sharded": mp_values.full((4, 6), seed=31),
            "scalar": np.float32(3.5)[...],
        },
        **{name: mp_values.host_values()[name] for name in ("numpy", "python")},
    }


def assert_orbax_same(found: Any, expected: Any, name: str = "") -> None:
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert_orbax_same(found[key], value, f"{name}/{key}")
        return
    left, right = as_orbax_reads(found), as_orbax_reads(expected)
    if isinstance(right, str):
        assert left == right, name
        return
    left, right = np.asarray(left), np.asarray(right)
    assert left.shape == right.shape, (name, left.shape, right.shape)
    if isinstance(expected, (np.ndarray, jax.Array)) and not mp_values.is_key(expected):
        assert mp_values.bits(left) == mp_values.bits(right), (name, left, right)
    else:
        np.testing.assert_array_equal(left, right, err_msg=name)


def read_with_orbax(path: str) -> int:
    """Reads a checkpoint in one process with what Orbax has to offer, on all of its devices."""
    import orbax.checkpoint as ocp
    from jax.sharding import NamedSharding
    from orbax.checkpoint import v1

    warnings.simplefilter("ignore")
    expected = orbax_trees()
    line = mp_values.mesh("line")
    n = jax.device_count()

    def target(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return leaf
        if not isinstance(leaf, np.ndarray) or leaf.dtype.byteorder == ">" or leaf.dtype.itemsize == 8:
            return as_orbax_reads(leaf)
        axis = mp_values.P("x") if leaf.ndim and leaf.shape[0] % n == 0 and leaf.shape[0] else mp_values.P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(line, axis))

    assert_orbax_same(ocp.PyTreeCheckpointer().restore(path), expected)
    assert_orbax_same(v1.load(path), expected)
    whole = ocp.PyTreeCheckpointer().restore(path)
    assert "save_counter" not in whole
    asked = jax.tree.map(target, {**whole, **expected}, is_leaf=lambda leaf: leaf is None)
    assert_orbax_same(v1.load(path, asked), expected)
    with ocp.StandardCheckpointer() as checkpointer:
        standard = {name: asked[name] for name in STANDARD}
        restored = checkpointer.restore(os.path.join(os.path.dirname(path), "arrays-1"), standard)
    assert_orbax_same(restored, {name: expected[name] for name in standard})
    rows = restored["arrays"]["rows"]["w"]
    assert len(rows.addressable_shards) == n
    arguments = ocp.checkpoint_utils.construct_restore_args(asked)
    assert_orbax_same(ocp.PyTreeCheckpointer().restore(path, item=asked, restore_args=arguments), expected)
    assert jaxckpt.verify(path).ok
    reader = jaxckpt.load_checkpoint(path)
    assert_orbax_same(
        reader.tree(), {name: expected[name] for name in ("arrays", "local", "numpy")} | {"save_counter": 1}
    )
    assert reader.get_tensor("python/str") == expected["python"]["str"]
    assert reader.get_tensor("python/bytes").tobytes() == expected["python"]["bytes"]
    assert reader.get_tensor("python/large") == expected["python"]["large"]
    assert jaxckpt.list_variables(path)
    return n


class ByTopName:
    """A sharding callback in TensorFlow's form: a group for every top-level name."""

    description = "by top-level name"

    def __call__(self, shardable_tensors: Any) -> Any:
        groups: dict[str, Any] = {}
        for each in shardable_tensors:
            assert (each.device.job, each.device.task) == ("worker", jax.process_index())
            group = groups.setdefault(each.checkpoint_key.split("/")[0], {})
            group.setdefault(each.checkpoint_key, {})[each.slice_spec] = each.tensor
        return list(groups.values())


def assert_grouped(path: str) -> None:
    """Asserts that data files hold chunks of one top-level name each, and that no chunk stands in the index."""
    from jaxckpt._lib.deadline import Deadline
    from jaxckpt.storage.ocdbt.index import Index
    from jaxckpt.storage.ocdbt.model import Place
    from jaxckpt.storage.stores.inside import Inside

    names: dict[str, set[str]] = {}
    for key, value in Index(Inside(path), Deadline(60.0, "Reading").left).entries():
        if not key.endswith(b"zarr.json"):
            assert isinstance(value, Place), key
            names.setdefault(value.file, set()).add(key.decode().split(".")[0])
    assert len(names) > 3
    assert all(len(tops) == 1 for tops in names.values()), names


def largest_file(path: str) -> int:
    """The size of the largest file of array data."""
    return max(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
        if not name.startswith("_") and name != "zarr.json" and "array_metadatas" not in folder
    )


def save_with_orbax(path: str) -> None:
    """One process saves with plain Orbax, v0 and v1."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import v1

    tree = plain_tree()
    tree = {**tree, "w": mp_values.spread(tree["w"], "rows"), "key": jax.random.key(5)}
    ocp.PyTreeCheckpointer().save(path + "/v0", tree)
    v1.save(path + "/v1", tree)


def plain_tree() -> dict[str, Any]:
    return {"w": mp_values.full((mp_values.SIDE, 6), seed=1), "n": mp_values.full((5,), seed=2), "step": 7, "s": "text"}


def restore_what_orbax_saved(path: str, io: int | None) -> None:
    expected = plain_tree()
    for layout in ("rows", "crossed", "replicated", "columns")[: 3 if jax.device_count() != 6 else 4]:
        for version in ("v0", "v1"):
            where = mp_values.sharding(layout)
            target = jaxckpt.Checkpoint(
                w=jax.ShapeDtypeStruct(expected["w"].shape, np.float32, sharding=where),
                n=np.zeros(5, np.float32),
                step=0,
                s="",
                key=jax.random.key(0),
            )
            target.read(f"{path}/{version}", options(io)).assert_consumed()
            mp_values.assert_same({"w": target.w}, {"w": mp_values.spread(expected["w"], where)})
            assert mp_values.bits(target.n) == mp_values.bits(expected["n"])
            assert (target.step, target.s) == (7, "text")
            assert mp_values.same(target.key, jax.random.key(5))


def restore_beside_an_empty_container(path: str, io: int | None, extents: tuple[int, ...]) -> list[list[float]]:
    """Restores arrays that come after an empty container with the name of another array."""
    target = jaxckpt.Checkpoint(c={str(each): np.zeros(each, np.float32) for each in extents})
    target.read(path, options(io)).assert_existing_objects_matched()
    return [target.c[str(each)][:2].tolist() for each in extents]
