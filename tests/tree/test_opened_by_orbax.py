"""Any Orbax opens what jaxckpt writes: v0 and v1, without a target and with the program's own.

Every test of the suite has its saves opened by plain Orbax (see ``conftest.py``). Here are states of programs, with their own targets.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import plain_orbax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from orbax.checkpoint import v1
from test_optimizers import OPTIMIZERS, PARAMS

import jaxckpt

pytestmark = pytest.mark.sampled


class Net(nnx.Module):
    """More than ten layers, so that their order as text is another one; functions in sequences; and nothing at all in some places."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([nnx.Linear(2, 2, use_bias=False, rngs=rngs) for _ in range(12)])
        self.mixed = nnx.List([nnx.relu, nnx.Linear(2, 2, rngs=rngs), nnx.relu])
        self.sequential = nnx.Sequential(nnx.Linear(2, 2, rngs=rngs), nnx.relu, nnx.BatchNorm(2, rngs=rngs))
        self.empty = nnx.List([])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.pair = nnx.Param((jnp.ones(2), [jnp.zeros(1)]))


def nnx_optimizer(transform: Any) -> dict[str, Any]:
    net = Net()
    return {"model": net, "optimizer": nnx.Optimizer(net, transform, wrt=nnx.Param)}


def train_state(transform: Any) -> TrainState:
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.arange(3.0)}}
    return TrainState.create(apply_fn=lambda: None, params=params, tx=transform)


def counted(state: Any) -> Any:
    """The same state with other values in every array."""

    def other(leaf: Any) -> Any:
        if plain_orbax.is_key(leaf) or leaf.dtype == bool:
            return leaf
        return jnp.asarray(np.arange(7, 7 + leaf.size).reshape(leaf.shape).astype(leaf.dtype))

    return jax.tree.map(other, state)


STATES: dict[str, Callable[[], dict[str, Any]]] = {
    "nnx, clipping before adam": lambda: nnx_optimizer(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))),
    "nnx, adamw with a schedule": lambda: nnx_optimizer(optax.adamw(optax.cosine_decay_schedule(0.1, 10))),
    "nnx, sgd": lambda: nnx_optimizer(optax.sgd(0.1)),
    "nnx state": lambda: {"model": nnx.state(Net()), "pure": nnx.to_pure_dict(nnx.state(Net()))},
    "objects without a state": lambda: {
        "a": nnx.Dropout(0.0),
        "b": [nnx.Dropout(0.0), nnx.Linear(1, 1, rngs=nnx.Rngs(0)), nnx.Dropout(0.0)],
        "step": 1,
    },
    "train state": lambda: {"state": train_state(optax.chain(optax.clip(1.0), optax.adam(0.1)))},
    "holes and ends": lambda: {"a": [None, jnp.ones(1), None], "b": ({}, [], (), optax.EmptyState()), "c": ((), 1)},
    "integer keys": lambda: {"a": {0: jnp.ones(1), 1: jnp.zeros(1)}, "b": {10: 1, 9: 2}},
    "nothing": dict,
    "only a str": lambda: {"a": "text"},
    "only None": lambda: {"a": None},
    **{
        f"optax {name}": lambda optimizer=optimizer: {"params": PARAMS, "optimizer": counted(optimizer.init(PARAMS))}
        for name, optimizer in OPTIMIZERS.items()
    },
}


def own_target(value: Any) -> Any:
    """What a program of plain Orbax has in the place of a value: NNX objects are pure dicts."""
    if isinstance(value, dict) and not value:
        return value
    if isinstance(value, list):
        return [own_target(child) for child in value]
    if isinstance(value, nnx.Module | nnx.Optimizer):
        value = nnx.state(value)
    return nnx.to_pure_dict(value) if isinstance(value, nnx.State) else value


def other_value(leaf: Any) -> Any:
    if plain_orbax.is_key(leaf):
        return jax.random.wrap_key_data(jax.random.key_data(leaf) * 0, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array | np.ndarray):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
    return type(leaf)()


@pytest.mark.parametrize("name", STATES)
def test_a_programs_own_targets(name: str, tmp_path: Path) -> None:
    values = STATES[name]()
    path = jaxckpt.Checkpoint(**values).save(tmp_path / "ckpt")
    expected = {key: own_target(value) for key, value in values.items()}
    texts = any(isinstance(leaf, str) for leaf in jax.tree.leaves(expected))
    for api, found in plain_orbax.restored(path, jax.tree.map(other_value, expected), standard=not texts):
        # The counter of saves is not among them.
        assert jax.tree.structure(found) == jax.tree.structure(expected), api
        for (where, one), two in zip(
            jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
        ):
            plain_orbax.assert_same_leaf(one, two, f"{api}: {jax.tree_util.keystr(where)}")


@pytest.mark.parametrize("name", ["nnx, clipping before adam", "nnx, adamw with a schedule"])
def test_nnx_objects_are_described_as_orbax_describes_their_pure_dicts(name: str, tmp_path: Path) -> None:
    values = STATES[name]()
    path = jaxckpt.Checkpoint(**values).write(tmp_path / "ours")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", {key: own_target(value) for key, value in values.items()})

    def described(path: str | Path) -> dict[str, Any]:
        found = json.loads(Path(path, "_METADATA").read_text())["tree_metadata"]
        return {key: (leaf["key_metadata"], leaf["value_metadata"]["value_type"]) for key, leaf in found.items()}

    assert described(path) == described(tmp_path / "plain")


def test_a_tree_has_sequences_and_integer_keys_where_there_are_holes(tmp_path: Path) -> None:
    values = STATES["nnx, clipping before adam"]()
    tree = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(**values).write(tmp_path / "c")).tree()
    assert isinstance(tree["model"]["blocks"], list)
    for number, block in enumerate(tree["model"]["blocks"]):
        np.testing.assert_array_equal(block["kernel"], values["model"].blocks[number].kernel[...])
    assert tree["model"]["mixed"].keys() == {1}
    assert tree["model"]["sequential"]["layers"].keys() == {0, 2}
    assert [leaf.shape for leaf in jax.tree.leaves(tree["model"]["pair"])] == [(2,), (1,)]
    assert tree["optimizer"]["opt_state"].keys() == {1}
    assert [moments.keys() for moments in tree["optimizer"]["opt_state"][1]] == [{"count", "mu", "nu"}]
    assert isinstance(tree["optimizer"]["opt_state"][1][0]["mu"]["blocks"], list)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_counter_is_metadata_for_orbax(asynchronous: bool, tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(a=jnp.ones(3))
    checkpoint.save_counter = 40
    path = checkpoint.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions(enable_async=asynchronous))
    checkpoint.sync()
    with ocp.StandardCheckpointer() as checkpointer:
        assert checkpointer.metadata(path).custom_metadata == {"jaxckpt": {"save_counter": 41}}
    assert v1.metadata(path).custom_metadata == {"jaxckpt": {"save_counter": 41}}


@pytest.mark.parametrize("damage", ["another number", "no number", "gone"])
def test_a_damaged_counter_is_found(damage: str, tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(a=jnp.ones(3))
    checkpoint.save_counter = 40
    path = checkpoint.save(tmp_path / "ckpt")
    file = Path(path, "_CHECKPOINT_METADATA")
    text = file.read_text()
    assert text.count(": 41") == 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_text(text.replace(": 41", ": 42" if damage == "another number" else ": 4}"))
    other = jaxckpt.Checkpoint(a=jnp.zeros(3))
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="_CHECKPOINT_METADATA"):
        other.restore(path)
    assert other.save_counter == 0
    np.testing.assert_array_equal(other.a, np.zeros(3))
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="_CHECKPOINT_METADATA"):
        jaxckpt.load_variable(path, "save_counter")
    assert not jaxckpt.verify(path).ok


def test_what_the_counter_is_to_readers(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(a=jnp.ones(3))
    checkpoint.save_counter = 40
    path = checkpoint.save(tmp_path / "ckpt")
    reader = jaxckpt.load_checkpoint(path)
    assert reader.keys() == ["a", "save_counter"]
    assert len(reader) == 2
    assert "save_counter" in reader
    counter = reader.get_tensor("save_counter")
    assert (type(counter), counter.dtype, counter.shape, counter.item()) == (np.ndarray, np.int64, (), 41)
    assert counter.flags.writeable
    assert (reader.shape("save_counter"), reader.dtype("save_counter")) == ((), np.int64)
    about = reader.metadata("save_counter")
    assert (about.name, about.kind, about.shape, about.dtype, about.nbytes) == (
        "save_counter",
        "scalar",
        (),
        np.int64,
        8,
    )
    tree = reader.tree()
    assert tree.keys() == {"a", "save_counter"}
    assert (type(tree["save_counter"]), tree["save_counter"]) == (int, 41)
    assert jaxckpt.list_variables(path) == [("a", (3,)), ("save_counter", ())]
    assert jaxckpt.verify(path).leaves == 2

    other = jaxckpt.Checkpoint(a=jnp.zeros(3), b=1)
    status = other.read(path).expect_partial()
    assert (other.save_counter, status.missing, status.unexpected) == (0, ("b",), ())
    assert other.restore(path).expect_partial().unexpected == ()
    assert other.save_counter == 41


def test_what_plain_orbax_wrote_has_no_counter(tmp_path: Path) -> None:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", {"a": jnp.ones(3)})
    with jaxckpt.to_orbax(jaxckpt.CheckpointOptions()).checkpointer() as checkpointer:
        checkpointer.save(tmp_path / "engine", args=ocp.args.PyTreeSave({"a": jnp.ones(3)}))
    for path in (tmp_path / "plain", tmp_path / "engine"):
        checkpoint = jaxckpt.Checkpoint(a=jnp.zeros(3))
        checkpoint.save_counter = 5
        checkpoint.restore(path).assert_consumed()
        assert checkpoint.save_counter == 5
        assert jaxckpt.load_checkpoint(path).keys() == ["a"]
