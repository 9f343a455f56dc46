"""What runs in the processes of the jobs. Nothing here imports pytest: it would be slow, in every process."""

import dataclasses
import os
import warnings
from typing import Any

import jax
import mp_values
import numpy as np

import jaxckpt


def index() -> int:
    return int(jax.process_index())


def options(io: Any = None, *, asynchronous: bool = False, **more: Any) -> jaxckpt.CheckpointOptions:
    knobs = {
        name: more.pop(name)
        for name in ("compression", "chunk_byte_size", "target_data_file_size", "read_once_per_job")
        if name in more
    }
    orbax = jaxckpt.OrbaxSettings(timeout_secs=more.pop("timeout_secs", 30), **knobs)
    return jaxckpt.CheckpointOptions(io, enable_async=asynchronous, orbax=orbax, **more)


def round_trip(directory: str, io: int | None, asynchronous: bool) -> tuple[str, str, int]:
    """Saves and writes everything there is, and restores and reads it into targets of two kinds."""
    given = options(io, asynchronous=asynchronous)
    tree = mp_values.values()
    with jaxckpt.Checkpoint(**tree) as checkpoint:
        saved = checkpoint.save(directory + "/ckpt", given)
        checkpoint.sync()
        written = checkpoint.write(directory + "/exact", given)
    for path, abstract in ((saved, False), (written, True)):
        target = jaxckpt.Checkpoint(**mp_values.blank(tree, abstract=abstract))
        status = target.restore(path, given) if path == saved else target.read(path, given)
        status.assert_consumed()
        assert status.missing == status.unexpected == ()
        assert target.save_counter == (1 if path == saved else 0)
        mp_values.assert_same({name: getattr(target, name) for name in tree}, tree)
    return saved, written, checkpoint.save_counter


# -- plain Orbax --------------------------------------------------------------------------------------------------------------------


STANDARD = ("arrays", "keys", "local", "numpy")  # Orbax's StandardCheckpointer refuses str.


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


# -- other shardings, other numbers of processes --------------------------------------------------------------------------------------


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


# -- what goes wrong, and where it is told --------------------------------------------------------------------------------------------


def outcome(function: Any, *args: Any, **kwargs: Any) -> tuple[list[str], str]:
    """The names of the kinds of the error that `function` raises, and its text; ([], its result) if it raises none."""
    try:
        return [], str(function(*args, **kwargs))
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        errno = getattr(error, "errno", None)
        return kinds, f"{error} {'' if errno is None else f'[errno {errno}]'}"


def simple(layout: str = "rows", seed: int = 0, **more: Any) -> jaxckpt.Checkpoint:
    array = mp_values.spread(mp_values.full((mp_values.SIDE, 4), seed=seed), layout)
    return jaxckpt.Checkpoint(w=array, n=np.arange(5) + seed, step=seed, **more)


def failing_restores(directory: str, io: int | None) -> dict[str, Any]:
    """Restores that fail: everywhere, and without a change; then one that does not."""
    given = options(io)
    path = simple(seed=1).save(directory + "/ckpt", given)
    found: dict[str, Any] = {}
    wide = jax.ShapeDtypeStruct((mp_values.SIDE, 5), np.float32, sharding=mp_values.sharding("rows"))
    half = jax.ShapeDtypeStruct((mp_values.SIDE, 4), np.float16, sharding=mp_values.sharding("rows"))
    lost = jax.ShapeDtypeStruct((mp_values.SIDE, 4), np.float32)
    for name, change in {
        "shape": {"w": wide},
        "dtype": {"w": half},
        "no sharding": {"w": lost},
        "host shape": {"n": np.zeros(4, int)},
        "kind": {"step": "text"},
        "object": {"step": Refusing()},
    }.items():
        target = simple()
        for key, value in change.items():
            setattr(target, key, value)
        before = {key: getattr(target, key) for key in ("w", "n", "step")}
        found[name] = outcome(target.restore, path, given)
        assert all(getattr(target, key) is value for key, value in before.items()), name
        assert target.save_counter == 0
    target = simple()
    found["missing"] = outcome(target.restore, directory + "/none", given)
    found["no suffix"] = outcome(target.restore, directory + "/ckpt", given)
    target.restore(path, given).assert_consumed()
    assert (target.step, target.save_counter) == (1, 1)
    return found


class Refusing:
    """Takes its state only on process 0."""

    def get_state(self) -> Any:
        return 0

    def set_state(self, state: Any) -> None:
        if jax.process_index() != 0:
            raise ValueError("this state is not for me")

    serialize = None
    deserialize = None


def partial_restores(directory: str, io: int | None) -> list[Any]:
    path = simple(seed=1, extra=np.arange(3), gone=mp_values.spread(np.zeros((24,), np.float32), "rows")).save(
        directory + "/ckpt", options(io)
    )
    target = simple(new=np.arange(2))
    found: list[Any] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = target.restore(path, options(io))
        found += [status.missing, status.unexpected]
        for check in (status.assert_consumed, status.assert_existing_objects_matched, status.assert_nontrivial_match):
            found.append(outcome(lambda check=check: check() and None))
        status.expect_partial()
    found.append(sorted(str(warning.message) for warning in caught))
    found.append((target.step, target.new.tolist()))
    return found


def restore_private(path: str, io: int | None, given: int | None) -> tuple[list[str], str]:
    """Process `io` has the checkpoint; the options say `given`."""
    simple(seed=1).write(path, options(io))
    return outcome(simple().read, path, options(given))


def save_simple(directory: str, io: int | None, count: int = 1) -> list[str]:
    checkpoint = simple()
    manager = jaxckpt.CheckpointManager(checkpoint, directory, None, options=options(io))
    found = []
    for step in range(1, count + 1):
        checkpoint.step = step
        found.append(manager.save())
    return found


def restore_damaged(directory: str, io: int | None) -> dict[str, Any]:
    """The latest of three checkpoints is damaged."""
    found: dict[str, Any] = {}
    target = simple()
    before = target.w
    manager = jaxckpt.CheckpointManager(target, directory, None, options=options(io))
    latest = manager.latest_checkpoint
    assert latest is not None
    found["restore"] = outcome(target.restore, latest, options(io))
    found["manager"] = outcome(manager.restore_or_initialize)
    assert target.w is before
    assert target.save_counter == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found["skip"] = manager.restore_or_initialize(skip_corrupt=True)
    found["warned"] = [str(warning.message)[:60] for warning in caught]
    found["state"] = target.step, target.save_counter, manager.save()
    return found


def different_hosts(directory: str, io: int | None) -> tuple[list[str], Any, Any]:
    """Host leaves that are not the same on every process."""
    me = jax.process_index()
    tree = {
        "n": np.arange(5) + me,
        "s": f"text {me}" * (me + 1),
        "b": b"x" * (3 + me),
        "step": me,
        "large": np.full(100_000, me),
        "local": jax.numpy.full(3, me),
        "same": np.arange(3),
        "object": mp_values.Iterator(me),
        "key": jax.random.key(me),
        "long": 2**63 + me if me else 5,
    }
    checkpoint = jaxckpt.Checkpoint(v=tree)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = checkpoint.save(directory + "/ckpt", options(io))
    names = sorted(str(warning.message) for warning in caught if warning.category is UserWarning)
    blank = {**tree, "object": mp_values.Iterator(77), "n": np.zeros(5, int), "local": jax.numpy.zeros(3, int)}
    target = jaxckpt.Checkpoint(v=blank)
    target.restore(path, options(io)).assert_consumed()
    got = dict(target.v)
    values = (
        got["n"].tolist(),
        got["s"],
        got["b"],
        got["step"],
        got["large"][0],
        got["local"].tolist(),
        got["object"].position,
    )
    return names, values, (got["same"].tolist(), jax.random.key_data(got["key"]).tolist(), got["long"])


# -- manager, callbacks, background ---------------------------------------------------------------------------------------------------


def manage(directory: str, io: int | None, asynchronous: bool) -> dict[str, Any]:
    """The life of a manager: retention, numbers, intervals, and what its files say."""
    called: list[str] = []
    given = options(io, asynchronous=asynchronous, experimental_write_callbacks=[called.append])
    checkpoint = simple()
    started: list[int] = []
    manager = jaxckpt.CheckpointManager(
        checkpoint,
        directory,
        2,
        step_counter=lambda: checkpoint.step,
        checkpoint_interval=10,
        init_fn=lambda: started.append(1),
        options=given,
    )
    found: dict[str, Any] = {"first": manager.restore_or_initialize(), "latest of none": manager.latest_checkpoint}
    found["iterated none"] = list(jaxckpt.checkpoints_iterator(directory, timeout=0, options=given))
    saved = []
    for step in range(0, 45, 5):
        checkpoint.step = step
        checkpoint.w = mp_values.spread(np.full((mp_values.SIDE, 4), step, np.float32), "rows")
        saved.append(manager.save())
    manager.sync()
    found |= {"started": started, "saved": saved, "counter": checkpoint.save_counter}
    found["explicit"] = manager.save(checkpoint_number=70, check_interval=False)  # The step was saved.
    checkpoint.step = 41
    found["numbered"] = manager.save(checkpoint_number=70, check_interval=False)
    manager.sync()
    found["after"] = checkpoint.save_counter, manager.checkpoints, manager.latest_checkpoint
    state = jaxckpt.get_checkpoint_state(directory, given)
    found["state"] = state.model_checkpoint_path, list(state.all_model_checkpoint_paths)
    found["latest"] = jaxckpt.latest_checkpoint(directory, given)
    found["iterated"] = list(jaxckpt.checkpoints_iterator(directory, timeout=0, options=given))
    found["called"] = called
    return found


def resume(directory: str, io: int | None) -> list[Any]:
    """A later job goes on where the one before ended."""
    checkpoint = simple()
    manager = jaxckpt.CheckpointManager(checkpoint, directory, 2, options=options(io))
    restored = manager.restore_or_initialize()
    assert all((np.asarray(shard.data) == 40).all() for shard in checkpoint.w.addressable_shards)
    saved = manager.save()
    return [restored, checkpoint.step, checkpoint.save_counter, saved, manager.checkpoints]


def manage_by_save(directory: str, io: int, asynchronous: bool) -> list[Any]:
    """A manager made without options, whose saves name the process that has the disk."""
    checkpoint = simple()
    manager = jaxckpt.CheckpointManager(checkpoint, directory, 2, init_fn=lambda: 1 / 0)
    given = options(io, asynchronous=asynchronous)
    seen = []
    for step in range(4):
        checkpoint.step = step
        manager.save(options=given)
        manager.sync()
        seen.append((manager.checkpoints, manager.latest_checkpoint))
    checkpoint.step = -1
    restored = manager.restore_or_initialize()
    return [seen, restored, checkpoint.step]


def failing_callbacks(directory: str, io: int | None, asynchronous: bool, count: int) -> list[Any]:
    """Callbacks that raise: the checkpoint is saved all the same, and every process learns of it."""
    called: list[str] = []

    def bad(path: str) -> None:
        called.append(path)
        raise KeyError(f"told to fail {len(called)}")

    given = options(io, asynchronous=asynchronous, experimental_write_callbacks=[bad] * count + [called.append])
    checkpoint = simple()

    def save() -> None:
        checkpoint.save(directory + "/ckpt", given)
        assert asynchronous
        checkpoint.sync()

    raised = outcome(save)
    latest = jaxckpt.latest_checkpoint(directory, options(0 if io is None else io))
    again = checkpoint.save(directory + "/ckpt", options(io))
    return [raised, called, latest, checkpoint.save_counter, again]


def train_while_saving(directory: str, io: int | None, saves: int = 3) -> int:
    """Steps with collectives and donated buffers go on while a save is under way; it has the values of its step."""
    import functools

    where = mp_values.sharding("rows")
    shape = (240, 512)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=where)
    def step(w: jax.Array) -> jax.Array:
        return w + 1 + 0 * jax.numpy.sum(w)

    w = mp_values.spread(np.zeros(shape, np.float32), "rows")
    host = np.zeros(1000)
    checkpoint = jaxckpt.Checkpoint(w=w, host=host)
    given = options(io, asynchronous=True)
    paths = []
    steps = 0
    for _ in range(saves):
        for _ in range(10):
            checkpoint.w = step(checkpoint.w)
            steps += 1
            host += 1
        paths.append((checkpoint.save(directory + "/ckpt", given), steps))
    for _ in range(10):
        checkpoint.w = step(checkpoint.w)
        host += 1
    checkpoint.sync()
    for path, expected in paths:
        target = jaxckpt.Checkpoint(w=jax.ShapeDtypeStruct(shape, np.float32, sharding=where), host=np.zeros(1000))
        target.restore(path, given).assert_consumed()
        assert all((np.asarray(shard.data) == expected).all() for shard in target.w.addressable_shards), (
            path,
            expected,
        )
        assert (target.host == expected).all()
    return steps


# -- disagreement ---------------------------------------------------------------------------------------------------------------------


def disagreements(directory: str, io: int | None) -> dict[str, Any]:
    """Calls that differ on process 1: refused everywhere, at once, with nothing done; the next one works."""
    odd = jax.process_index() == 1
    path = simple(seed=1).write(directory + "/good", options(io))
    found: dict[str, Any] = {}

    def differ(name: str, usual: Any, other: Any, given: Any = None, odd_given: Any = None, where: Any = None) -> None:
        checkpoint = other() if odd else usual()
        chosen = (odd_given if odd and odd_given is not None else given) or options(io)
        target = (where or "/bad/ckpt", "/bad/ckpt")[0 if odd else 1]
        for action in ("save", "write", "restore"):
            subject = directory + target if action != "restore" else (path + target.replace("/bad/ckpt", ""))
            raised = outcome(getattr(checkpoint, action), subject, chosen)
            found[f"{name}, {action}"] = raised
            assert checkpoint.save_counter == 0

    array = mp_values.spread(np.zeros((mp_values.SIDE, 4), np.float32), "rows")

    def with_w(w: Any) -> Any:
        return lambda: jaxckpt.Checkpoint(w=w, n=np.arange(5), step=0)

    differ("tree", simple, lambda: simple(extra=1))
    differ("names", simple, lambda: jaxckpt.Checkpoint(v=array, n=np.arange(5), step=0))
    differ("order", simple, lambda: jaxckpt.Checkpoint(n=np.arange(5), w=array, step=0))
    differ("host shape", simple, lambda: jaxckpt.Checkpoint(w=array, n=np.arange(6), step=0))
    differ("host dtype", simple, lambda: jaxckpt.Checkpoint(w=array, n=np.arange(5.0), step=0))
    differ("python kind", simple, lambda: jaxckpt.Checkpoint(w=array, n=np.arange(5), step=0.0))
    differ("shape", simple, with_w(mp_values.spread(np.zeros((mp_values.SIDE, 5), np.float32), "rows")))
    differ("dtype", simple, with_w(mp_values.spread(np.zeros((mp_values.SIDE, 4), np.int32), "rows")))
    differ("sharding", simple, with_w(mp_values.spread(np.zeros((mp_values.SIDE, 4), np.float32), "crossed")))
    differ("devices", simple, with_w(mp_values.spread(np.zeros((mp_values.SIDE, 4), np.float32), "shuffled")))
    differ("host or jax", simple, with_w(np.zeros((mp_values.SIDE, 4), np.float32)))
    differ("path", simple, simple, where="/bad/other")
    differ("device", simple, simple, odd_given=options(None if io is not None else 1))
    differ("another device", simple, simple, options(0), options(2))
    differ("async", simple, simple, odd_given=options(io, asynchronous=True))
    differ(
        "policy", simple, simple, odd_given=options(io, experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(5000))
    )
    differ("callbacks", simple, simple, odd_given=options(io, experimental_write_callbacks=[print]))
    differ("timeout", simple, simple, odd_given=options(io, timeout_secs=29))
    checkpoint = simple()
    call = checkpoint.restore if odd else checkpoint.save
    found["save or restore"] = outcome(call, path, options(io))
    refused = jaxckpt.Checkpoint(w=array, n=np.arange(5), step=object() if odd else 0)
    found["refused by one"] = outcome(refused.save, directory + "/bad/ckpt", options(io))
    assert jaxckpt.Checkpoint(w=array).save(directory + "/then/ckpt", options(io)) == directory + "/then/ckpt-1"
    found["left"] = os.path.exists(directory + "/bad")
    return found


def device_table(directory: str, devices: list[Any]) -> list[Any]:
    """Each device in turn: what happens, and where the checkpoint is then."""
    found: list[Any] = []
    for number, device in enumerate(devices):
        checkpoint = simple()
        try:
            given = options(jax.devices()[device[1]] if isinstance(device, tuple) else device)
            path = checkpoint.save(f"{directory}/{number}/ckpt", given)
        except ValueError as error:
            found.append((str(error), os.path.exists(f"{directory}/{number}"), checkpoint.save_counter))
        else:
            found.append(("", os.path.exists(path), checkpoint.save_counter))
    return found


# -- large arrays -------------------------------------------------------------------------------------------------------------------


def large_round_trip(directory: str, io: int, without_memory: list[int], rows: int = 512) -> tuple[int, int]:
    """Saves arrays whose pieces are large, and restores them as they were and laid out in another way.

    Args:
      directory: where to.
      io: the IO process.
      without_memory: processes that cannot open memory of another one.
      rows: a multiple of which the arrays have.

    Returns:
      How many boxes this process put into memory that it shares, at least in part, and how many answers it took from such memory.
    """
    from unittest import mock

    from jax.sharding import NamedSharding, PartitionSpec

    from jaxckpt.job.modes import local_memory, peer_answers, remote

    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    by_rows, by_columns, replicated = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x", None), (None, "x"), ())
    )
    side = rows * jax.device_count()
    whole = np.random.default_rng(0).integers(0, 255, (side, side), np.uint8)

    def state(*shardings: Any) -> dict[str, Any]:
        return {
            f"{name}_{number}": jax.make_array_from_callback(
                data.shape, sharding, lambda index, data=data: np.array(data[index], order="C")
            )
            for number, sharding in enumerate(shardings)
            for name, data in (("bytes", whole), ("halves", whole.view(np.float16)), ("tail", whole[:, : side // 2]))
        }

    counts = {"_fill": 0, "read": 0}

    def counted(owner: Any, name: str) -> Any:
        method = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return method(*arguments)

        return mock.patch.object(owner, name, call)

    offers, opens = peer_answers.PeerAnswers._share, local_memory.open_slots
    if jax.process_index() in without_memory:
        # As in a container of its own, where ids of processes mean others.
        offers, opens = (
            _offer_of_somebody_else,
            lambda offer: local_memory.open_slots(dataclasses.replace(offer, pid=1)),
        )
    with (
        mock.patch.object(remote, "open_slots", opens),
        mock.patch.object(peer_answers.PeerAnswers, "_share", offers),
        counted(peer_answers.PeerAnswers, "_fill"),
        counted(local_memory.OpenedSlots, "read"),
    ):
        saved = state(by_rows, by_columns, replicated)
        with jaxckpt.Checkpoint(model=saved) as checkpoint:
            path = checkpoint.save(directory + "/large", options(io, asynchronous=io == 0))
        for targets in (state(by_rows, by_columns, replicated), state(by_columns, replicated, by_rows)):
            blank = {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
                for name, leaf in targets.items()
            }
            target = jaxckpt.Checkpoint(model=blank)
            target.restore(path, options(io)).assert_consumed()
            mp_values.assert_same(target.model, targets)
    return counts["_fill"], counts["read"]


def _offer_of_somebody_else(self: Any, request: Any) -> Any:
    """What a process says that has the same number as another one, because it lives in a container of its own."""
    from jaxckpt.job.protocol import messages, parts

    return messages.Memory(parts.SlotOffer(1, 8, "00" * 32, 4, 1 << 20)), None


# -- the documentation --------------------------------------------------------------------------------------------------------------


def _zeros() -> jax.Array:
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    return jax.make_array_from_callback(
        (jax.device_count(), 3), sharding, lambda index: np.zeros((jax.device_count(), 3), np.float32)[index]
    )


def example_of_the_documentation(directory: str) -> list[tuple[int, float]]:
    """Runs the first example of docs/processes.md twice, for more steps the second time; returns steps and states at the ends."""
    import re
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "processes.md").read_text(encoding="utf-8")
    (code, *_) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "/local/disk/of/process/2" in code
    found = []
    for steps in (2, 5):
        names: dict[str, Any] = {
            "jaxckpt": jaxckpt,
            "state": {"w": _zeros()},
            "steps": steps,
            "train_step": lambda state: {"w": state["w"] + 1},
        }
        exec(code.replace("/local/disk/of/process/2", directory), names)
        checkpoint = names["checkpoint"]
        found.append((checkpoint.step, float(checkpoint.state["w"].addressable_shards[0].data.ravel()[0])))
    return found


# -- many small arrays -------------------------------------------------------------------------------------------------------------


def many_small(directory: str, io: int | None, count: int) -> tuple[int, set[bool]]:
    """Saves and restores many small arrays that are divided over all processes.

    Returns:
      How many messages this process sent in the save, and whether arrays are one chunk each in the checkpoint, as its writer sees it.
    """
    from unittest import mock

    from jax.sharding import NamedSharding, PartitionSpec

    from jaxckpt.job.protocol.link import Link
    from jaxckpt.storage.opened import StoredCheckpoint

    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), (None, "x")))
    state = {}
    for number in range(count):
        data = np.full((jax.device_count(), jax.device_count() * 2), number, np.float32) + np.arange(
            2 * jax.device_count()
        )
        sharding = columns if number % 3 == 0 else rows
        state[f"leaf{number:04d}"] = jax.make_array_from_callback(
            data.shape, sharding, lambda index, data=data: np.array(data[index], order="C")
        )
    sent = 0
    send = Link.send

    def counted(link: Link, *arguments: Any, **more: Any) -> None:
        nonlocal sent
        sent += 1
        send(link, *arguments, **more)

    checkpoint = jaxckpt.Checkpoint(model=state)
    with mock.patch.object(Link, "send", counted):
        path = checkpoint.write(directory + f"/small{io}", options(io))
    messages = sent
    blank = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in state.items()}
    target = jaxckpt.Checkpoint(model=blank)
    target.restore(path, options(io)).assert_consumed()
    mp_values.assert_same(target.model, state)
    whole = set()
    if jax.process_index() == (io or 0):
        stored = StoredCheckpoint(path, 30)
        infos = stored.infos([leaf for leaf in stored.tree.leaves if leaf.param_name.startswith("model.")])
        assert len(infos) == count
        whole = {info.chunk_shape == info.shape for info in infos.values()}
    return messages, whole


# -- what calls leave behind --------------------------------------------------------------------------------------------------------


def left_behind(directory: str, io: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Saves and restores large arrays without garbage collection; returns descriptors and shared mappings before and after."""
    import gc

    from jax.sharding import NamedSharding, PartitionSpec

    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
    data = np.random.default_rng(0).random((jax.device_count() * 300, 256), np.float32)
    array = jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])
    checkpoint = jaxckpt.Checkpoint(model={"w": array, "v": array + 1})

    def resources() -> tuple[int, int]:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            return len(os.listdir("/proc/self/fd")), sum("memfd:jaxckpt" in line for line in maps)

    def both() -> None:
        path = checkpoint.write(directory + "/large", options(io))
        checkpoint.read(path, options(io)).assert_consumed()

    both()
    gc.collect()
    gc.disable()
    try:
        before = resources()
        for _ in range(4):
            both()
        return before, resources()
    finally:
        gc.enable()


def many_chunks_at_once(directory: str, io: int) -> tuple[int, int]:
    """Saves arrays of hundreds of chunks that lie on other processes, the threads that write them interrupting each other all the time.

    The peers share fewer slots than there are threads, and a chunk takes several of them. At times a chunk finds no slot.

    Returns:
      How many chunks this process asked for in slots, and how many it had to ask for through the connection.
    """
    import sys
    from unittest import mock

    from jax.sharding import NamedSharding, PartitionSpec

    from jaxckpt.job.modes import fetcher, peer_answers
    from jaxckpt.job.protocol import messages

    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
    data = np.random.default_rng(0).random((jax.device_count() * 30, 70_000), np.float32)
    array = jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])
    asked = {messages.Fill: 0, messages.AskPieces: 0}
    ask = fetcher.Center.ask

    def counted(center: Any, process: int, request: Any, *rest: Any, **more: Any) -> Any:
        if type(request) in asked:
            asked[type(request)] += 1
        return ask(center, process, request, *rest, **more)

    settings = options(io, chunk_byte_size=70_000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with (
            mock.patch.object(fetcher.Center, "ask", counted),
            mock.patch.object(peer_answers, "_SLOTS", 1),
            mock.patch.object(peer_answers, "SLOT_BYTES", 32 << 10),
        ):
            for number in range(6):
                path = jaxckpt.Checkpoint(w=array).write(f"{directory}/many{number}", settings)
    finally:
        sys.setswitchinterval(interval)
    target = jaxckpt.Checkpoint(w=jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding))
    target.restore(path, settings).assert_consumed()
    mp_values.assert_same({"w": target.w}, {"w": array})
    return asked[messages.Fill], asked[messages.AskPieces]


# -- damage -------------------------------------------------------------------------------------------------------------------------


def exchanged(directory: str, io: int) -> tuple[str, str, float]:
    """Puts the data file of one checkpoint in the place of another's, and restores that one; returns what was raised, and the target."""
    import shutil
    from pathlib import Path

    from jax.sharding import NamedSharding, PartitionSpec

    # One piece, and so one data file: which pieces get into the same one is a matter of chance.
    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec())
    shape = (12, 50_000)

    def filled(value: float) -> jax.Array:
        return jax.make_array_from_callback(shape, sharding, lambda index: np.full(shape, value, np.float32)[index])

    for value in (1.0, 2.0):
        jaxckpt.Checkpoint(w=filled(value)).write(f"{directory}/{value:g}", options(io))
    if jax.process_index() == io:
        target, source = (max(Path(directory, name, "d").iterdir(), key=os.path.getsize) for name in ("1", "2"))
        assert target.stat().st_size == source.stat().st_size
        shutil.copyfile(source, target)
    checkpoint = jaxckpt.Checkpoint(w=filled(0))
    try:
        checkpoint.restore(f"{directory}/1", options(io))
    except jaxckpt.CheckpointError as error:
        raised = type(error).__name__, str(error)
    else:
        raised = "", ""
    checkpoint_of_two = jaxckpt.Checkpoint(w=filled(0))
    checkpoint_of_two.restore(f"{directory}/2", options(io)).assert_consumed()
    assert float(checkpoint_of_two.w.addressable_shards[0].data[0, 0]) == 2
    return (*raised, float(checkpoint.w.addressable_shards[0].data[0, 0]))


# -- NNX ----------------------------------------------------------------------------------------------------------------------------


def nnx_values(directory: str, io: int | None) -> list[str]:
    """Saves and restores NNX Variables by their raw values, nested; then restores one Variable under two names.

    Returns:
      What is raised where the two differ in what one process holds.
    """
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    class Scaled(nnx.Param):
        def get_value(self, **kwargs: Any) -> Any:
            return super().get_value(**kwargs).astype(jnp.float32) * 3

    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
    shape = (jax.device_count() * 2, 3)

    def filled(value: float, last: float) -> nnx.Dict:
        """A module, the last rows of whose array have another value."""
        array = np.full(shape, value, jnp.bfloat16)
        array[-1] = last
        spread = jax.make_array_from_callback(shape, sharding, lambda index: array[index])
        return nnx.Dict(w=Scaled(spread, eager_sharding=False), n=nnx.Variable(np.full(2, value)))

    def local(module: nnx.Dict) -> list[float]:
        raw = module.w.get_raw_value()
        assert raw.dtype == jnp.bfloat16
        return sorted({float(x) for shard in raw.addressable_shards for x in np.ravel(np.asarray(shard.data))})

    saved = jaxckpt.Checkpoint(part=jaxckpt.Checkpoint(a=filled(1, 1), s=nnx.state(filled(2, 2))))
    path = saved.save(directory + "/nested", options(io))
    module, state = filled(5, 5), nnx.state(filled(6, 6))
    part = jaxckpt.Checkpoint(a=module, s=state)
    jaxckpt.Checkpoint(part=part).restore(path, options(io)).assert_consumed()
    assert local(module) == [1]
    assert local(part.s) == [2]
    assert local(state) == [6]
    assert float(module.n.get_value()[0]) == 1

    outcomes = []
    for name, other in (("same", 1), ("differ", 2)):
        both = jaxckpt.Checkpoint(a=filled(1, 1), b=nnx.state(filled(1, other)))
        path = both.save(f"{directory}/{name}", options(io))
        module = filled(5, 5)
        try:
            jaxckpt.Checkpoint(a=module, b=nnx.state(module)).restore(path, options(io)).assert_consumed()
        except (ValueError, jaxckpt.ProcessError) as error:
            outcomes.append(f"{type(error).__name__}: {error}")
            assert local(module) == [5]
        else:
            outcomes.append("")
            assert local(module) == [1]
    return outcomes


# -- checkpoints of TensorFlow ----------------------------------------------------------------------------------------------------


def restore_from_tensorflow(prefix: str, io: int | None) -> tuple[list[Any], list[str]]:
    """Restores arrays and scalars, under their own names and under other names."""
    target = jaxckpt.Checkpoint(
        model={"layers": {"0": {"kernel": mp_values.spread(np.zeros((4, 8), np.float32), "replicated")}}},
        optimizer={"_momentums": {"1": np.zeros((4, 8), np.float32)}, "_iterations": np.int64(0)},
        step=0,
    )
    status = target.restore(prefix, options(io))
    status.assert_existing_objects_matched()
    kernel = np.asarray(target.model["layers"]["0"]["kernel"].addressable_data(0))
    found = [kernel.tolist(), target.optimizer["_momentums"]["1"].tolist(), int(target.optimizer["_iterations"])]
    return [*found, target.step, target.save_counter], sorted(status.unexpected)


# -- bytes moved --------------------------------------------------------------------------------------------------------------------


def save_replicas(directory: str, io: int | None, layout: str, **more: Any) -> str:
    """Saves three arrays of which every process has a replica, or every second process the same half."""
    tree = {
        name: mp_values.spread(mp_values.full((512, 512), seed=seed), layout)
        for seed, name in enumerate(("a", "b", "c"))
    }
    tree["keys"] = mp_values.keys(mp_values.sharding(layout), 7)
    path = jaxckpt.Checkpoint(tree=tree).save(directory + "/ckpt", options(io, **more))
    target = jaxckpt.Checkpoint(**mp_values.blank({"tree": tree}, abstract=False))
    target.restore(path, options(io)).assert_consumed()
    mp_values.assert_same({"tree": target.tree}, {"tree": tree})
    return path


def save_replicas_of_accelerators(directory: str, layout: str) -> str:
    """Takes the path of accelerators, which cuts on the device what has to travel to the host. There is no accelerator to test with."""
    from unittest import mock

    slices = []
    cut = jax.lax.slice

    def counted(*arguments: Any) -> Any:
        slices.append(arguments[0].shape)
        return cut(*arguments)

    with mock.patch.object(jax, "default_backend", return_value="gpu"), mock.patch.object(jax.lax, "slice", counted):
        path = save_replicas(directory, None, layout)
    assert (512, 512) in slices
    return path


def save_rows(directory: str, io: int | None, layout: str, **more: Any) -> str:
    tree = {"a": mp_values.spread(mp_values.full((2048, 1024), seed=1), layout), "small": np.arange(1000.0)}
    tree["b"] = mp_values.spread(mp_values.full((1024, 1024), seed=2), layout)
    return jaxckpt.Checkpoint(tree=tree).save(directory + "/ckpt", options(io, **more))


def bytes_read_by_restore(path: str, io: int | None, layout: str, **more: Any) -> int:
    """Returns how many bytes of files this process reads in a restore, by what the kernel counts. Messages do not count."""

    def restore() -> int:
        target = jaxckpt.Checkpoint(
            tree={
                "a": jax.ShapeDtypeStruct((2048, 1024), np.float32, sharding=mp_values.sharding(layout)),
                "small": np.zeros(1000),
                "b": jax.ShapeDtypeStruct((1024, 1024), np.float32, sharding=mp_values.sharding(layout)),
            }
        )
        before = read_bytes()
        target.restore(path, options(io, **more)).assert_consumed()
        after = read_bytes()
        mp_values.assert_same(
            {"a": target.tree["a"], "b": target.tree["b"]},
            {
                "a": mp_values.spread(mp_values.full((2048, 1024), seed=1), layout),
                "b": mp_values.spread(mp_values.full((1024, 1024), seed=2), layout),
            },
        )
        assert (target.tree["small"] == np.arange(1000.0)).all()
        return after - before

    # Modules are read in the first one.
    restore()
    return restore()


def read_bytes() -> int:
    with open("/proc/self/io", encoding="ascii") as file:
        return int(file.read().split("rchar:")[1].split()[0])
