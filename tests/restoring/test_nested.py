"""Checkpoints as values of Checkpoints, and targets of restore that save would refuse."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxckpt

pytestmark = pytest.mark.sampled


class Refuses:
    """Cannot be given another state than the one it has."""

    def serialize(self) -> str:
        return "mine"

    def deserialize(self, value: str) -> None:
        if value != "mine":
            raise RuntimeError("refused")


class Counted:
    """Counts how often it is given a state."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.times = 0

    def get_state(self) -> Any:
        return self.state

    def set_state(self, state: Any) -> None:
        self.state = state
        self.times += 1


class TestNested:
    def test_fine_tuning(self, tmp_path: Path) -> None:
        """TensorFlow's recipe: a new head on a stored body."""
        body, head = {"w": jnp.arange(3.0), "b": [np.ones(2)]}, jnp.full(2, 7.0)
        path = jaxckpt.Checkpoint(model={"body": body, "head": head}).save(tmp_path / "c")
        part = jaxckpt.Checkpoint(body={"w": jnp.zeros(3), "b": [np.zeros(2)]})
        checkpoint = jaxckpt.Checkpoint(model=part)
        status = checkpoint.restore(path).expect_partial()
        assert status.unexpected == ("model/head",)
        assert checkpoint.model is part
        np.testing.assert_array_equal(part.body["w"], np.arange(3.0))
        np.testing.assert_array_equal(part.body["b"][0], np.ones(2))
        # The same names on save: each restores what the other saved.
        again = jaxckpt.Checkpoint(model=jaxckpt.Checkpoint(body=body, head=head)).save(tmp_path / "again")
        assert jaxckpt.list_variables(again) == jaxckpt.list_variables(path)
        flat = jaxckpt.Checkpoint(model={"body": {"w": jnp.zeros(3), "b": [np.zeros(2)]}, "head": jnp.zeros(2)})
        flat.restore(again).assert_consumed()
        np.testing.assert_array_equal(flat.model["head"], np.full(2, 7.0))

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_at_any_depth_and_in_containers(self, asynchronous: bool, tmp_path: Path) -> None:
        def make(number: int) -> tuple[jaxckpt.Checkpoint, jaxckpt.Checkpoint, nnx.Linear]:
            linear = nnx.Linear(1, 1, rngs=nnx.Rngs(number))
            inner = jaxckpt.Checkpoint(x=jnp.full(2, number), linear=linear)
            middle = jaxckpt.Checkpoint({"w": np.full(2, number), "deep": inner}, it=Counted([number]))
            outer = jaxckpt.Checkpoint(a={"list": [middle, jnp.full(1, number)]}, tuple=(inner.x,))
            return outer, middle, linear

        saved, _, linear = make(1)
        path = saved.save(tmp_path / "c", jaxckpt.CheckpointOptions(enable_async=asynchronous))
        saved.sync()
        assert {"a/list/0/deep/x", "a/list/0/w", "a/list/1", "a/list/0/deep/linear/kernel"} <= set(
            jaxckpt.load_checkpoint(path).keys()
        )
        fresh, middle, fresh_linear = make(5)
        fresh.restore(path).assert_consumed()
        assert fresh.a["list"][0] is middle
        assert int(middle.deep.x[0]) == int(middle.w[0]) == int(fresh.a["list"][1][0]) == int(fresh.tuple[0][0]) == 1
        assert middle.it.state == [1]
        np.testing.assert_array_equal(fresh_linear.kernel.get_value(), linear.kernel.get_value())

    def test_one_nested_checkpoint_twice(self, tmp_path: Path) -> None:
        part = jaxckpt.Checkpoint(x=jnp.ones(2))
        path = jaxckpt.Checkpoint(a=part, b=[part]).save(tmp_path / "c")
        assert {"a/x", "b/0/x"} <= set(jaxckpt.load_checkpoint(path).keys())
        part.x = jnp.zeros(2)
        jaxckpt.Checkpoint(a=part, b=[part]).restore(path).assert_consumed()
        assert float(part.x[0]) == 1
        differ = jaxckpt.Checkpoint(a={"x": jnp.ones(2)}, b=[{"x": jnp.full(2, 2.0)}]).save(tmp_path / "differ")
        part.x = jnp.zeros(2)
        with pytest.raises(ValueError, match="a/x and b/0/x"):
            jaxckpt.Checkpoint(a=part, b=[part]).restore(differ)
        assert float(part.x[0]) == 0

    def test_its_own_save_counter(self, tmp_path: Path) -> None:
        part = jaxckpt.Checkpoint(x=jnp.ones(2))
        part.save(tmp_path / "part")
        path = jaxckpt.Checkpoint(part=part).save(tmp_path / "c")
        assert [name for name in jaxckpt.load_checkpoint(path).keys() if name.startswith("part/")] == ["part/x"]
        part.save(tmp_path / "part")
        outer = jaxckpt.Checkpoint(part=part)
        outer.restore(path).assert_consumed()
        assert (part.save_counter, outer.save_counter) == (2, 1)

    def test_cycles(self, tmp_path: Path) -> None:
        itself = jaxckpt.Checkpoint(x=1)
        itself.me = [itself]
        one, other = jaxckpt.Checkpoint(x=1), jaxckpt.Checkpoint(y=2)
        one.other, other.one = other, one
        for checkpoint, name in ((itself, "me/0"), (one, "other/one")):
            for call in (checkpoint.save, checkpoint.write):
                with pytest.raises(ValueError, match=f"^{name}: this value contains itself"):
                    call(tmp_path / "c")
        path = jaxckpt.Checkpoint(x=1).save(tmp_path / "sound")
        with pytest.raises(ValueError, match=r"^me/0: this value contains itself"):
            itself.restore(path)
        assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("c")] == ["checkpoint"]

    def test_everything_is_undone(self, tmp_path: Path) -> None:
        @dataclasses.dataclass
        class Root:
            field: Any

        module = nnx.Dict(array=nnx.data(jnp.zeros(1)), v=nnx.Param(jnp.zeros(1)))
        part = jaxckpt.Checkpoint(Root(jnp.zeros(2)), x=[jnp.zeros(2)], module=jaxckpt.Checkpoint(module))
        before = (part.field, part.x, module.array, module.v.get_raw_value())
        new = {"field": jnp.ones(2), "x": [jnp.ones(2)], "module": {"array": jnp.ones(1), "v": jnp.ones(1)}}
        path = jaxckpt.Checkpoint(a=new, z="other").save(tmp_path / "c")
        with pytest.raises(RuntimeError, match="refused"):
            jaxckpt.Checkpoint(a=part, z=Refuses()).restore(path)
        after = (part.field, part.x, module.array, module.v.get_raw_value())
        assert all(one is other for one, other in zip(before, after, strict=True))
        jaxckpt.Checkpoint(a=part).restore(path).expect_partial()
        assert [float(leaf[0]) for leaf in jax.tree.leaves((part.field, part.x, module.array))] == [1, 1, 1]
        assert float(module.v.get_value()[0]) == 1

    def test_what_is_not_stored_is_not_touched(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(a={"x": jnp.ones(2)}).save(tmp_path / "c")
        kept, iterator = {"deep": [jnp.zeros(1)]}, Counted(["here"])
        part = jaxckpt.Checkpoint(x=jnp.zeros(2), kept=kept, iterator=iterator)
        status = jaxckpt.Checkpoint(a=part).restore(path).expect_partial()
        assert status.missing == ("a/kept/deep/0", "a/iterator")
        assert part.kept is kept
        assert iterator.times == 0

    def test_a_state_that_is_the_current_one_is_set_all_the_same(self, tmp_path: Path) -> None:
        """An object may be elsewhere than its state says, such as an iterator that has read ahead."""
        for state in (1, {"a": 1}, b"x", ()):
            path = jaxckpt.Checkpoint(it=Counted(state)).write(tmp_path / "c")
            iterator = Counted(state)
            jaxckpt.Checkpoint(it=iterator).read(path).assert_consumed()
            assert (iterator.state, iterator.times) == (state, 1)

    def test_as_root(self, tmp_path: Path) -> None:
        inner = jaxckpt.Checkpoint(w=jnp.ones(2), n=1)
        path = jaxckpt.Checkpoint(inner, extra=2).save(tmp_path / "c")
        assert set(jaxckpt.load_checkpoint(path).keys()) - {"save_counter"} == {"w", "n", "extra"}
        inner = jaxckpt.Checkpoint(w=jnp.zeros(2), n=0)
        outer = jaxckpt.Checkpoint(inner, extra=0)
        outer.restore(path).assert_consumed()
        assert (float(inner.w[0]), inner.n, outer.n, outer.extra) == (1, 1, 1, 2)
        outer.n = 5
        assert (outer.n, inner.n) == (5, 1)
        with pytest.raises(ValueError, match="'w' is in root"):
            jaxckpt.Checkpoint(inner, w=jnp.zeros(2))

    @pytest.mark.parametrize("depth", [1, 2, 3])
    @pytest.mark.parametrize("by_name", [False, True])
    def test_a_state_below_checkpoints_leaves_the_live_model_alone(
        self, by_name: bool, depth: int, tmp_path: Path
    ) -> None:
        def make(number: float) -> tuple[nnx.Dict, jaxckpt.Checkpoint, jaxckpt.Checkpoint]:
            model = nnx.Dict(kernel=nnx.Param(jnp.full(2, number)), deep=nnx.Dict(v=nnx.Param(jnp.full(1, number))))
            inner = root = jaxckpt.Checkpoint(nnx.state(model))
            for _ in range(depth - 1):
                root = jaxckpt.Checkpoint(root)
            return model, inner, jaxckpt.Checkpoint(x=root) if by_name else root

        path = make(1)[2].write(tmp_path / "c")
        model, inner, outer = make(5)
        outer.read(path).assert_consumed()
        assert (float(model.kernel[...][0]), float(model.deep.v[...][0])) == (5, 5)
        assert (float(inner.kernel.get_value()[0]), float(inner.deep["v"].get_value()[0])) == (1, 1)
        again = jaxckpt.load_checkpoint(outer.write(tmp_path / "again"))
        stored = set(again.keys()) - {"save_counter"}
        assert {float(x) for name in stored for x in again.get_tensor(name)} == {1}

    def test_a_name_of_its_own_above_a_state_is_live(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(kernel=nnx.Param(jnp.ones(2))).write(tmp_path / "c")
        below, kernel = nnx.Dict(kernel=nnx.Param(jnp.full(2, 5.0))), nnx.Param(jnp.zeros(2))
        middle = jaxckpt.Checkpoint(nnx.state(below))
        middle.kernel = kernel
        jaxckpt.Checkpoint(middle).read(path).assert_consumed()
        assert (float(kernel[...][0]), float(below.kernel[...][0])) == (1, 5)

    def test_one_checkpoint_below_another_and_beside_it(self, tmp_path: Path) -> None:
        differ = jaxckpt.Checkpoint(a={"x": jnp.ones(2)}, b={"x": jnp.full(2, 2.0)}).write(tmp_path / "differ")
        part = jaxckpt.Checkpoint(x=jnp.zeros(2))
        outer = jaxckpt.Checkpoint(a=jaxckpt.Checkpoint(jaxckpt.Checkpoint(part)), b=part)
        with pytest.raises(ValueError, match="a/x and b/x"):
            outer.read(differ)
        assert float(part.x[0]) == 0

    def test_slot_variables_of_a_nested_checkpoint(self, tmp_path: Path) -> None:
        params = {"w": jnp.ones(3)}
        state = optax.adam(0.1).init(params)
        state = jax.tree.map(lambda leaf: leaf + 4, state)
        path = jaxckpt.Checkpoint(part=jaxckpt.Checkpoint(params=params, optimizer=state)).save(tmp_path / "c")
        part = jaxckpt.Checkpoint(params={"w": jnp.zeros(3)}, optimizer=optax.adam(0.1).init(params))
        options = jaxckpt.CheckpointOptions(experimental_skip_slot_variables=True)
        jaxckpt.Checkpoint(part=part).restore(path, options).assert_consumed()
        assert (float(part.params["w"][0]), int(part.optimizer[0].count)) == (1, 4)
        assert float(part.optimizer[0].mu["w"][0]) == 0

    def test_a_deep_copy_is_independent(self, tmp_path: Path) -> None:
        part = jaxckpt.Checkpoint(x=jnp.zeros(2))
        outer = jaxckpt.Checkpoint(part=part)
        path = jaxckpt.Checkpoint(part={"x": jnp.ones(2)}).save(tmp_path / "c")
        other = copy.deepcopy(outer)
        other.restore(path).assert_consumed()
        assert (float(part.x[0]), float(other.part.x[0])) == (0, 1)


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "target",
    [
        object(),
        {1, 2},
        bytearray(b"x"),
        Text("x"),
        lambda: 0,
        np.array([None]),
        np.array(["text"]),
        np.array(1, "datetime64[s]"),
        np.ma.masked_array([1.0]),
        jnp.zeros(2, jnp.uint4),
        jax.ShapeDtypeStruct((2,), jnp.uint4),
        2**64,
    ],
    ids=lambda target: type(target).__name__,
)
@pytest.mark.parametrize("is_stored", [False, True])
def test_what_save_refuses_is_refused_as_a_target(target: Any, is_stored: bool, tmp_path: Path) -> None:
    """It is never "missing", so that a restore which changes nothing is taken for a fresh start."""
    values = {"fine": jnp.ones(1)} | ({"bad": {"deep": np.ones(1)}} if is_stored else {})
    path = jaxckpt.Checkpoint(**values).save(tmp_path / "c")
    if not isinstance(target, jax.ShapeDtypeStruct):
        with pytest.raises(TypeError, match="^bad/deep: "):
            jaxckpt.Checkpoint(bad={"deep": target}).save(tmp_path / "refused")
    checkpoint = jaxckpt.Checkpoint(fine=jnp.zeros(1), bad={"deep": target})
    with pytest.raises(TypeError, match="^bad/deep: ") as raised:
        checkpoint.restore(path)
    assert len(str(raised.value)) > len("bad/deep: None")
    assert float(checkpoint.fine[0]) == 0


def test_an_abstract_target_may_be_missing(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(fine=jnp.ones(1)).save(tmp_path / "c")
    checkpoint = jaxckpt.Checkpoint(fine=jnp.zeros(1), other=jax.ShapeDtypeStruct((2,), jnp.float32))
    assert checkpoint.restore(path).expect_partial().missing == ("other",)
