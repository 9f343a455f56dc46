"""What a target says of its new value: weak type, memory kind, mesh. Kept on every sharding, and named where it does not fit."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxckpt
from jaxckpt.leaf_kinds import on_devices
from jaxckpt.storage import compat

pytestmark = pytest.mark.sampled

MESH = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
P = PartitionSpec
# A place, and whether it needs an axis to divide.
PLACES: dict[str, Any] = {
    "free": None,
    "one": SingleDeviceSharding(jax.devices()[3]),
    "mesh": NamedSharding(MESH, P()),
    "x": NamedSharding(MESH, P("x")),
    "xy": NamedSharding(MESH, P(("x", "y"))),
    "one of a mesh": NamedSharding(jax.make_mesh((1,), ("z",), axis_types=(AxisType.Auto,)), P()),
}
DTYPES = (jnp.float32, jnp.bfloat16, jnp.int32, jnp.int8, jnp.uint8, jnp.bool_, jnp.complex64, jnp.float8_e4m3fn)


def saved(tmp_path: Path, **values: Any) -> str:
    return jaxckpt.Checkpoint(**values).save(tmp_path / "ckpt")


def bits(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Every kind of bit pattern: NaN with payloads, both zeros, infinities."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    if dtype == np.bool_:
        return (np.arange(count) % 3 == 0).reshape(shape)
    array = np.random.default_rng(7).bytes(count * dtype.itemsize)
    found = np.frombuffer(array, dtype).copy()
    special = [float("nan"), -0.0, float("inf"), 1.0] if jnp.issubdtype(dtype, np.inexact) else [1, 0, 1, 0]
    for at, value in zip(range(count), special, strict=False):
        found[at] = value
    if dtype == np.float32 and count:
        found.view(np.uint32)[0] = 0x7FA00001
    return found.reshape(shape)


def same(a: Any, b: Any) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def put(value: Any, place: Any, *, weak: bool) -> jax.Array:
    array = jax.device_put(value) if place is None else jax.device_put(value, place)
    return compat.as_weak(array) if weak else array


class TestWeakTypes:
    @pytest.mark.slow
    def test_they_stay_on_every_sharding(self, tmp_path: Path) -> None:
        values, arrays, structs, expected = {}, {}, {}, {}
        for dtype in DTYPES:
            for shape in ((), (8,), (8, 3), (0, 2)):
                data = bits(shape, dtype)
                for place in ("free", "one", "mesh", "one of a mesh", *(("x", "xy") if shape and shape[0] else ())):
                    for weak in (True, False):
                        name = f"{np.dtype(dtype).name} {shape} {place} {weak}"
                        values[name] = put(data, PLACES[place], weak=weak)
                        arrays[name] = put(np.zeros_like(data), PLACES[place], weak=weak)
                        structs[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=PLACES[place], weak_type=weak)
                        expected[name] = data, weak, values[name].sharding, values[name].committed
        path = saved(tmp_path, model=values)
        for targets in (arrays, structs):
            checkpoint = jaxckpt.Checkpoint(model=targets)
            with jax.transfer_guard("disallow"):
                checkpoint.restore(path).assert_consumed()
            for name, (data, weak, sharding, committed) in expected.items():
                found = checkpoint.model[name]
                assert (found.weak_type, found.sharding, found.committed) == (weak, sharding, committed), name
                assert found.dtype == data.dtype, name
                assert same(found, data), name

    @pytest.mark.parametrize("place", ["free", "mesh", "x"])
    def test_arithmetic_after_a_restore_has_the_same_dtypes(self, place: str, tmp_path: Path) -> None:
        scale = put(np.full(8, 2, np.float32), PLACES[place], weak=True)
        step = put(np.int32(3), None if place == "free" else PLACES["mesh"], weak=True)
        path = saved(tmp_path, scale=scale, step=step)
        checkpoint = jaxckpt.Checkpoint(scale=scale * 0.0, step=step * 0)
        assert checkpoint.scale.weak_type
        checkpoint.restore(path)
        grads = jnp.ones(8, jnp.bfloat16)
        # JAX keeps what it has compiled for arrays that are like these but for the weak type.
        like = [jnp.asarray(np.asarray(value)) for value in (checkpoint.scale, checkpoint.step)]
        like = [jax.device_put(one, old.sharding) for one, old in zip(like, (scale, step), strict=True)]
        assert (grads * like[0]).dtype == jax.jit(jnp.multiply)(grads, like[0]).dtype == jnp.float32
        assert (like[1] + jnp.int8(1)).dtype == (jnp.asarray(np.int32(3)) + jnp.int8(1)).dtype == jnp.int32
        assert (grads * checkpoint.scale).dtype == jnp.bfloat16
        assert jax.jit(jnp.multiply)(grads, checkpoint.scale).dtype == jnp.bfloat16
        assert (checkpoint.step + jnp.int8(1)).dtype == jnp.int8
        carry, _ = jax.lax.scan(lambda carry, _: (carry * 2.0, None), checkpoint.scale, None, length=2)
        assert same(carry, np.full(8, 8, np.float32))


@pytest.mark.parametrize("kind", ["pinned_host", "unpinned_host", "device"])
def test_memory_kinds_on_any_sharding(kind: str, tmp_path: Path) -> None:
    places = {name: place.with_memory_kind(kind) for name, place in PLACES.items() if place is not None}
    data = {name: np.arange(48, dtype=np.float32).reshape(8, 6) + number for number, name in enumerate(places)}
    values = {name: jax.device_put(data[name], place) for name, place in places.items()}
    keys = jax.device_put(jax.random.split(jax.random.key(1), 8), places["x"])
    weak = {"scalar": put(np.float32(2), places["mesh"], weak=True), "vector": put(data["x"], places["x"], weak=True)}
    path = saved(tmp_path, model=values, keys=keys, weak=weak)
    arrays = {"model": jax.tree.map(lambda a: jax.device_put(np.zeros((8, 6), np.float32), a.sharding), values)}
    structs = {"model": jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), values)}
    for targets in (arrays, structs):
        checkpoint = jaxckpt.Checkpoint(**targets, keys=keys, weak=weak)
        checkpoint.restore(path).assert_consumed()
        for name, place in places.items():
            found = checkpoint.model[name]
            assert found.sharding == place
            assert found.sharding.memory_kind == kind
            assert {shard.data.sharding.memory_kind for shard in found.addressable_shards} == {kind}
            assert same(found, data[name])
        assert checkpoint.keys.sharding.memory_kind == kind
        assert same(jax.random.key_data(checkpoint.keys), jax.random.key_data(keys))
        for name, value in weak.items():
            assert checkpoint.weak[name].weak_type
            assert checkpoint.weak[name].sharding == value.sharding
            assert same(checkpoint.weak[name], value)


def train_state() -> TrainState:
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=1e-4)
    return TrainState.create(apply_fn=len, params={"w": jnp.arange(3.0)}, tx=tx)


class TestAbstractTargets:
    def test_eval_shape_of_a_state_with_python_scalars(self, tmp_path: Path) -> None:
        state = train_state()
        assert type(state.step) is int
        state.opt_state.hyperparams["learning_rate"] = 1e-4
        path = saved(tmp_path, state=state)
        checkpoint = jaxckpt.Checkpoint(state=jax.eval_shape(train_state))
        checkpoint.restore(path).assert_consumed()
        step = checkpoint.state.step
        assert (step.dtype, step.weak_type, int(step)) == (jnp.int32, True, 0)
        rate = checkpoint.state.opt_state.hyperparams["learning_rate"]
        # As JAX makes it of the Python float.
        assert (rate.dtype, float(rate)) == (jnp.float32, float(jnp.asarray(1e-4)))
        assert same(checkpoint.state.params["w"], state.params["w"])
        # And back: what the program made of its arrays into its fresh state.
        path = jaxckpt.Checkpoint(state=checkpoint.state).save(tmp_path / "later")
        fresh = jaxckpt.Checkpoint(state=state)
        fresh.restore(path).assert_consumed()
        assert type(fresh.state.step) is int
        assert fresh.state.opt_state.hyperparams["learning_rate"] == float(np.float32(1e-4))

    @pytest.mark.slow
    @pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
    def test_under_set_mesh(self, axis_type: Any, tmp_path: Path) -> None:
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)

        def create() -> Any:
            rows = jnp.arange(32.0).reshape(8, 4)
            if axis_type is AxisType.Explicit:
                rows = jax.sharding.reshard(rows, P("x"))
            return {"rows": rows, "vector": jnp.ones(3), "step": jnp.asarray(1), "key": jax.random.key(2)}

        with jax.set_mesh(mesh):
            values = jax.jit(create)()
            model = nnx.Linear(4, 2, rngs=nnx.Rngs(1))
            path = saved(tmp_path, values=values, model=nnx.state(model))
            targets = jax.eval_shape(create)
            abstract = nnx.state(nnx.eval_shape(lambda: nnx.Linear(4, 2, rngs=nnx.Rngs(0))))
            checkpoint = jaxckpt.Checkpoint(values=targets, model=abstract)
            checkpoint.restore(path).assert_consumed()
            for name, value in values.items():
                found = checkpoint.values[name]
                assert (found.dtype, found.sharding) == (value.dtype, value.sharding), name
                assert getattr(found, "weak_type", False) == targets[name].weak_type, name
            assert same(checkpoint.values["rows"], values["rows"])
            assert same(checkpoint.model["kernel"][...], model.kernel[...])
            assert checkpoint.model["kernel"][...].sharding.mesh == mesh
        structs = {"rows": targets["rows"], "vector": targets["vector"]}
        if axis_type is AxisType.Auto:
            # Without a sharding, and without a mesh: the default device.
            outside = jaxckpt.Checkpoint(values=structs)
            outside.restore(path).expect_partial()
            assert outside.values["rows"].devices() == {jax.devices()[0]}
            return
        kept = dict(structs)
        outside = jaxckpt.Checkpoint(values=structs)
        with pytest.raises(ValueError, match=r"values/rows: .*x=4, y=2.*no mesh is set.*jax\.set_mesh"):
            outside.restore(path)
        assert outside.values == kept
        other = jax.make_mesh((2, 4), ("x", "y"), axis_types=(axis_type,) * 2)
        with (
            jax.set_mesh(other),
            pytest.raises(ValueError, match=r"values/rows: .*x=4, y=2.*the current mesh has x=2, y=4"),
        ):
            outside.restore(path)
        only_replicated = jaxckpt.Checkpoint(values={"vector": targets["vector"]})
        only_replicated.restore(path).expect_partial()
        assert same(only_replicated.values["vector"], np.ones(3, np.float32))

    def test_memory_kinds_of_abstract_meshes(self, tmp_path: Path) -> None:
        path = saved(tmp_path, w=jnp.arange(8.0))
        with jax.set_mesh(MESH):
            sharding = NamedSharding(MESH.abstract_mesh, P("x"), memory_kind="pinned_host")
            checkpoint = jaxckpt.Checkpoint(w=jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding))
            checkpoint.restore(path).assert_consumed()
        assert checkpoint.w.sharding == NamedSharding(MESH, P("x"), memory_kind="pinned_host")
        assert same(checkpoint.w, np.arange(8, dtype=np.float32))

    @pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
    @pytest.mark.parametrize("axes", [("x", "y"), ("y",), (None, "x"), (("x", "y"),), ()], ids=str)
    def test_restored_arrays_have_the_type_that_jax_gives_them(
        self, tmp_path: Path, axis_type: AxisType, axes: tuple[Any, ...]
    ) -> None:
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
        sharding = NamedSharding(mesh, P(*axes))
        value = jax.device_put(np.arange(128, dtype=np.float32).reshape(8, 16), sharding)
        path = saved(tmp_path, model={"w": value})
        checkpoint = jaxckpt.Checkpoint(model={"w": jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)})
        checkpoint.restore(path).assert_consumed()
        restored = checkpoint.model["w"]
        assert isinstance(restored, jax.Array)
        assert restored.aval == value.aval
        assert restored.aval.sharding == value.aval.sharding
        assert jax.typeof(restored) == jax.typeof(value)
        assert same(restored, value)

    @pytest.mark.skipif(not hasattr(P(), "reduced"), reason="this version of JAX does not have reduced axes")
    def test_arrays_with_reduced_axes_are_saved_and_restored(self, tmp_path: Path) -> None:
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
        with jax.set_mesh(mesh):
            value = jax.device_put(np.arange(32, dtype=np.float32).reshape(8, 4), P("x", reduced={"y"}))
            path = saved(tmp_path, model={"w": value})
            checkpoint = jaxckpt.Checkpoint(
                model={"w": jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)}
            )
            checkpoint.restore(path).assert_consumed()
        restored = checkpoint.model["w"]
        assert isinstance(restored, jax.Array)
        assert (restored.sharding, restored.aval) == (value.sharding, value.aval)
        assert same(restored, value)
        np.testing.assert_array_equal(jaxckpt.load_checkpoint(path).get_tensor("model/w"), value)

    @pytest.mark.skipif(not hasattr(P(), "unreduced"), reason="this version of JAX does not have unreduced axes")
    def test_parts_of_sums_are_refused(self, tmp_path: Path) -> None:
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
        path = saved(tmp_path, model={"w": np.ones((4, 4), np.float32)})
        with jax.set_mesh(mesh):
            sharding = NamedSharding(mesh, P(unreduced={"y"}))
            parts = jax.sharding.reshard(jnp.ones((4, 4)), sharding)
            with pytest.raises(ValueError, match=r"model/w: the sharding is unreduced over y: .*reshard"):
                saved(tmp_path / "again", model={"w": parts})
            for target in (parts, jax.ShapeDtypeStruct((4, 4), np.float32, sharding=sharding)):
                with pytest.raises(ValueError, match=r"model/w: the sharding is unreduced over y: .*another sharding"):
                    jaxckpt.Checkpoint(model={"w": target}).restore(path)


class TestErrorsNameTheLeaf:
    def test_a_sharding_that_does_not_fit(self, tmp_path: Path) -> None:
        path = saved(tmp_path, model={"a": jnp.ones(6), "b": jnp.ones(8)})
        good = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(MESH, P("x")))
        bad = jax.ShapeDtypeStruct((6,), jnp.float32, sharding=NamedSharding(MESH, P("x")))
        model = {"a": bad, "b": good}
        checkpoint = jaxckpt.Checkpoint(model=model)
        with pytest.raises(ValueError, match=r"^model/a: .*sharding.*shape \(6,\)") as caught:
            checkpoint.restore(path)
        assert caught.value.__cause__ is not None
        assert checkpoint.model is model
        assert model == {"a": bad, "b": good}

    def test_a_transfer_that_jax_refuses(self, tmp_path: Path) -> None:
        values = {"a": jax.device_put(jnp.ones(8), PLACES["x"]), "b": jnp.ones(8), "k": jax.random.key(1)}
        for name, value in values.items():
            path = saved(tmp_path, model={name: value})
            checkpoint = jaxckpt.Checkpoint(model={name: value})
            with (
                jax.transfer_guard("disallow_explicit"),
                pytest.raises(RuntimeError, match=rf"^model/{name}: (.|\n)*Disallowed host-to-device") as caught,
            ):
                checkpoint.restore(path)
            assert type(caught.value) is type(caught.value.__cause__)
            assert checkpoint.model[name] is value

    @pytest.mark.parametrize("has_one_step", [True, False])
    def test_with_and_without_the_one_step_of_jax(
        self, has_one_step: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A version of JAX may not have it. The values are the same, and every transfer is explicit."""
        if not has_one_step:
            monkeypatch.setattr(compat, "assembler", lambda *_: None)
        on_devices._divided_delivery.cache_clear()
        values = {
            f"{name} {dtype}": jax.device_put(jnp.arange(8).astype(dtype), place)
            for name, place in PLACES.items()
            for dtype in (jnp.float32, jnp.bfloat16, jnp.int8, bool)
        }
        weak = jax.jit(lambda: 1.0, out_shardings=NamedSharding(MESH, P()))()
        assert weak.weak_type
        values["weak"] = weak
        path = saved(tmp_path, model=values)
        for targets in (jax.tree.map(jnp.zeros_like, values), values):
            checkpoint = jaxckpt.Checkpoint(model=targets)
            with jax.transfer_guard("disallow"):
                checkpoint.restore(path).assert_consumed()
            for name, array in checkpoint.model.items():
                assert array.sharding == targets[name].sharding
                assert array.weak_type == targets[name].weak_type
                assert array.dtype == targets[name].dtype
                assert same(array, values[name])
        on_devices._divided_delivery.cache_clear()

    def test_deleted_arrays_are_good_targets(self, tmp_path: Path) -> None:
        values = {name: jax.device_put(np.arange(8.0, dtype=np.float32), place) for name, place in PLACES.items()}
        path = saved(tmp_path, model=values)
        checkpoint = jaxckpt.Checkpoint(model=jax.tree.map(jnp.zeros_like, values))
        for array in checkpoint.model.values():
            array.delete()
        checkpoint.restore(path).assert_consumed()
        for name, array in checkpoint.model.items():
            assert array.sharding == values[name].sharding
            assert same(array, values[name])


def test_a_numpy_target_costs_one_new_array(tmp_path: Path) -> None:
    import tracemalloc

    nbytes = 64 << 20
    path = saved(tmp_path, w=np.arange(nbytes // 4, dtype=np.float32), small=np.arange(3.0), empty=np.zeros((0, 3)))
    checkpoint = jaxckpt.Checkpoint(w=np.zeros(nbytes // 4, np.float32), small=np.zeros(3), empty=np.zeros((0, 3)))
    tracemalloc.start()
    try:
        checkpoint.restore(path).assert_consumed()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * nbytes
    for array in (checkpoint.w, checkpoint.small):
        array += 1
        assert re.match(r"\d", str(array[-1]))
    assert checkpoint.w[-1] == nbytes // 4
    assert np.array_equal(checkpoint.small, [1, 2, 3])


@pytest.mark.parametrize(
    "target",
    [{"x": OrderedDict([(1, np.zeros(2)), ("1", np.ones(2))])}, {"x": {"1": np.zeros(2)}, "x.1": np.ones(2)}],
    ids=["one name", "joined by Orbax"],
)
def test_targets_that_cannot_be_told_apart_are_refused(target: dict[str, Any], tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(x={"1": np.full(2, 7.0)}).save(tmp_path / "ckpt")
    checkpoint = jaxckpt.Checkpoint(**target)
    for refused in (lambda: checkpoint.save(tmp_path / "other"), lambda: checkpoint.restore(path)):
        with pytest.raises(ValueError, match=r"'x/1' and 'x[./]1' would both be stored"):
            refused()
