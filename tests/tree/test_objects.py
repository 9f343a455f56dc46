"""Reference objects: NNX, train states, and objects with a state of their own. Restored in place, or not at all."""

import copy
import json
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from examples import examples
from hypothesis import strategies as st

import jaxckpt

pytestmark = pytest.mark.sampled


class Serialized:
    """``serialize()`` and ``deserialize()``; refuses the states in `refused`."""

    def __init__(self, state: str | bytes, refused: tuple[Any, ...] = ()) -> None:
        self.state = state
        self.refused = refused

    def serialize(self) -> str | bytes:
        return self.state

    def deserialize(self, value: str | bytes) -> None:
        if value in self.refused:
            self.state = "half changed"
            raise RuntimeError(f"cannot be in state {value!r}")
        self.state = value


class Stateful:
    """``get_state()`` and ``set_state()``, as data iterators have."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def get_state(self) -> Any:
        return self.state

    def set_state(self, state: Any) -> None:
        self.state = state


class Subclass(str):
    """Would come back as a str."""

    __slots__ = ()


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.tied = self.first
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.on_host = nnx.Variable(np.arange(3))
        self.count = nnx.Variable(5)
        self.nested = nnx.Variable({"a": jnp.ones(2), "b": [1, 2.5]})
        self.nothing = nnx.Variable(None)
        self.hyper = "static"


def leaves_of(node: Any) -> list[Any]:
    """The leaves of a graph node, keys as their data."""
    found = []
    for leaf in jax.tree.leaves(nnx.state(node)):
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found.append(np.asarray(jax.random.key_data(leaf) if is_key else leaf).copy())
    return found


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right, strict=True)


def trained(seed: int) -> tuple[Model, nnx.Optimizer, nnx.Rngs]:
    model = Model(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    rngs = nnx.Rngs(params=seed, noise=seed + 1)
    for _ in range(seed):
        grads = nnx.grad(lambda model: (model.norm(model.first(jnp.ones((2, 3)) * seed)) ** 3).sum())(model)
        optimizer.update(model, grads)
        rngs.noise()
    return model, optimizer, rngs


class TestNnx:
    @pytest.mark.slow
    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_everything_is_updated_in_place(self, asynchronous: bool, tmp_path: Path) -> None:
        options = jaxckpt.CheckpointOptions(enable_async=asynchronous)
        saved = trained(2)
        path = jaxckpt.Checkpoint(model=saved[0], optimizer=saved[1], rngs=saved[2]).save(tmp_path / "ckpt", options)
        jaxckpt.Checkpoint().read(None)
        fresh = trained(1)
        fresh[0].count.set_value(-1)
        fresh[0].on_host.set_value(np.zeros(3, int))
        kernel = fresh[0].first.kernel
        checkpoint = jaxckpt.Checkpoint(model=fresh[0], optimizer=fresh[1], rngs=fresh[2])
        _wait_for(path)
        checkpoint.restore(path).assert_consumed()
        assert checkpoint.model is fresh[0]
        assert checkpoint.optimizer is fresh[1]
        assert checkpoint.rngs is fresh[2]
        assert fresh[0].first.kernel is kernel
        assert fresh[0].tied is fresh[0].first
        for one, other in zip(saved, fresh, strict=True):
            assert_same(leaves_of(one), leaves_of(other))
        assert fresh[0].count.get_value() == 5
        assert isinstance(fresh[0].on_host.get_value(), np.ndarray)
        # The streams go on from where they were.
        assert_same([jax.random.key_data(fresh[2].noise())], [jax.random.key_data(saved[2].noise())])

    @pytest.mark.slow
    def test_shared_weights_are_stored_once(self, tmp_path: Path) -> None:
        model, _, _ = trained(1)
        names = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(model=model).save(tmp_path / "ckpt")).keys()
        assert "model/first/kernel" in names
        assert not [name for name in names if name.startswith("model/tied")]

    @pytest.mark.slow
    def test_an_nnx_root_is_updated_in_place(self, tmp_path: Path) -> None:
        saved, fresh = trained(2)[0], trained(1)[0]
        path = jaxckpt.Checkpoint(saved).save(tmp_path / "ckpt")
        jaxckpt.Checkpoint(fresh).restore(path).assert_consumed()
        assert_same(leaves_of(saved), leaves_of(fresh))
        # By name is the same on disk.
        other = trained(1)[0]
        status = jaxckpt.Checkpoint(first=other.first, norm=other.norm).restore(path).expect_partial()
        assert not status.missing
        assert_same(leaves_of(saved.first), leaves_of(other.first))

    def test_a_lone_variable(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(v=nnx.Param(jnp.arange(3.0))).save(tmp_path / "ckpt")
        variable = nnx.Param(jnp.zeros(3))
        checkpoint = jaxckpt.Checkpoint(v=variable)
        checkpoint.restore(path).assert_consumed()
        assert checkpoint.v is variable
        np.testing.assert_array_equal(variable.get_value(), np.arange(3.0))

    def test_shardings_of_variables_are_kept(self, tmp_path: Path) -> None:
        mesh = jax.sharding.Mesh(jax.devices()[:4], ("x",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        path = jaxckpt.Checkpoint(v=nnx.Param(jnp.arange(8.0))).save(tmp_path / "ckpt")
        variable = nnx.Param(jax.device_put(jnp.zeros(8), sharding))
        jaxckpt.Checkpoint(v=variable).restore(path).assert_consumed()
        assert variable.get_value().sharding == sharding
        np.testing.assert_array_equal(variable.get_value(), np.arange(8.0))

    @pytest.mark.slow
    def test_a_wrong_shape_inside_a_module_changes_nothing(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(a=trained(2)[0], z=nnx.Linear(2, 2, rngs=nnx.Rngs(0))).save(tmp_path / "ckpt")
        model = trained(1)[0]
        before = leaves_of(model)
        with pytest.raises(ValueError, match=r"z/(bias.*\(3,\).*\(2,\)|kernel.*\(2, 3\).*\(2, 2\))"):
            jaxckpt.Checkpoint(a=model, z=nnx.Linear(2, 3, rngs=nnx.Rngs(0))).restore(path)
        assert_same(leaves_of(model), before)


def _wait_for(path: str) -> None:
    """Restores elsewhere do not wait for a save in flight: it is another Checkpoint's."""
    import threading

    for thread in threading.enumerate():
        if thread.name.startswith("jaxckpt save") and path in thread.name:
            thread.join(60)


class TestFailingObjects:
    """A state that an object refuses: everything stays as it was, whatever the order."""

    @pytest.mark.slow
    @pytest.mark.parametrize("position", ["a", "m", "z"])
    def test_everything_is_undone(self, position: str, tmp_path: Path) -> None:
        model, optimizer, rngs = trained(2)
        values: dict[str, Any] = {"b": model, "c": optimizer, "d": rngs, "e": jnp.ones(2), "n": Stateful([1, {"x": 2}])}
        saved = jaxckpt.Checkpoint(**values, **{position: Serialized("refused")}, y=Serialized(b"\x00\xff"))
        saved.save_counter = 7
        path = saved.save(tmp_path / "ckpt")

        model, optimizer, rngs = trained(1)
        refuser, stateful, other = Serialized("old", refused=("refused",)), Stateful([0]), Serialized(b"old")
        old = {"b": model, "c": optimizer, "d": rngs, "e": jnp.zeros(2), "n": stateful, "y": other, position: refuser}
        checkpoint = jaxckpt.Checkpoint(**old)
        before = [leaves_of(node) for node in (model, optimizer, rngs)]
        variables = [model.first.kernel, rngs.noise.count]
        with pytest.raises(RuntimeError, match="cannot be in state 'refused'"):
            checkpoint.restore(path)
        for node, leaves in zip((model, optimizer, rngs), before, strict=True):
            assert_same(leaves_of(node), leaves)
        assert model.first.kernel is variables[0]
        assert rngs.noise.count is variables[1]
        assert (refuser.state, stateful.state, other.state) == ("old", [0], b"old")
        assert checkpoint.save_counter == 0
        for name, value in old.items():
            assert getattr(checkpoint, name) is value
        # And it can be restored once it accepts.
        refuser.refused = ()
        checkpoint.restore(path).assert_consumed()
        assert (refuser.state, stateful.state, other.state) == ("refused", [1, {"x": 2}], b"\x00\xff")
        assert checkpoint.save_counter == 8

    def test_an_object_that_cannot_go_back_does_not_keep_the_others_from_it(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(a=Serialized("a2"), b=Serialized("b2"), c=Serialized("c2")).save(tmp_path / "ckpt")
        first, stuck, refuser = Serialized("a1"), Serialized("b1", refused=("b1",)), Serialized("c1", refused=("c2",))
        with pytest.raises(RuntimeError):
            jaxckpt.Checkpoint(a=first, b=stuck, c=refuser).restore(path)
        assert first.state == "a1"
        assert refuser.state == "c1"

    @pytest.mark.parametrize("sets_it_first", [False, True])
    @pytest.mark.parametrize("nested", [False, True])
    def test_a_root_that_refuses_a_value(self, nested: bool, sets_it_first: bool, tmp_path: Path) -> None:
        class Root(nnx.Module):
            def __init__(self, number: float) -> None:
                self.first = nnx.data(jnp.full(2, number))
                self.kernel = nnx.Param(jnp.full(2, number))
                self.last = nnx.data(jnp.full(2, number))

            def __setattr__(self, name: str, value: Any) -> None:
                refused = name == "last" and hasattr(self, "last") and float(value[0]) == 1
                if sets_it_first or not refused:
                    super().__setattr__(name, value)
                if refused:
                    raise RuntimeError("refused")

        def make(number: float) -> tuple[Root, jaxckpt.Checkpoint]:
            root = Root(number)
            checkpoint = jaxckpt.Checkpoint(root, step=jnp.full(1, number), it=Stateful([number]))
            return root, jaxckpt.Checkpoint(checkpoint, other=jnp.full(1, number)) if nested else checkpoint

        path = make(1)[1].save(tmp_path / "c")
        root, checkpoint = make(0)
        before = (root.first, root.kernel.get_raw_value(), root.last, checkpoint.step)
        with pytest.raises(RuntimeError, match="refused"):
            checkpoint.restore(path)
        after = (root.first, root.kernel.get_raw_value(), root.last, checkpoint.step)
        assert all(one is other for one, other in zip(before, after, strict=True))
        assert checkpoint.it.state == [0]
        assert checkpoint.save_counter == 0
        if nested:
            assert float(checkpoint.other[0]) == 0

    def test_a_state_that_is_no_json_is_an_error_that_names_the_leaf(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(a=jnp.ones(1), it="no json").save(tmp_path / "ckpt")
        iterator = Stateful([1])
        checkpoint = jaxckpt.Checkpoint(a=jnp.zeros(1), it=iterator)
        with pytest.raises(ValueError, match="it"):
            checkpoint.restore(path)
        assert iterator.state == [1]
        assert float(checkpoint.a[0]) == 0.0

    def test_the_state_of_another_kind_of_object(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(it=Serialized("text")).save(tmp_path / "ckpt")
        iterator = Serialized(b"bytes")
        with pytest.raises(ValueError, match=r"it: .*bytes.*str"):
            jaxckpt.Checkpoint(it=iterator).restore(path)
        assert iterator.state == b"bytes"


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda children: st.one_of(st.lists(children, max_size=3), st.dictionaries(st.text(), children, max_size=3)),
    max_leaves=8,
)


@hypothesis.given(state=st.one_of(json_values, st.binary()))
@hypothesis.settings(max_examples=examples(25))
def test_any_json_state_comes_back(state: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = jaxckpt.Checkpoint(it=[Stateful(state)]).write(tmp_path_factory.mktemp("json") / "c")
    # Bytes and JSON are told apart by the target, which has a state of the same kind.
    iterator = Stateful(b"" if isinstance(state, bytes) else None)
    jaxckpt.Checkpoint(it=[iterator]).read(path).assert_consumed()
    assert iterator.state == state
    assert json.dumps(iterator.state) == json.dumps(state) if not isinstance(state, bytes) else True


@pytest.mark.parametrize("state", [{"loss": float("nan")}, [float("inf"), float("nan")], float("nan")])
def test_nan_in_a_state_survives(state: Any, tmp_path: Path) -> None:
    """Python's JSON keeps nan, so there is no reason to refuse it."""
    path = jaxckpt.Checkpoint(it=Stateful(state)).write(tmp_path / "c")
    iterator = Stateful(None)
    jaxckpt.Checkpoint(it=iterator).read(path).assert_consumed()
    assert repr(iterator.state) == repr(state)


def same(one: Any, other: Any) -> bool:
    """Whether two states are the same: types, dtypes and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return (
            list(one) == list(other)
            and same(list(one.keys()), list(other))
            and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, jax.Array) and jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
        return one.dtype == other.dtype and same(jax.random.key_data(one), jax.random.key_data(other))
    if isinstance(one, (jax.Array, np.ndarray, np.generic)):
        if isinstance(one, jax.Array) and one.weak_type != other.weak_type:
            return False
        left, right = np.asarray(one), np.asarray(other)
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    return repr(one) == repr(other)


# As the iterators of Grain have them, and what else there may be.
RICH_STATES: list[Any] = [
    {"dataset": {"position": 3, "shards": (0, [1, (2, None)]), "names": ("a", b"\x00\xff")}, "epoch": None},
    (),
    ((1, 2.5, True, "text", None, float("nan"), -0.0, 1 + 2j, 2**70),),
    {1: "int", "1": "str", (2, "x"): "tuple", None: 0, b"k": 1, 1.5: 2, False: 3},
    {"jaxckpt.state": [1]},
    {"tuple": [1], "more": (2,)},
    {"buffer": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.zeros((0, 3), np.int8), "scalar": np.array(7)},
    [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("text"), np.datetime64("2026-01-01", "ns")],
    [
        np.array(["a", "bcd"]),
        np.array([b"x\x00y"]),
        np.array([1, 2], ">i4"),
        np.array([1 + 2j], np.complex64),
        np.array([""]),
    ],
    {
        "bf16": np.array([1, np.nan], jnp.bfloat16),
        "fp8": np.array([1.5], jnp.float8_e4m3fn),
        "int4": np.array([-3], jnp.int4),
    },
    {"jax": jnp.arange(3), "bf16": jnp.ones(2, jnp.bfloat16), "weak": jnp.asarray(2.0), "strong": jnp.float32(2)},
    {"key": jax.random.key(3), "rbg": jax.random.split(jax.random.key(3, impl="rbg"), 2), "raw": jax.random.PRNGKey(1)},
]


@pytest.mark.parametrize("position", range(len(RICH_STATES)))
@pytest.mark.parametrize("asynchronous", [False, True])
def test_states_that_json_cannot_say(position: int, asynchronous: bool, tmp_path: Path) -> None:
    state = RICH_STATES[position]
    saving = jaxckpt.Checkpoint(it=[Stateful(state)])
    path = saving.save(tmp_path / "c", jaxckpt.CheckpointOptions(enable_async=asynchronous))
    saving.sync()
    for old in (None, {"position": 0}, (np.zeros(2),)):
        iterator = Stateful(old)
        jaxckpt.Checkpoint(it=[iterator]).restore(path).assert_consumed()
        assert same(iterator.state, state), iterator.state
    if isinstance(state, dict) and "buffer" in state:
        assert all(array.flags.writeable for array in iterator.state.values())


def test_json_states_are_stored_as_their_text(tmp_path: Path) -> None:
    """As ever: what older versions wrote is restored, and other programs read it."""
    state = {"b": [1, 2.5, None, "x"], "a": {"c": True}}
    path = jaxckpt.Checkpoint(it=Stateful(state), text='{"position": 3}', raw=Stateful(b"\x00")).save(tmp_path / "c")
    assert jaxckpt.load_variable(path, "it") == json.dumps(state)
    assert jaxckpt.load_variable(path, "raw").tobytes() == b"\x00"
    iterator = Stateful(None)
    jaxckpt.Checkpoint(text=iterator).restore(path).expect_partial()
    assert iterator.state == {"position": 3}


@pytest.mark.parametrize(
    "text",
    ['{"jaxckpt.state": {"set": [1]}}', '{"jaxckpt.state": {"numpy": ["<f4", [3], "AAAA"]}}', '{"jaxckpt.state": {}}'],
)
def test_an_encoding_that_is_not_known(text: str, tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(it=text).save(tmp_path / "c")
    iterator = Stateful([1])
    with pytest.raises(ValueError, match=r"^it: the stored value is not a state of a Stateful"):
        jaxckpt.Checkpoint(it=iterator).restore(path)
    assert iterator.state == [1]


def test_a_state_that_contains_itself(tmp_path: Path) -> None:
    state: list[Any] = []
    state.append(state)
    with pytest.raises(TypeError, match=r"it: Stateful.get_state\(\).*contain itself"):
        jaxckpt.Checkpoint(it=Stateful(state)).save(tmp_path / "c")


def test_the_error_says_where_in_the_state(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"data/0: Stateful.get_state\(\).*state\['a'\]\[1\] is a builtins.set"):
        jaxckpt.Checkpoint(data=[Stateful({"a": [0, {1}]})]).save(tmp_path / "c")


def test_one_state_object_under_two_names(tmp_path: Path) -> None:
    differ = jaxckpt.Checkpoint(a=Stateful([1]), b=[Stateful([2])], c=1).save(tmp_path / "differ")
    iterator = Stateful([0])
    checkpoint = jaxckpt.Checkpoint(a=iterator, b=[iterator], c=0)
    with pytest.raises(ValueError, match="a and b/0 are one object"):
        checkpoint.restore(differ)
    assert (iterator.state, checkpoint.c) == ([0], 0)
    path = jaxckpt.Checkpoint(a=Stateful([1]), b=[Stateful([1])], c=1).save(tmp_path / "same")
    checkpoint.restore(path).assert_consumed()
    assert iterator.state == [1]


@pytest.mark.parametrize(
    "state", [object(), {1, 2}, bytearray(b"x"), {"a": [Subclass("x")]}, np.ma.masked_array([1]), np.array([None])]
)
def test_states_that_would_come_back_changed_are_refused(state: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Stateful"):
        jaxckpt.Checkpoint(it=Stateful(state)).save(tmp_path / "ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("state", [1, None, bytearray(b"x"), ["text"]])
def test_serialize_returns_str_or_bytes(state: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Serialized"):
        jaxckpt.Checkpoint(it=Serialized(state)).save(tmp_path / "ckpt")
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_changes_after_an_asynchronous_save(tmp_path: Path) -> None:
    shared = {"position": [1]}
    iterator = Stateful(shared)
    checkpoint = jaxckpt.Checkpoint(it=iterator)
    path = checkpoint.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions(enable_async=True))
    shared["position"].append(2)
    checkpoint.restore(path).assert_consumed()
    assert iterator.state == {"position": [1]}


def test_train_state(tmp_path: Path) -> None:
    from flax.training.train_state import TrainState

    def make(value: float) -> Any:
        params = {"w": jnp.full((2, 3), value)}
        return TrainState.create(apply_fn=abs, params=params, tx=optax.adam(0.1))

    saved = make(1.0).apply_gradients(grads={"w": jnp.ones((2, 3))})
    path = jaxckpt.Checkpoint(state=saved).save(tmp_path / "ckpt")
    checkpoint = jaxckpt.Checkpoint(state=make(5.0))
    checkpoint.restore(path).assert_consumed()
    assert isinstance(checkpoint.state, TrainState)
    assert checkpoint.state.apply_fn is abs
    assert_same(jax.tree.leaves(checkpoint.state), jax.tree.leaves(saved))
    # As a root, and as an abstract target.
    saved = saved.replace(step=jnp.asarray(3))
    path = jaxckpt.Checkpoint(saved).save(tmp_path / "root")
    checkpoint = jaxckpt.Checkpoint(jax.eval_shape(lambda: make(5.0).replace(step=jnp.asarray(0))))
    checkpoint.restore(path).assert_consumed()
    assert_same(jax.tree.leaves(checkpoint.params), jax.tree.leaves(saved.params))


@pytest.mark.slow
def test_nnx_objects_in_a_deep_copy_are_independent(tmp_path: Path) -> None:
    model = trained(1)[0]
    checkpoint = jaxckpt.Checkpoint(model=model)
    path = checkpoint.save(tmp_path / "ckpt")
    other = copy.deepcopy(checkpoint)
    before = leaves_of(model)
    other.model.first.kernel.set_value(jnp.zeros((3, 4)))
    assert_same(leaves_of(model), before)
    other.restore(path).assert_consumed()
    assert other.model is not model
    assert_same(leaves_of(other.model), before)
