"""What targets say of their new values, in jobs of several processes. Nothing here imports pytest."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import mp_values
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mp_programs import options, outcome

import jaxckpt
from jaxckpt import storage
from jaxckpt.storage import compat

ROWS = np.arange(mp_values.SIDE * 4, dtype=np.float32).reshape(mp_values.SIDE, 4)


def put(value: Any, sharding: Any, *, weak: bool = False) -> jax.Array:
    array = mp_values.spread(np.asarray(value), sharding)
    return compat.as_weak(array) if weak else array


def assert_local(found: jax.Array, expected: np.ndarray) -> None:
    for shard in found.addressable_shards:
        assert np.asarray(shard.data).tobytes() == np.ascontiguousarray(expected[shard.index]).tobytes()


def reduced_axes(directory: str, io: int | None) -> str:
    """Arrays with reduced axes come back; returns what is said of a target with unreduced ones."""
    mesh = jax.make_mesh((jax.device_count(), 1), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("x", reduced={"y"}))
    value = put(ROWS, sharding)
    path = jaxckpt.Checkpoint(w=value).write(f"{directory}/reduced", options(io))
    target = jaxckpt.Checkpoint(w=jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding))
    target.read(path, options(io)).assert_consumed()
    assert (target.w.sharding, target.w.aval) == (sharding, value.aval)
    assert_local(target.w, ROWS)
    parts = NamedSharding(mesh, PartitionSpec(unreduced={"y"}))
    target.w = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=parts)
    try:
        target.read(path, options(io))
    except ValueError as error:
        return str(error)
    return ""


def weak_pinned_and_abstract(directory: str, io: int | None) -> None:
    """Weak types, memory kinds and abstract meshes stay, without a collective and with explicit transfers only."""
    rows = mp_values.sharding("rows")
    places = {"rows": rows, "replicated": mp_values.sharding("replicated")}
    pinned = {name: place.with_memory_kind("pinned_host") for name, place in places.items()}
    values = {
        "weak": {name: put(ROWS, place, weak=True) for name, place in places.items()},
        "step": put(np.int32(7), places["replicated"], weak=True),
        "pinned": {name: put(ROWS + 1, place) for name, place in pinned.items()},
        "pinned weak": put(ROWS, pinned["rows"], weak=True),
    }
    path = jaxckpt.Checkpoint(model=values).save(directory + "/ckpt", options(io))
    arrays = jax.tree.map(lambda a: put(np.zeros(a.shape, a.dtype), a.sharding, weak=a.weak_type), values)
    structs = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding, weak_type=a.weak_type), values
    )
    for targets in (arrays, structs):
        checkpoint = jaxckpt.Checkpoint(model=targets)
        with jax.transfer_guard("disallow"):
            checkpoint.restore(path, options(io)).assert_consumed()
        for found, value in zip(jax.tree.leaves(checkpoint.model), jax.tree.leaves(values), strict=True):
            assert (found.weak_type, found.sharding) == (value.weak_type, value.sharding)
            for a, b in zip(found.addressable_shards, value.addressable_shards, strict=True):
                assert a.data.sharding.memory_kind == value.sharding.memory_kind
                assert np.asarray(a.data).tobytes() == np.asarray(b.data).tobytes()
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Explicit,))

    def create() -> Any:
        rows = jax.sharding.reshard(jnp.zeros(ROWS.shape), PartitionSpec("x"))
        return {"weak": {"rows": rows}, "step": jnp.asarray(0)}

    with jax.set_mesh(mesh):
        checkpoint = jaxckpt.Checkpoint(model=jax.eval_shape(create))
        checkpoint.restore(path, options(io)).expect_partial()
    assert checkpoint.model["weak"]["rows"].sharding == NamedSharding(mesh, PartitionSpec("x", None))
    assert_local(checkpoint.model["weak"]["rows"], ROWS)
    step = checkpoint.model["step"]
    assert (step.sharding, step.weak_type) == (NamedSharding(mesh, PartitionSpec()), True)
    assert_local(step, np.asarray(np.int32(7)))


def scalars_and_casts(directory: str, io: int | None) -> dict[str, Any]:
    """Returns what goes wrong: on one process's part only, by agreement, or by disagreement."""
    rows, everywhere = mp_values.sharding("rows"), mp_values.sharding("replicated")
    last = ROWS.copy()
    last[-1, -1] = 1e30
    path = jaxckpt.Checkpoint(w=put(ROWS, rows), last=put(last, rows), rate=1e-4, step=3).save(
        directory + "/ckpt", options(io)
    )

    def target(name: str, dtype: Any, shape: Any = ROWS.shape, sharding: Any = rows) -> jaxckpt.Checkpoint:
        return jaxckpt.Checkpoint(**{name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)})

    checkpoint = target("w", jnp.bfloat16)
    status = checkpoint.restore(path, options(io), cast=True).expect_partial()
    assert status.cast == ("w",)
    assert_local(checkpoint.w, ROWS.astype(jnp.bfloat16))
    for name, dtype, expected in (("rate", np.float32, np.float32(1e-4)), ("step", np.int32, np.int32(3))):
        checkpoint = target(name, dtype, (), everywhere)
        checkpoint.restore(path, options(io)).expect_partial()
        assert_local(getattr(checkpoint, name), np.asarray(expected))
    odd = jax.process_index() == 1
    weak = jaxckpt.Checkpoint(w=put(ROWS, rows, weak=odd))
    hot = jaxckpt.Checkpoint(w=put(ROWS, rows.with_memory_kind("pinned_host") if odd else rows))
    uneven = NamedSharding(rows.mesh, PartitionSpec(None, rows.mesh.axis_names[0]))
    return {
        "not asked for": outcome(target("w", jnp.bfloat16).restore, path, options(io)),
        "too large": outcome(target("last", np.float16).restore, path, options(io), cast=True),
        "disagreement": outcome(target("w", jnp.bfloat16).restore, path, options(io), cast=odd),
        "weak on one": outcome(weak.restore, path, options(io)),
        "pinned on one": outcome(hot.restore, path, options(io)),
        "uneven": outcome(target("w", np.float32, sharding=uneven).restore, path, options(io)),
    }


def deleted_meanwhile(directory: str, io: int | None) -> list[tuple[list[str], str]]:
    """The process with the files loses them while all are reading. Returns what each attempt raised here."""
    found = []
    countdown = [-1, ""]

    def hook(event: str, arguments: Any) -> None:
        if event == "open" and countdown[0] >= 0 and str(arguments[0]).startswith(str(countdown[1])):
            countdown[0] -= 1
            if countdown[0] < 0:
                storage.delete(storage.CheckpointPath.of(str(countdown[1])))

    sys.addaudithook(hook)
    for moment in (0, 2, 4, 6):
        values = {"w": put(ROWS, "rows"), "large": put(np.tile(ROWS, (100, 10)), "rows"), "text": "x", "step": 1}
        path = jaxckpt.Checkpoint(**values).write(f"{directory}/ckpt{moment}", options(io))
        target = jaxckpt.Checkpoint(**{**values, "step": 0})
        if jax.process_index() == (io or 0):
            countdown[:] = [moment, path]
        found.append(outcome(target.restore, path, options(io)))
        countdown[0] = -1
        assert target.step == 0
    return found
