"""NNX Variables: raw values, Variables under several names, `nnx.State` as a value, names that plain Orbax gives them."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxckpt
from jaxckpt.tree import builders

pytestmark = pytest.mark.sampled

P = jax.sharding.PartitionSpec


class Net(nnx.Module):
    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), jax.nn.relu, nnx.Linear(3, 1, rngs=rngs))
        self.tied = self.first
        self.extra = nnx.Dict(scale=nnx.Param(jnp.full(2, float(seed))), table=nnx.List([nnx.Param(jnp.ones(1))]))


def filled(node: Any, number: float) -> Any:
    """Gives every Variable of numbers one value."""
    for leaf in jax.tree.leaves(nnx.state(node), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        value = leaf.get_raw_value()
        if jnp.issubdtype(value.dtype, jnp.floating):
            leaf.set_raw_value(jnp.full_like(value, number))
    return node


def numbers(node: Any) -> set[float]:
    """All numbers in the Variables of a module or state."""
    leaves = jax.tree.leaves(nnx.state(node) if isinstance(node, nnx.Module) else node)
    return {float(x) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating) for x in np.ravel(leaf)}


def params(node: Any) -> Any:
    return nnx.state(node, nnx.Param)


def copied(state: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf, state)


class TestSharedVariables:
    @pytest.mark.parametrize("names", [("model", "ema"), ("zmodel", "ema")])
    def test_an_ema_that_shares_the_variables_of_the_model(self, names: tuple[str, str], tmp_path: Path) -> None:
        model, ema = names
        saved = {model: filled(Net(0), 1), ema: copied(params(filled(Net(0), 2)))}
        path = jaxckpt.Checkpoint(**saved).save(tmp_path / "c")
        net = filled(Net(1), 5)
        checkpoint = jaxckpt.Checkpoint(**{model: net, ema: params(net)})
        with pytest.raises(ValueError, match=rf"{model}/\S+ and {ema}/\S+|{ema}/\S+ and {model}/\S+") as raised:
            checkpoint.restore(path)
        assert "copy" in str(raised.value)
        assert numbers(net) == {5}
        assert checkpoint.save_counter == 0
        # With a copy, as the error says, both are there.
        checkpoint = jaxckpt.Checkpoint(**{model: net, ema: copied(params(net))})
        checkpoint.restore(path).assert_consumed()
        assert numbers(net) == {1}
        assert numbers(getattr(checkpoint, ema)) == {2}

    def test_where_both_are_the_same_they_go_on_sharing(self, tmp_path: Path) -> None:
        net = filled(Net(0), 3)
        path = jaxckpt.Checkpoint(model=net, ema=params(net)).save(tmp_path / "c")
        assert {"model/first/kernel", "ema/first/kernel"} <= set(jaxckpt.load_checkpoint(path).keys())
        net = filled(Net(1), 5)
        state = params(net)
        checkpoint = jaxckpt.Checkpoint(model=net, ema=state)
        checkpoint.restore(path).assert_consumed()
        assert numbers(net) == numbers(checkpoint.ema) == numbers(state) == {3}
        assert checkpoint.ema["first"]["kernel"] is net.first.kernel

    @pytest.mark.parametrize("stored", ["model", "ema"])
    def test_one_of_the_names_is_stored(self, stored: str, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(**{stored: params(filled(Net(0), 3))}).save(tmp_path / "c")
        net = filled(Net(1), 5)
        status = jaxckpt.Checkpoint(model=net, ema=params(net)).restore(path).expect_partial()
        assert status.missing
        assert numbers(params(net)) == {3}

    def test_a_state_alone_leaves_the_live_model_alone(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(state=nnx.state(filled(Net(0), 1))).save(tmp_path / "c")
        net = filled(Net(1), 5)
        for given in (nnx.state(net), nnx.split(net)[1]):
            checkpoint = jaxckpt.Checkpoint(state=given)
            checkpoint.restore(path).assert_consumed()
            assert numbers(net) == numbers(given) == {5}
            assert numbers(checkpoint.state) == {1}
            assert type(checkpoint.state) is nnx.State
            assert jax.tree.structure(checkpoint.state) == jax.tree.structure(given)
            kernel = checkpoint.state["first"]["kernel"]
            assert isinstance(kernel, nnx.Param)
        nnx.update(net, checkpoint.state)
        assert numbers(net) == {1}

    def test_a_state_as_root(self, tmp_path: Path) -> None:
        net = Net(0)
        net.scale = nnx.Param(jnp.ones(2))
        path = jaxckpt.Checkpoint(nnx.state(filled(net, 1))).save(tmp_path / "c")
        net = Net(1)
        net.scale = nnx.Param(jnp.ones(2))
        checkpoint = jaxckpt.Checkpoint(nnx.state(filled(net, 5)))
        checkpoint.restore(path).assert_consumed()
        assert numbers(net) == {5}
        assert numbers(checkpoint.first) == numbers(checkpoint.scale.get_value()) == {1}

    def test_states_in_containers_and_of_several_types(self, tmp_path: Path) -> None:
        def values(net: Net) -> dict[str, Any]:
            weights, rest = nnx.state(net, nnx.Param, ...)
            return {"deep": [{"weights": weights}, (rest,)], "optimizer": optax.adam(0.1).init(weights)}

        saved = values(filled(Net(0), 1))
        saved["optimizer"] = jax.tree.map(lambda leaf: leaf + 7, saved["optimizer"])
        path = jaxckpt.Checkpoint(**saved).save(tmp_path / "c")
        net = filled(Net(1), 5)
        checkpoint = jaxckpt.Checkpoint(**values(net))
        checkpoint.restore(path).assert_consumed()
        assert numbers(net) == {5}
        assert numbers(checkpoint.deep[0]["weights"]) == {1}
        assert isinstance(checkpoint.deep[1][0]["norm"]["mean"], nnx.BatchStat)
        assert numbers(checkpoint.optimizer[0].mu) == {7}
        assert int(checkpoint.optimizer[0].count) == 7
        assert isinstance(checkpoint.optimizer[0].mu["first"]["kernel"], nnx.Param)

    @pytest.mark.parametrize(
        "make",
        [
            lambda net: {"a": net, "b": net},
            lambda net: {"a": net, "b": {"x": [net]}},
            lambda net: {"a": net, "b": net.first},
            lambda net: {"a": net.first.kernel, "b": net},
            lambda net: {"a": params(net), "b": params(net)},
            lambda net: {"a": jaxckpt.Checkpoint(net), "b": net},
        ],
        ids=["module twice", "in a list", "part of it", "lone Variable", "two states", "nested Checkpoint"],
    )
    def test_one_module_under_two_names(self, make: Callable[[Net], dict[str, Any]], tmp_path: Path) -> None:
        same = jaxckpt.Checkpoint(**make(filled(Net(0), 1))).save(tmp_path / "same")
        differ = jaxckpt.Checkpoint(a=make(filled(Net(0), 1))["a"], b=make(filled(Net(0), 2))["b"]).save(
            tmp_path / "differ"
        )
        net = filled(Net(1), 5)
        checkpoint = jaxckpt.Checkpoint(**make(net))
        with pytest.raises(ValueError, match=r"a(/\S+)? and b/\S+ are one object"):
            checkpoint.restore(differ)
        assert numbers(net) == {5}
        checkpoint.restore(same).assert_consumed()
        assert numbers(checkpoint.b if isinstance(checkpoint.b, nnx.State) else net.first) == {1}

    def test_a_root_and_a_keyword_of_one_module(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(filled(Net(0), 1), again=filled(Net(0), 2)).save(tmp_path / "c")
        net = filled(Net(1), 5)
        with pytest.raises(ValueError, match="again"):
            jaxckpt.Checkpoint(net, again=net).restore(path)
        assert numbers(net) == {5}

    def test_an_optimizer_that_holds_its_model(self, tmp_path: Path) -> None:
        def make(seed: int) -> tuple[Net, nnx.ModelAndOptimizer]:
            net = Net(seed)
            return net, nnx.ModelAndOptimizer(net, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)))

        net, optimizer = make(0)
        filled(optimizer, 2)
        path = jaxckpt.Checkpoint(model=net, optimizer=optimizer).save(tmp_path / "c")
        assert "optimizer/model/first/kernel" in jaxckpt.load_checkpoint(path).keys()
        net, optimizer = make(1)
        jaxckpt.Checkpoint(model=net, optimizer=optimizer).restore(path).assert_consumed()
        assert numbers(net) == numbers(nnx.state(optimizer)) == {2}
        assert optimizer.model is net

    def test_plain_arrays_under_two_names_are_two_values(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(a=np.ones(2), b=np.full(2, 2.0)).save(tmp_path / "c")
        for array in (np.zeros(2), jnp.zeros(2)):
            if array.dtype == np.float32:
                path = jaxckpt.Checkpoint(a=jnp.ones(2), b=jnp.full(2, 2.0)).save(tmp_path / "c")
            checkpoint = jaxckpt.Checkpoint(a=array, b=array)
            checkpoint.restore(path).assert_consumed()
            assert (checkpoint.a[0], checkpoint.b[0], array[0]) == (1, 2, 0)

    def test_nan_is_the_same_as_itself_and_zeros_have_signs(self, tmp_path: Path) -> None:
        for one, other, is_same in ((np.nan, np.nan, True), (0.0, -0.0, False)):
            path = jaxckpt.Checkpoint(a=nnx.Param(jnp.array(one)), b=nnx.Param(jnp.array(other))).write(tmp_path / "c")
            variable = nnx.Param(jnp.array(1.0))
            checkpoint = jaxckpt.Checkpoint(a=variable, b=variable)
            if is_same:
                checkpoint.read(path).assert_consumed()
                assert np.isnan(variable.get_value())
            else:
                with pytest.raises(ValueError, match="a and b"):
                    checkpoint.read(path)

    def test_keys_and_sharded_arrays_are_compared(self, tmp_path: Path) -> None:
        mesh = jax.sharding.Mesh(jax.devices()[:4], ("x",))
        sharding = jax.sharding.NamedSharding(mesh, P("x"))

        def make(seed: int) -> nnx.Dict:
            return nnx.Dict(
                key=nnx.RngKey(jax.random.key(seed), tag="a"),
                array=nnx.Param(jax.device_put(jnp.full(8, float(seed)), sharding)),
            )

        one, other = make(1), make(2)
        both = jaxckpt.Checkpoint(a=one, b=make(1)).save(tmp_path / "same")
        keys = jaxckpt.Checkpoint(a=one, b=nnx.Dict(key=other.key, array=one.array)).save(tmp_path / "keys")
        arrays = jaxckpt.Checkpoint(a=one, b=nnx.Dict(key=one.key, array=other.array)).save(tmp_path / "arrays")
        fresh = make(3)
        checkpoint = jaxckpt.Checkpoint(a=fresh, b=fresh)
        for path, name in ((keys, "key"), (arrays, "array")):
            with pytest.raises(ValueError, match=f"a/{name} and b/{name}"):
                checkpoint.restore(path)
        checkpoint.restore(both).assert_consumed()
        assert fresh.array.get_value().sharding == sharding
        np.testing.assert_array_equal(fresh.array.get_value(), np.ones(8))


class Scaled(nnx.Param):
    """What a program reads is not what is there."""

    def get_value(self, **kwargs: Any) -> Any:
        return super().get_value(**kwargs).astype(jnp.float32) * 3

    def set_value(self, value: Any, **kwargs: Any) -> None:
        super().set_value((value / 3).astype(jnp.bfloat16), **kwargs)


def never(*_: Any) -> Any:
    raise AssertionError("a hook has run")


def hooked(value: Any) -> nnx.Param:
    """A Variable whose hooks must not run after it was made."""
    variable = nnx.Param(value)
    variable.set_metadata(on_get_value=never, on_set_value=never, on_create_value=never)
    return variable


class TestRawValues:
    @pytest.mark.parametrize("make", [Scaled, hooked])
    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_what_is_stored_and_restored(
        self, make: Callable[[Any], nnx.Variable], asynchronous: bool, tmp_path: Path
    ) -> None:
        def values(number: float) -> dict[str, Any]:
            module = nnx.Dict(w=make(jnp.full(2, number, jnp.bfloat16)))
            other = nnx.Dict(w=make(jnp.full(2, number, jnp.bfloat16)))
            return {"lone": make(jnp.full(2, number, jnp.bfloat16)), "module": module, "state": nnx.state(other)}

        saved = values(1)
        options = jaxckpt.CheckpointOptions(enable_async=asynchronous)
        saving = jaxckpt.Checkpoint(**saved)
        path = saving.save(tmp_path / "c", options)
        saving.sync()
        for name in ("lone", "module/w", "state/w"):
            stored = jaxckpt.load_variable(path, name)
            assert stored.dtype == jnp.bfloat16
            np.testing.assert_array_equal(stored, np.ones(2, jnp.bfloat16))
        fresh = values(5)
        live = fresh["state"]["w"]
        checkpoint = jaxckpt.Checkpoint(**fresh)
        checkpoint.restore(path).assert_consumed()
        for variable in (fresh["lone"], fresh["module"].w, checkpoint.state["w"]):
            raw = variable.get_raw_value()
            assert raw.dtype == jnp.bfloat16
            np.testing.assert_array_equal(np.asarray(raw), np.ones(2, jnp.bfloat16))
            assert type(variable) is type(saved["lone"])
        assert checkpoint.state["w"].get_metadata() == live.get_metadata()
        assert float(live.get_raw_value()[0]) == 5

    def test_a_failed_restore_puts_raw_values_back(self, tmp_path: Path) -> None:
        class Refuses:
            def serialize(self) -> str:
                return "x"

            def deserialize(self, value: str) -> None:
                if value != "x":
                    raise RuntimeError("no")

        path = jaxckpt.Checkpoint(a=Scaled(jnp.ones(2, jnp.bfloat16)), b="y", z=1).save(tmp_path / "c")
        variable = Scaled(jnp.full(2, 5, jnp.bfloat16))
        with pytest.raises(RuntimeError):
            jaxckpt.Checkpoint(a=variable, b=Refuses(), z=0).restore(path)
        raw = variable.get_raw_value()
        assert raw.dtype == jnp.bfloat16
        assert float(raw[0]) == 5

    def test_variables_that_hold_pytrees_references_or_host_values(self, tmp_path: Path) -> None:
        def values(number: int) -> nnx.Dict:
            return nnx.Dict(
                tree=nnx.Variable({"a": jnp.full(2, number), "b": [number, (2.5, "x")], "none": None}),
                host=nnx.Variable(np.full(2, number)),
                count=nnx.Variable(number),
                referenced=nnx.Param(jnp.full(2, number), ref=True),
            )

        path = jaxckpt.Checkpoint(m=values(1)).save(tmp_path / "c")
        fresh = values(5)
        referenced = fresh.referenced.get_raw_value()
        jaxckpt.Checkpoint(m=fresh).restore(path).assert_consumed()
        tree = fresh.tree.get_raw_value()
        np.testing.assert_array_equal(tree["a"], [1, 1])
        assert tree["b"] == [1, (2.5, "x")]
        assert tree["none"] is None
        np.testing.assert_array_equal(fresh.host.get_raw_value(), [1, 1])
        assert fresh.count.get_raw_value() == 1
        np.testing.assert_array_equal(fresh.referenced.get_value(), [1, 1])
        if isinstance(referenced, getattr(jax, "Ref", ())):
            assert fresh.referenced.get_raw_value() is referenced

    def test_arrays_outside_of_variables(self, tmp_path: Path) -> None:
        class Plain(nnx.Module):
            def __init__(self, number: float) -> None:
                self.array = nnx.data(jnp.full(2, number))
                self.pair = nnx.data((jnp.full(1, number), {"deep": [jnp.full(3, number)]}))
                self.items = nnx.List([jnp.full(2, number)])
                self.adam = nnx.data(optax.adam(0.1).init({"w": jnp.full(2, number)}))

        saved = Plain(1)
        saved.adam = jax.tree.map(lambda leaf: leaf + 1, saved.adam)
        path = jaxckpt.Checkpoint(m=saved).save(tmp_path / "c")
        fresh = Plain(5)
        jaxckpt.Checkpoint(m=fresh, again=fresh).restore(path).expect_partial()
        for leaf, expected in zip(jax.tree.leaves(fresh), jax.tree.leaves(saved), strict=True):
            np.testing.assert_array_equal(leaf, expected)

        # Undone as a whole.
        class Refuses:
            def serialize(self) -> str:
                return "x"

            def deserialize(self, value: str) -> None:
                if value != "x":
                    raise RuntimeError("no")

        path = jaxckpt.Checkpoint(m=Plain(3), z="y").save(tmp_path / "c")
        fresh = Plain(5)
        pair, deep = fresh.pair, fresh.pair[1]["deep"]
        with pytest.raises(RuntimeError):
            jaxckpt.Checkpoint(m=fresh, z=Refuses()).restore(path)
        assert fresh.pair is pair
        assert fresh.pair[1]["deep"] is deep
        assert {float(x) for leaf in jax.tree.leaves((fresh.array, fresh.pair, fresh.items)) for x in leaf} == {5}


class Shape(nnx.Module):
    """Holds what `parts` says, in any order of names."""

    def __init__(self, parts: dict[str, Any]) -> None:
        for name, part in parts.items():
            setattr(self, name, nnx.data(part))


def random_part(choice: random.Random, value: Callable[[], jax.Array], depth: int) -> Any:
    """Makes a part of a module: the same one for the same choices, with each value other than the rest."""
    kinds = ["array", "variable", "array", "variable", "pytree variable"]
    kind = choice.choice(kinds + ["tuple", "dict", "list", "nnx list", "module", "module"] * (depth < 3))
    if kind == "array":
        return value()
    if kind == "variable":
        return nnx.Param(value())
    if kind == "pytree variable":
        return nnx.Variable({"z": value(), "a": (value(),)})
    parts = [random_part(choice, value, depth + 1) for _ in range(choice.randint(1, 4))]
    names = choice.sample("abcdefghijklmnop", len(parts))
    match kind:
        case "tuple":
            return tuple(parts)
        case "dict":
            return dict(zip(names, parts, strict=True))
        case "list":
            return parts
        case "nnx list":
            return nnx.List([nnx.data(part) for part in parts])
    return Shape(dict(zip(names, parts, strict=True)))


def random_module(seed: int, number: int) -> Shape:
    choice, values = random.Random(seed), itertools.count(number)
    parts = [random_part(choice, lambda: jnp.full(2, float(next(values))), 0) for _ in range(6)]
    return Shape(dict(zip(choice.sample("abcdefghijklmnop", len(parts)), parts, strict=True)))


class TestArraysBesideVariables:
    """Each leaf is given the value that is stored under its own name, in whichever order the graph holds them."""

    def test_an_array_before_a_variable(self, tmp_path: Path) -> None:
        def make(number: float) -> Shape:
            return Shape({"buffer": jnp.full(2, number + 10), "weight": nnx.Param(jnp.full(2, number))})

        path = jaxckpt.Checkpoint(model=make(1.0), holder={"z": make(2.0), "m": [make(3.0)]}).write(tmp_path / "c")
        model, others = make(0.0), (make(0.0), make(0.0))
        jaxckpt.Checkpoint(model=model, holder={"z": others[0], "m": [others[1]]}).read(path).assert_consumed()
        for number, restored in enumerate((model, *others), 1):
            assert (float(restored.buffer[0]), float(restored.weight[0])) == (number + 10, number)

    @pytest.mark.slow
    def test_random_modules(self, tmp_path: Path) -> None:
        saved = {f"m{seed}": random_module(seed, 100) for seed in range(8)}
        path = jaxckpt.Checkpoint(**saved).write(tmp_path / "c")
        fresh = {name: random_module(int(name[1:]), 5000) for name in saved}
        jaxckpt.Checkpoint(**fresh).read(path).assert_consumed()
        stored = jaxckpt.load_checkpoint(path)
        mixed = 0
        for name, module in saved.items():
            expected, found = (nnx.to_flat_state(nnx.state(node)) for node in (module, fresh[name]))
            variables = [isinstance(leaf, nnx.Variable) for _, leaf in expected]
            mixed += variables != sorted(variables, reverse=True)
            for (keys, one), (other_keys, other) in zip(expected, found, strict=True):
                assert keys == other_keys
                jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(one), jax.tree.leaves(other))
                if not isinstance(one, nnx.Variable):
                    np.testing.assert_array_equal(stored.get_tensor("/".join(map(str, (name, *keys)))), one)
        assert mixed > 4

    def test_one_tuple_in_several_modules(self, tmp_path: Path) -> None:
        """A tuple is replaced, so each module gets its own; a dict in it is one object."""

        def make(number: float, other: float, *, shared: bool) -> tuple[Shape, Shape]:
            deep = {"x": jnp.full(1, 7.0 if number else 0.0)}
            one = (jnp.full(1, number), deep)
            return Shape({"t": one}), Shape({"t": one if shared else (jnp.full(1, other), deep)})

        one, other = make(1, 2, shared=False)
        path = jaxckpt.Checkpoint(x=one, y=other, whole=Shape({"x": one, "y": other})).write(tmp_path / "c")
        one, other = make(0, 0, shared=True)
        deep = one.t[1]
        jaxckpt.Checkpoint(x=one, y=other).read(path).expect_partial()
        assert (float(one.t[0][0]), float(other.t[0][0]), float(deep["x"][0])) == (1, 2, 7)
        assert one.t[1] is other.t[1] is deep
        # In one module.
        one, other = make(0, 0, shared=True)
        whole = Shape({"x": one, "y": other})
        jaxckpt.Checkpoint(whole=whole).read(path).expect_partial()
        assert (float(one.t[0][0]), float(other.t[0][0]), float(one.t[1]["x"][0])) == (1, 2, 7)
        # What is one object still cannot have two values.
        differ = {"t": ({"a": jnp.ones(1)},)}, {"t": ({"a": jnp.full(1, 2.0)},)}
        path = jaxckpt.Checkpoint(x=differ[0], y=differ[1]).write(tmp_path / "differ")
        held = ({"a": jnp.zeros(1)},)
        one, other = Shape({"t": held}), Shape({"t": held})
        with pytest.raises(ValueError, match="x/t/0/a and y/t/0/a"):
            jaxckpt.Checkpoint(x=one, y=other).read(path)
        assert float(held[0]["a"][0]) == 0

    def test_a_builder_out_of_turn_is_refused(self) -> None:
        """The leaves of another part would be restored into it."""
        first, second = (
            builders.RangeBuilder(builders.LEAF_BUILDER, 0, 1),
            builders.RangeBuilder(builders.LEAF_BUILDER, 1, 2),
        )
        rebuild = builders.Rebuild(set())
        rebuild.start(["old 0", "old 1"], ["new 0", builders.KEPT])
        assert [first.build(rebuild), second.build(rebuild)] == ["new 0", "old 1"]
        rebuild.start(["old 0", "old 1"], ["new 0", "new 1"])
        with pytest.raises(RuntimeError, match="expects leaf 1 next, but leaf 0 is next"):
            second.build(rebuild)
        rebuild.start(["old 0", "old 1"], ["new 0", "new 1"])
        with pytest.raises(RuntimeError, match="expects leaf 2 next, but leaf 1 is next"):
            builders.RangeBuilder(builders.LEAF_BUILDER, 0, 2).build(rebuild)


class TestNamesOfPlainOrbax:
    """`nnx.state(model)` saved by plain Orbax has names that end in ``/value``."""

    @pytest.mark.parametrize("version", ["v0", "v1"])
    def test_nnx_targets(self, version: str, tmp_path: Path) -> None:
        import orbax.checkpoint as ocp

        net = filled(Net(0), 1)
        optimizer = nnx.Optimizer(net, optax.adam(0.1), wrt=nnx.Param)
        state = {"model": nnx.state(net), "optimizer": nnx.state(optimizer)}
        path = tmp_path / "plain"
        if version == "v0":
            ocp.PyTreeCheckpointer().save(path, state)
        else:
            from orbax.checkpoint import v1

            v1.save(path, state)
        assert "model/first/kernel/value" in jaxckpt.load_checkpoint(path).keys()
        net = filled(Net(1), 5)
        optimizer = nnx.Optimizer(net, optax.adam(0.1), wrt=nnx.Param)
        checkpoint = jaxckpt.Checkpoint(model=net, optimizer=optimizer)
        status = checkpoint.read(path)
        status.assert_consumed()
        assert numbers(net) == {1}
        # As a State, and a lone Variable.
        kernel = nnx.Param(jnp.zeros((2, 3)))
        checkpoint = jaxckpt.Checkpoint(model=nnx.state(Net(2)), optimizer=nnx.state(optimizer))
        checkpoint.read(path).assert_consumed()
        assert numbers(checkpoint.model) == {1}
        jaxckpt.Checkpoint(model={"first": {"kernel": kernel}}).read(path).expect_partial()
        assert numbers(kernel.get_value()) == {1}
        # What is not in a Variable goes by its own name.
        plain = jaxckpt.Checkpoint(model={"first": {"kernel": jnp.zeros((2, 3))}})
        status = plain.read(path).expect_partial()
        assert status.missing == ("model/first/kernel",)

    def test_a_name_that_another_target_has(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(m={"kernel": {"value": jnp.ones(2)}}).save(tmp_path / "c")
        kernel = nnx.Param(jnp.zeros(2))
        jaxckpt.Checkpoint(m={"kernel": kernel}).restore(path).assert_consumed()
        assert numbers(kernel.get_value()) == {1}
        # The exact name wins: nothing is given to two targets.
        inner = nnx.Dict(value=nnx.Param(jnp.zeros(2)))
        jaxckpt.Checkpoint(m={"kernel": inner}).restore(path).assert_consumed()
        assert numbers(inner) == {1}

    def test_variables_that_hold_pytrees(self, tmp_path: Path) -> None:
        import orbax.checkpoint as ocp

        module = nnx.Dict(v=nnx.Variable({"a": jnp.ones(2), "b": [jnp.full(1, 2.0)]}))
        ocp.PyTreeCheckpointer().save(tmp_path / "plain", {"m": nnx.state(module)})
        fresh = nnx.Dict(v=nnx.Variable({"a": jnp.zeros(2), "b": [jnp.zeros(1)]}))
        jaxckpt.Checkpoint(m=fresh).read(tmp_path / "plain").assert_consumed()
        assert float(fresh.v.get_raw_value()["b"][0][0]) == 2
