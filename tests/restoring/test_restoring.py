"""restore and read: matching, validation before any change, status objects, objects updated in place, readers."""

import gc
import os
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxckpt


def saved(tmp_path: Path, **values: Any) -> str:
    return jaxckpt.Checkpoint(**values).save(tmp_path / "ckpt")


class Position:
    """A state object like a data iterator; refuses negative positions."""

    def __init__(self, position: int = 0) -> None:
        self.position = position

    def get_state(self) -> Any:
        return {"position": self.position, "seed": [1, 2]}

    def set_state(self, state: Any) -> None:
        self.position = state["position"]
        if self.position < 0:
            raise RuntimeError("negative")


class Text:
    def __init__(self, text: Any = "") -> None:
        self.text = text

    def serialize(self) -> Any:
        return self.text

    def deserialize(self, value: Any) -> None:
        assert type(value) is type(self.text)
        self.text = value


class TestValidation:
    @pytest.mark.parametrize(
        ("stored", "target", "message"),
        [
            (np.ones(3), np.zeros(4), r"shape \(4,\).*holds shape \(3,\)"),
            (jnp.ones(3), jnp.zeros((3, 1)), r"shape \(3, 1\).*holds shape \(3,\)"),
            (jnp.ones(3), jax.ShapeDtypeStruct((2,), np.float32), r"shape \(2,\).*holds shape \(3,\)"),
            (np.ones(3), np.zeros(3, np.float32), "dtype float32.*holds dtype float64; values are never cast"),
            (jnp.ones(3), jnp.zeros(3, jnp.bfloat16), "dtype bfloat16.*holds dtype float32"),
            (1.5, 0, "the target is a int, but .* holds a scalar of dtype float64"),
            (1, 0.5, "the target is a float"),
            (1, True, "the target is a bool"),
            ("x", 0, "holds a str"),
            (1, "x", "the target is a str"),
            (b"x", np.zeros(1, np.uint8), r"holds bytes \(1 of them\)"),
            (np.zeros(1, np.uint8), b"x", "the target is a bytes"),
            (jax.random.key(0), np.zeros(2, np.uint32), "holds a PRNG key"),
            (np.zeros(2, np.uint32), jax.random.key(0), "holds an array"),
            (np.ones(1), 1.0, "the target is a float"),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_an_error_and_changes_nothing(
        self, stored: Any, target: Any, message: str, tmp_path: Path
    ) -> None:
        path = saved(tmp_path, model={"bad": [stored]}, other=np.ones(2), position=Position(3), z=1)
        position, other, model = Position(1), np.zeros(2), {"bad": [target]}
        checkpoint = jaxckpt.Checkpoint(model=model, other=other, position=position, z=0)
        for call in (checkpoint.restore, checkpoint.read):
            with pytest.raises(ValueError, match=r"model/bad/0: .*" + message):
                call(path)
        assert checkpoint.model is model
        assert model["bad"][0] is target
        assert checkpoint.other is other
        assert not other.any()
        assert (position.position, checkpoint.z, checkpoint.save_counter) == (1, 0, 0)

    def test_a_target_that_cannot_be_one(self, tmp_path: Path) -> None:
        path = saved(tmp_path, x=1)
        with pytest.raises(TypeError, match=r"x: a builtins.set cannot be a target"):
            jaxckpt.Checkpoint(x={1}).restore(path)

    def test_an_object_that_refuses_its_state_undoes_everything(self, tmp_path: Path) -> None:
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        path = saved(tmp_path, a=model, b=Text("new"), c=Position(-5), d=3)
        fresh = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
        kernel = np.asarray(fresh.kernel[...])
        checkpoint = jaxckpt.Checkpoint(a=fresh, b=Text("old"), c=Position(7), d=0)
        with pytest.raises(RuntimeError, match="negative"):
            checkpoint.restore(path)
        assert np.array_equal(fresh.kernel[...], kernel)
        assert checkpoint.b.text == "old"
        assert (checkpoint.c.position, checkpoint.d, checkpoint.save_counter) == (7, 0, 0)

    def test_nothing_there(self, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(x=1)
        checkpoint.save(tmp_path / "ckpt")
        with pytest.raises(FileNotFoundError, match=r"save\(\) appends a number \('ckpt-1'\)") as caught:
            checkpoint.restore(tmp_path / "ckpt")
        assert caught.value.filename == str(tmp_path / "ckpt")
        (tmp_path / "file").write_text("x")
        (tmp_path / "empty").mkdir()
        for other in ("file", "empty", "."):
            with pytest.raises(jaxckpt.CheckpointError, match="is not an Orbax checkpoint"):
                checkpoint.restore(tmp_path / other)

    def test_a_later_format_is_refused(self, tmp_path: Path) -> None:
        path = Path(saved(tmp_path, x=1))
        text = (path / "_METADATA").read_text().replace('"jaxckpt": {"format": 1', '"jaxckpt": {"format": 2')
        (path / "_METADATA").write_text(text)
        with pytest.raises(jaxckpt.CorruptCheckpointError, match="later jaxckpt"):
            jaxckpt.Checkpoint(x=1).restore(path)


class TestStatus:
    def test_missing_and_unexpected(self, tmp_path: Path) -> None:
        path = saved(tmp_path, model={"a": 1, "b": 2}, gone=3)
        checkpoint = jaxckpt.Checkpoint(model={"a": 0, "c": 0}, new=0)
        status = checkpoint.restore(path)
        assert status.missing == ("model/c", "new")
        assert sorted(status.unexpected) == ["gone", "model/b"]
        assert checkpoint.model == {"a": 1, "c": 0}
        with pytest.raises(AssertionError, match=r"model/c, new.*gone"):
            status.assert_consumed()
        with pytest.raises(AssertionError, match="model/c"):
            status.assert_existing_objects_matched()
        assert status.assert_nontrivial_match() is status
        assert status.expect_partial() is status
        status.initialize_or_restore()
        assert jaxckpt.Checkpoint(model={"a": 0}).restore(path).assert_existing_objects_matched().unexpected

    def test_the_counter_is_no_match(self, tmp_path: Path) -> None:
        status = jaxckpt.Checkpoint(y=0).restore(saved(tmp_path, x=1))
        with pytest.raises(AssertionError, match="nothing"):
            status.assert_nontrivial_match()

    def test_nothing_to_restore(self) -> None:
        checkpoint = jaxckpt.Checkpoint(x=1)
        for status in (checkpoint.restore(None), checkpoint.read(None)):
            for check in (
                status.assert_consumed,
                status.assert_existing_objects_matched,
                status.assert_nontrivial_match,
            ):
                with pytest.raises(AssertionError, match="No checkpoint specified"):
                    check()
            assert status.expect_partial() is status

    @pytest.mark.usefixtures("nothing_dropped")
    def test_a_partial_restore_warns_once_unless_acknowledged(self, tmp_path: Path) -> None:
        path = saved(tmp_path, x=1, gone=2)
        checkpoint = jaxckpt.Checkpoint(x=0, new=0)
        with pytest.warns(UserWarning, match=r"not in the checkpoint.*new.*not asked for: gone") as caught:
            checkpoint.restore(path)
            gc.collect()
        assert len(caught) == 1
        with warnings.catch_warnings(record=True) as none:
            warnings.simplefilter("always")
            checkpoint.restore(path).expect_partial()
            checkpoint.restore(path).assert_nontrivial_match()
            with pytest.raises(AssertionError):
                checkpoint.restore(path).assert_consumed()
            jaxckpt.Checkpoint(x=0, gone=0).restore(path)
            gc.collect()
        assert none == []

    def test_empty_containers_do_not_count(self, tmp_path: Path) -> None:
        path = saved(tmp_path, x=1, empty={}, none=None, opt=optax.sgd(1.0).init({}))
        jaxckpt.Checkpoint(x=0).restore(path).assert_consumed()
        jaxckpt.Checkpoint(x=0, other=[], none=None).restore(path).assert_consumed()

    def test_values_added_later_keep_theirs(self, tmp_path: Path) -> None:
        path = saved(tmp_path, x=1, y=2)
        checkpoint = jaxckpt.Checkpoint(x=0)
        checkpoint.restore(path).expect_partial()
        checkpoint.y = 5
        assert checkpoint.y == 5


class Model(nnx.Module):
    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.shared = self.layers[0]
        self.scale = nnx.Param(jnp.full(2, float(seed)))


def states(*objects: Any) -> list[Any]:
    def plain(leaf: Any) -> Any:
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return [plain(leaf) for thing in objects for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(thing)))]


class TestObjects:
    def test_nnx_objects_are_updated_in_place(self, tmp_path: Path) -> None:
        def make(seed: int) -> tuple[Model, Any, Any]:
            model = Model(seed)
            return model, nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param), nnx.Rngs(seed)

        model, optimizer, rngs = make(1)
        grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
        optimizer.update(model, grads)
        rngs()
        path = jaxckpt.Checkpoint(model=model, optimizer=optimizer, rngs=rngs).save(tmp_path / "ckpt")
        model2, optimizer2, rngs2 = make(2)
        kernel = model2.layers[0].kernel
        checkpoint = jaxckpt.Checkpoint(model=model2, optimizer=optimizer2, rngs=rngs2)
        checkpoint.restore(path).assert_consumed()
        assert checkpoint.model is model2
        assert model2.layers[0].kernel is kernel
        assert model2.shared is model2.layers[0]
        for a, b in zip(states(model, optimizer, rngs), states(model2, optimizer2, rngs2), strict=True):
            assert np.array_equal(a, b)
        names = [name for name, _ in jaxckpt.list_variables(path)]
        assert "model/layers/0/kernel" in names
        assert "model/scale" in names
        assert not any(name.startswith("model/shared/") for name in names) or not any(
            "layers/0" in name for name in names
        )

    def test_an_nnx_root(self, tmp_path: Path) -> None:
        model = Model(1)
        by_root = jaxckpt.Checkpoint(model).save(tmp_path / "root")
        names = [name for name, _ in jaxckpt.list_variables(by_root)]
        assert {"scale", "norm/mean", "layers/1/bias"} <= set(names)
        other = Model(2)
        jaxckpt.Checkpoint(other).restore(by_root).assert_consumed()
        for a, b in zip(states(model), states(other), strict=True):
            assert np.array_equal(a, b)
        alone = nnx.Param(jnp.zeros(2))
        jaxckpt.Checkpoint(scale=alone).restore(by_root).assert_existing_objects_matched()
        assert np.array_equal(alone[...], [1, 1])
        by_name = jaxckpt.Checkpoint(scale=model.scale).save(tmp_path / "name")
        third = Model(3)
        status = jaxckpt.Checkpoint(third).restore(by_name)
        assert "scale" not in status.missing
        status.expect_partial()
        assert np.array_equal(third.scale[...], [1, 1])

    def test_an_nnx_state_is_a_value(self, tmp_path: Path) -> None:
        graph, state = nnx.split(Model(1))
        path = saved(tmp_path, state=state)
        checkpoint = jaxckpt.Checkpoint(state=nnx.split(Model(2))[1])
        checkpoint.restore(path).assert_consumed()
        merged = nnx.merge(graph, checkpoint.state)
        assert np.array_equal(merged.scale[...], [1, 1])
        assert "state/scale" in dict(jaxckpt.list_variables(path))

    def test_train_state(self, tmp_path: Path) -> None:
        def make(value: float) -> TrainState:
            return TrainState.create(apply_fn=lambda: 0, params={"w": jnp.full(3, value)}, tx=optax.adam(0.1))

        state = make(1.0).apply_gradients(grads={"w": jnp.ones(3)})
        path = saved(tmp_path, state=state)
        checkpoint = jaxckpt.Checkpoint(state=make(2.0))
        checkpoint.restore(path).assert_consumed()
        assert checkpoint.state.step == 1
        assert np.array_equal(checkpoint.state.opt_state[0].mu["w"], state.opt_state[0].mu["w"])
        root = jaxckpt.Checkpoint(make(3.0))
        root.restore(jaxckpt.Checkpoint(state).save(tmp_path / "root")).assert_consumed()
        assert np.array_equal(root.params["w"], state.params["w"])

    @pytest.mark.parametrize("text", ["", "héllo", b"", b"\x00\xff"])
    def test_state_objects_anywhere(self, text: Any, tmp_path: Path) -> None:
        path = saved(tmp_path, tree={"list": [Text(text)]}, position=Position(4))
        thing, position = Text(type(text)()), Position()
        tree = {"list": [thing]}
        jaxckpt.Checkpoint(tree=tree, position=position).restore(path).assert_consumed()
        assert thing.text == text
        assert position.position == 4
        assert tree["list"][0] is thing

    @pytest.mark.parametrize("state", [{1, 2}, {"a": object()}, [bytearray(b"x")]], ids=range(3))
    def test_states_that_json_does_not_keep(self, state: Any, tmp_path: Path) -> None:
        position = Position()
        position.get_state = lambda: state  # type: ignore[method-assign]
        with pytest.raises(TypeError, match="get_state.* must return bytes or JSON values"):
            saved(tmp_path, position=position)


class TestSlots:
    def test_moments_stay_fresh_and_counters_are_restored(self, tmp_path: Path) -> None:
        params = {"w": jnp.ones((2, 2)), "temperature": jnp.ones(())}
        tx = optax.chain(optax.clip(1.0), optax.adam(optax.constant_schedule(0.1)))
        state = tx.update(params, tx.init(params), params)[1]
        path = saved(tmp_path, params=params, optimizer=state)
        checkpoint = jaxckpt.Checkpoint(params=jax.tree.map(jnp.zeros_like, params), optimizer=tx.init(params))
        options = jaxckpt.CheckpointOptions(experimental_skip_slot_variables=True)
        checkpoint.restore(path, options).assert_consumed()
        adam = checkpoint.optimizer[1][0]
        assert adam.count == 1
        assert not any(leaf.any() for leaf in jax.tree.leaves((adam.mu, adam.nu)))
        assert checkpoint.params["w"].all()
        checkpoint.restore(path).assert_consumed()
        assert all(leaf.any() for leaf in jax.tree.leaves(checkpoint.optimizer[1][0].mu))

    def test_nnx_optimizers(self, tmp_path: Path) -> None:
        def make() -> tuple[Model, Any]:
            model = Model(1)
            return model, nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)

        model, optimizer = make()
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
        path = saved(tmp_path, model=model, optimizer=optimizer)
        model, optimizer = make()
        options = jaxckpt.CheckpointOptions(experimental_skip_slot_variables=True)
        jaxckpt.Checkpoint(model=model, optimizer=optimizer).restore(path, options).assert_consumed()
        assert optimizer.step[...] == 1
        assert optimizer.opt_state[0].count[...] == 1
        assert not optimizer.opt_state[0].mu["scale"][...].any()


class TestReader:
    def test_reading_without_targets(self, tmp_path: Path) -> None:
        key = jax.random.key(3)
        values = {
            "w": jnp.ones((2, 3), jnp.bfloat16),
            "l": [1, "x", b"y", None, {}],
            "k": key,
            "a/b": {"c~": 2.5},
            "n": np.int8(3),
        }
        path = saved(tmp_path, model=values)
        reader = jaxckpt.load_checkpoint(tmp_path)
        assert isinstance(reader, jaxckpt.Reader)
        assert reader.keys() == sorted(reader.keys())
        assert "model/a~1b/c~0" in reader
        assert reader.shape("model/w") == (2, 3)
        assert reader.dtype("model/w") == jnp.bfloat16
        assert reader.get_tensor("model/w").flags.writeable
        tree = reader.tree()
        assert tree["model"]["l"] == [1, "x", b"y", None, {}]
        assert tree["model"]["a/b"] == {"c~": 2.5}
        assert type(tree["model"]["n"]) is np.int8
        assert np.array_equal(tree["model"]["k"], jax.random.key_data(key))
        assert reader.metadata("model/k").key_impl == "fry" or "threefry" in str(reader.metadata("model/k").key_impl)
        assert reader.metadata("model/l/2").kind == "bytes"
        assert reader.metadata("model/w").nbytes == 12
        assert "SingleDeviceSharding" in str(reader.metadata("model/w").sharding)
        assert ("model/w", (2, 3)) in jaxckpt.list_variables(path)
        assert jaxckpt.load_variable(path, "save_counter") == 1
        with pytest.raises(KeyError, match="Did you mean 'model/w'"):
            reader.get_tensor("model/ww")

    def test_nothing_to_read(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            jaxckpt.load_checkpoint(tmp_path / "nothing")
        with pytest.raises(jaxckpt.CheckpointError):
            jaxckpt.list_variables(tmp_path)
        with pytest.raises(TypeError):
            jaxckpt.load_checkpoint(3)  # type: ignore[arg-type]


def test_the_path_of_a_save_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "run" / "ckpt-1.jaxckpt-tmp-01234567-1-2-89abcdef" / "checkpoint").mkdir(parents=True)
    old = time.time() - 1e6
    for folder in (tmp_path / "run").rglob("*"):
        os.utime(folder, (old, old))
    for read in (jaxckpt.Checkpoint(value=1).restore, jaxckpt.load_checkpoint):
        with pytest.raises(FileNotFoundError, match="its save or deletion was not finished") as caught:
            read(tmp_path / "run" / "ckpt-1")
        assert f"`jaxckpt clean {tmp_path / 'run'}`" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="pass that one"):
        jaxckpt.load_checkpoint(tmp_path / "run" / "ckpt-2")


def test_a_path_with_nothing_says_what_is_there(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(value=1)
    for _ in range(7):
        checkpoint.save(tmp_path / "ckpt")
    for path, message in (
        ("ckpt-99", "No checkpoint at this path. Its directory holds ..., ckpt-3, ckpt-4, ckpt-5, ckpt-6, ckpt-7"),
        ("ckpt", "pass that one. Its directory holds ..., ckpt-3"),
        ("other-1", "save() appends a number ('ckpt-1') and returns the full path; pass that one"),
        ("nowhere/ckpt-1", "No checkpoint at this path: its directory does not exist"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            checkpoint.restore(tmp_path / path)
        assert message in str(caught.value)
