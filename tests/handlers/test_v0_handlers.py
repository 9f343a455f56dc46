"""`jaxckpt.orbax.PyTreeHandler` and `StandardHandler` beside Orbax's own: the same names on disk, the same results, nothing ignored."""

import collections
import functools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, struct
from flax.training import train_state
from orbax.checkpoint import v1

import jaxckpt
from jaxckpt import CheckpointOptions, MaxShardSizePolicy, OrbaxSettings

pytestmark = pytest.mark.sampled

PyTreeHandler, StandardHandler = jaxckpt.orbax.PyTreeHandler, jaxckpt.orbax.StandardHandler
Pair = collections.namedtuple("Pair", "left right")


@pytest.fixture(autouse=True)
def _advice() -> Any:
    with warnings.catch_warnings():
        # Orbax advises to give shardings.
        warnings.simplefilter("ignore")
        yield


@struct.dataclass
class Node:
    weights: Any
    extra: Any = None


@jax.tree_util.register_pytree_node_class
class Keyless:
    """A custom node without keys: JAX numbers its children."""

    def __init__(self, *children: Any) -> None:
        self.children = children

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "Keyless":
        return cls(*children)


class Groups:
    """A sharding callback: each tensor is a group of its own."""

    description = "each alone"

    def __call__(self, tensors: Any) -> Any:
        return [{each.checkpoint_key: {each.slice_spec: each.tensor}} for each in tensors]


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def _train_state() -> Any:
    params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    return train_state.TrainState.create(apply_fn=lambda: None, params=params, tx=optax.adam(1e-3))


TREES: dict[str, Callable[[], Any]] = {
    "one jax array": lambda: jnp.arange(4.0),
    "one numpy array": lambda: np.arange(3),
    "one number": lambda: 5,
    "list": lambda: [jnp.ones(2), {"a": 3}, 2.5],
    "namedtuple": lambda: Pair(jnp.ones(2), Pair(np.arange(2), {"x": jnp.zeros(1)})),
    "int keys": lambda: {1: jnp.ones(2), 10: jnp.ones(1)},
    "nnx.State": lambda: nnx.state(Model(nnx.Rngs(0))),
    "custom nodes": lambda: {"a": Node(jnp.ones(2), Node(np.ones(1))), "b": Keyless(jnp.ones(1), np.zeros(2))},
    "train state": _train_state,
    "optimizer": lambda: optax.chain(optax.clip(1.0), optax.adam(1e-3)).init({"w": jnp.ones(3)}),
    "kinds": lambda: {
        "int": 1,
        "bool": True,
        "float": 2.5,
        "numpy": np.float32(3),
        "text": "text",
        "bfloat16": jnp.ones(2, jnp.bfloat16),
        "key": jax.random.key(3),
        "none": None,
        "dict": {},
        "list": [],
        "tuple": (),
        "empty state": nnx.State({}),
        "empty tuple": optax.EmptyState(),
    },
}
trees = pytest.mark.parametrize("tree", TREES.values(), ids=[name.replace(" ", "_") for name in TREES])


def plain() -> Any:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other)
        if isinstance(one, jax.Array) and jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
        np.testing.assert_array_equal(one, other)


def described(path: Path) -> Any:
    return json.loads((path / "_METADATA").read_text())["tree_metadata"]


@trees
def test_names_types_and_metadata_are_those_of_orbax(tmp_path: Path, tree: Callable[[], Any]) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    arguments = ocp.args.PyTreeSave(tree(), custom_metadata={"epoch": [1, None]})
    with plain() as checkpointer:
        checkpointer.save(theirs, args=arguments)
        expected, expected_metadata = checkpointer.restore(theirs), checkpointer.metadata(theirs).item_metadata
    with ocp.AsyncCheckpointer(PyTreeHandler()) as checkpointer:
        checkpointer.save(ours, args=arguments)
        checkpointer.wait_until_finished()
        metadata = checkpointer.metadata(ours).item_metadata
        assert metadata.tree == expected_metadata.tree
        assert metadata.custom_metadata == expected_metadata.custom_metadata == {"epoch": [1, None]}
        assert_same(checkpointer.restore(ours), expected)
        assert_same(checkpointer.restore(theirs), expected)
    assert described(ours) == described(theirs)
    if isinstance(expected, (np.ndarray, jax.Array, int)):
        np.testing.assert_array_equal(jaxckpt.load_checkpoint(ours).tree(), expected)
    assert jaxckpt.verify(ours).ok
    assert jaxckpt.verify(ours).checksummed


@trees
def test_both_interfaces_of_orbax_restore_into_the_same_target(tmp_path: Path, tree: Callable[[], Any]) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    target = tree()
    if isinstance(target, dict):
        # Orbax does not make arguments for it.
        target.pop("numpy", None)
    for path, handler in ((ours, PyTreeHandler()), (theirs, ocp.PyTreeCheckpointHandler())):
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(target))
    given = ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
    with plain() as checkpointer:
        expected = checkpointer.restore(theirs, args=given)
        assert_same(checkpointer.restore(ours, args=given), expected)
    with ocp.Checkpointer(PyTreeHandler()) as checkpointer:
        assert_same(checkpointer.restore(theirs, args=given), expected)
        assert_same(checkpointer.restore(ours, args=given), expected)
    assert_same(v1.load(ours, target), v1.load(theirs, target))


def test_metadata_without_any_of_the_program(tmp_path: Path) -> None:
    with ocp.Checkpointer(PyTreeHandler()) as checkpointer:
        checkpointer.save(tmp_path / "x", args=ocp.args.PyTreeSave({"a": 1}))
        assert checkpointer.metadata(tmp_path / "x").item_metadata.custom_metadata is None


# -- arguments of a save -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_dtype_of_save_args(tmp_path: Path, dtype: str) -> None:
    tree = {
        "int": 3,
        "float": 2.7,
        "bool": True,
        "numpy scalar": np.float64(1.7),
        "numpy": np.array([1.5, -2.5]),
        "jax": jnp.array([[1.5, 300.0]]),
        "complex": np.array([1 + 2j]),
        "text": "x",
        "kept": np.array([1.5]),
    }
    save_args: Any = jax.tree.map(lambda _: ocp.SaveArgs(dtype=np.dtype(dtype)), tree)
    save_args["kept"] = None
    arguments = ocp.args.PyTreeSave(tree, save_args)
    with plain() as checkpointer:
        checkpointer.save(tmp_path / "theirs", args=arguments)
        expected = checkpointer.restore(tmp_path / "theirs")
    with ocp.Checkpointer(PyTreeHandler()) as checkpointer:
        checkpointer.save(tmp_path / "ours", args=arguments)
        assert_same(checkpointer.restore(tmp_path / "ours"), expected)
    with plain() as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "ours"), expected)
    assert expected["jax"].dtype == dtype
    assert expected["kept"].dtype == np.float64


def test_dtype_of_standard_save_args(tmp_path: Path) -> None:
    with ocp.Checkpointer(StandardHandler()) as checkpointer:
        given = ocp.args.StandardSave({"a": jnp.ones(3)}, {"a": ocp.SaveArgs(dtype=np.dtype("bfloat16"))}, {"x": 1})
        checkpointer.save(tmp_path / "x", args=given)
        assert checkpointer.restore(tmp_path / "x")["a"].dtype == jnp.bfloat16
        assert checkpointer.metadata(tmp_path / "x").item_metadata.custom_metadata == {"x": 1}


def test_chunk_byte_size_of_save_args(tmp_path: Path) -> None:
    tree = {"small": jnp.zeros((64, 8)), "whole": jnp.zeros((64, 8))}
    with ocp.Checkpointer(PyTreeHandler()) as checkpointer:
        given = {"small": ocp.SaveArgs(chunk_byte_size=512), "whole": ocp.SaveArgs()}
        checkpointer.save(tmp_path / "x", args=ocp.args.PyTreeSave(tree, given))
        metadata = checkpointer.metadata(tmp_path / "x").item_metadata.tree
    assert np.prod(metadata["small"].storage.chunk_shape) * 4 == 512
    assert metadata["whole"].storage.chunk_shape == (64, 8)


@pytest.mark.parametrize(("size", "files"), [(1 << 16, 4), (0, 1), (None, 1)])
def test_target_data_file_size(tmp_path: Path, size: int | None, files: int) -> None:
    tree = {str(number): np.random.default_rng(number).normal(size=16_000) for number in range(8)}
    with ocp.Checkpointer(PyTreeHandler()) as checkpointer:
        checkpointer.save(tmp_path / "x", args=ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=size))
        np.testing.assert_array_equal(checkpointer.restore(tmp_path / "x")["7"], tree["7"])
    found = len([each for each in (tmp_path / "x" / "d").iterdir() if each.stat().st_size > 1 << 15])
    assert found >= files if files > 1 else found <= 2


def _pytree(**arguments: Any) -> Any:
    return ocp.args.PyTreeSave({"a": jnp.ones(4)}, **arguments)


def _saved_with(**arguments: Any) -> Any:
    return _pytree(save_args={"a": ocp.SaveArgs(**arguments)})


REFUSED = [
    (lambda: _saved_with(aggregate=True), "SaveArgs.aggregate: a"),
    (lambda: _saved_with(shard_axes=(0,)), "SaveArgs.shard_axes: a"),
    (lambda: _saved_with(chunk_byte_size=0), "SaveArgs.chunk_byte_size: expected a positive number"),
    (lambda: _saved_with(dtype=np.dtype("U3")), "a: SaveArgs.dtype: cannot store dtype"),
    (lambda: _pytree(save_args={"b": ocp.SaveArgs()}), "save_args: its structure differs"),
    (lambda: _pytree(save_args={"a": 5}), "save_args: expected an ocp.SaveArgs or None for a, got 5"),
    (lambda: _pytree(custom_metadata=[1]), "custom_metadata: expected a dict"),
    (lambda: _pytree(custom_metadata={"x": object()}), "custom_metadata: it is not JSON"),
    (lambda: _pytree(custom_metadata={"jaxckpt": 1}), "custom_metadata: jaxckpt needs the key"),
    (lambda: _pytree(ocdbt_target_data_file_size=-1), "ocdbt_target_data_file_size: expected a positive"),
    (lambda: ocp.args.PyTreeSave({}), "item: the tree is empty"),
    (lambda: ocp.args.PyTreeSave({"a": object()}), "a: "),
    (lambda: ocp.args.PyTreeSave({"a": {"b": 1}, "a.b": 2}), "Orbax joins keys with"),
    (
        lambda: ocp.args.PyTreeSave({"k": jax.random.key(0)}, {"k": ocp.SaveArgs(dtype=np.dtype("float32"))}),
        "k: SaveArgs.dtype is float32, but PRNG keys",
    ),
    (lambda: ocp.args.StandardSave({"a": {"t": "text"}}), "StandardSave.item: a/t: expected an array"),
    (lambda: ocp.args.StandardSave(jnp.ones(2)), "StandardSave.item: expected a tree"),
    (lambda: ocp.args.StandardSave({"a": 1}, {"a": ocp.SaveArgs(aggregate=True)}), "SaveArgs.aggregate: a"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_what_cannot_be_done_is_refused_before_a_file_exists(
    tmp_path: Path, given: Callable[[], Any], said: str
) -> None:
    # Where Orbax makes directories in the background, closing the checkpointer after the refusal may come before that has ended.
    options = ocp.AsyncOptions(create_directories_asynchronously=False)
    for make in (ocp.Checkpointer, functools.partial(ocp.AsyncCheckpointer, async_options=options)):
        with make(PyTreeHandler()) as checkpointer, pytest.raises((ValueError, TypeError)) as raised:
            checkpointer.save(tmp_path / "x", args=given())
        assert said in str(raised.value)
        assert not (tmp_path / "x").exists()
        # Orbax has made its temporary directory by then; it does not have a file of ours.
        assert {each.name for each in tmp_path.rglob("*") if each.is_file()} <= {"_CHECKPOINT_METADATA"}


def test_the_standard_handler_refuses_other_arguments(tmp_path: Path) -> None:
    said = "a StandardHandler takes ocp.args.StandardSave, got PyTreeSaveArgs"
    with ocp.Checkpointer(StandardHandler()) as checkpointer, pytest.raises(ValueError, match=said):
        checkpointer.save(tmp_path / "x", args=_pytree())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (CheckpointOptions(experimental_write_callbacks=[lambda path: None]), "experimental_write_callbacks: "),
        (CheckpointOptions(experimental_skip_slot_variables=True), "experimental_skip_slot_variables: "),
    ],
    ids=["callbacks", "slots"],
)
def test_options_that_no_handler_can_keep(options: CheckpointOptions, said: str) -> None:
    for make in (PyTreeHandler, StandardHandler, lambda options: jaxckpt.to_orbax(options).checkpointer()):
        with pytest.raises(ValueError, match=said):
            make(options)


def test_options_are_checked() -> None:
    with pytest.raises(TypeError):
        PyTreeHandler({"enable_async": True})


@pytest.mark.parametrize(
    "options",
    [
        CheckpointOptions("CPU:0"),
        CheckpointOptions(orbax=OrbaxSettings(compression="zstd", chunk_byte_size=64)),
        CheckpointOptions(experimental_sharding_callback=MaxShardSizePolicy(1 << 10)),
        CheckpointOptions(experimental_sharding_callback=Groups()),
    ],
    ids=["device", "zstd", "policy", "callback"],
)
@pytest.mark.parametrize("tree", [lambda: jnp.arange(500.0), lambda: {"a": jnp.arange(500.0)}], ids=["array", "dict"])
def test_options_arrive(tmp_path: Path, options: CheckpointOptions, tree: Callable[[], Any]) -> None:
    with ocp.AsyncCheckpointer(PyTreeHandler(options)) as checkpointer:
        checkpointer.save(tmp_path / "x", args=ocp.args.PyTreeSave(tree()))
    with plain() as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "x"), tree())
    assert_same(v1.load(tmp_path / "x"), tree())
    assert jaxckpt.verify(tmp_path / "x").ok


# -- arguments of a restore --------------------------------------------------------------------------------------------


def _mesh() -> Any:
    return jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))


def _sharding() -> Any:
    return jax.sharding.NamedSharding(_mesh(), jax.sharding.PartitionSpec("x"))


def _half(item: Any, structure: Any, infos: Any) -> Any:
    return {"a": structure["a"]}, {"a": infos["a"]}


_ITEM = {"a": np.zeros(4, np.float32), "b": {"c": jnp.zeros((2, 2))}}
_RENAMED = {"z": np.zeros(4, np.float32), "b": {"c": jnp.zeros((2, 2))}}
RESTORES: dict[str, Callable[[], Any]] = {
    "nothing": lambda: ocp.args.PyTreeRestore(),
    "item": lambda: ocp.args.PyTreeRestore(_ITEM),
    "dtype": lambda: ocp.args.PyTreeRestore(
        _ITEM, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(dtype=np.dtype("float16")), _ITEM)
    ),
    "sharding": lambda: ocp.args.PyTreeRestore(
        restore_args={
            "a": ocp.ArrayRestoreArgs(sharding=_sharding(), global_shape=(4,)),
            "b": {"c": ocp.ArrayRestoreArgs(sharding=_sharding(), strict=False, global_shape=(4, 2))},
        }
    ),
    "partial": lambda: ocp.args.PyTreeRestore({"b": _ITEM["b"]}, partial_restore=True),
    "transforms": lambda: ocp.args.PyTreeRestore(
        _RENAMED,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(), _RENAMED),
        transforms={"z": ocp.Transform(original_key="a")},
    ),
    "not to original": lambda: ocp.args.PyTreeRestore(
        _RENAMED,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(), _RENAMED),
        transforms={"z": ocp.Transform(original_key="a")},
        transforms_default_to_original=False,
    ),
    "legacy": lambda: ocp.args.PyTreeRestore({"a": _ITEM["a"]}, legacy_transform_fn=_half),
    "standard": lambda: ocp.args.StandardRestore(),
    "standard item": lambda: ocp.args.StandardRestore(_ITEM),
    "standard strict": lambda: ocp.args.StandardRestore(
        {"a": jnp.zeros(6), "b": {"c": jnp.zeros((1, 2))}}, strict=False
    ),
    "standard sharding": lambda: ocp.args.StandardRestore(
        {
            "a": jax.ShapeDtypeStruct((4,), np.float32, sharding=_sharding()),
            "b": {"c": jax.ShapeDtypeStruct((2, 2), np.float16, sharding=_sharding())},
        }
    ),
    "standard fallback": lambda: ocp.args.StandardRestore(fallback_sharding=_sharding()),
    "standard layout": lambda: ocp.args.StandardRestore(_ITEM, support_layout=True),
}


@pytest.mark.parametrize("given", RESTORES.values(), ids=[name.replace(" ", "_") for name in RESTORES])
def test_arguments_of_a_restore_mean_what_they_mean_to_orbax(tmp_path: Path, given: Callable[[], Any]) -> None:
    tree = {"a": np.arange(4, dtype=np.float32), "b": {"c": jnp.arange(4.0).reshape(2, 2)}}
    handlers = [(ocp.PyTreeCheckpointHandler(), "theirs"), (PyTreeHandler(), "ours")]
    if isinstance(given(), ocp.args.StandardRestore):
        handlers = [
            (ocp.StandardCheckpointHandler(), "theirs"),
            (PyTreeHandler(), "ours"),
            (StandardHandler(), "standard"),
        ]
    found = []
    for handler, name in handlers:
        save = ocp.args.StandardSave if isinstance(given(), ocp.args.StandardRestore) else ocp.args.PyTreeSave
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(tmp_path / name, args=save(tree))
            found.append(checkpointer.restore(tmp_path / name, args=given()))
    for other in found[1:]:
        assert_same(other, found[0])
        for one, two in zip(jax.tree.leaves(other), jax.tree.leaves(found[0]), strict=True):
            assert getattr(one, "sharding", None) == getattr(two, "sharding", None)


def test_calls_without_arguments_objects(tmp_path: Path) -> None:
    tree = {"a": jnp.arange(4.0)}
    save_args = {"a": ocp.SaveArgs(dtype=np.dtype("float16"))}
    with ocp.PyTreeCheckpointer() as theirs, ocp.Checkpointer(PyTreeHandler()) as ours:
        for number, checkpointer in enumerate((theirs, ours)):
            checkpointer.save(tmp_path / f"{number}", tree, save_args=save_args)
            assert checkpointer.restore(tmp_path / f"{number}", item=tree)["a"].dtype == np.float16
            cast = {"a": ocp.RestoreArgs(dtype=np.dtype("float64"), restore_type=np.ndarray)}
            assert checkpointer.restore(tmp_path / f"{number}", tree, restore_args=cast)["a"].dtype == np.float64
    handler = PyTreeHandler()
    (tmp_path / "direct").mkdir()
    handler.save(tmp_path / "direct", tree, save_args)
    handler.finalize(tmp_path / "direct")
    assert ocp.PyTreeCheckpointHandler().restore(tmp_path / "direct")["a"].dtype == np.float16
    with pytest.raises(ValueError, match="by keyword"):
        handler.save(tmp_path / "direct", ocp.args.PyTreeSave(tree))


# -- managers ----------------------------------------------------------------------------------------------------------


def _options(**more: Any) -> Any:
    return ocp.CheckpointManagerOptions(**more)


def test_a_registry_gives_one_handler_both_kinds_of_arguments(tmp_path: Path) -> None:
    handler = PyTreeHandler()
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for kind in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore, ocp.args.StandardSave, ocp.args.StandardRestore):
        registry.add(None, kind, handler)
    # A class is fine, too.
    registry.add("named", ocp.args.PyTreeSave, PyTreeHandler)
    registry.add("named", ocp.args.PyTreeRestore, handler)
    with ocp.CheckpointManager(tmp_path, handler_registry=registry) as manager:
        items = ocp.args.Composite(
            one=ocp.args.PyTreeSave({"t": "text"}),
            two=ocp.args.StandardSave({"a": jnp.ones(2)}),
            named=ocp.args.PyTreeSave({"n": 1}),
        )
        manager.save(0, args=items)
        manager.wait_until_finished()
        found = manager.restore(
            0, args=ocp.args.Composite(one=ocp.args.PyTreeRestore(), two=ocp.args.StandardRestore({"a": jnp.zeros(2)}))
        )
    assert found.one == {"t": "text"}
    np.testing.assert_array_equal(found.two["a"], np.ones(2))
    assert all((tmp_path / "0" / name / "_JAXCKPT").is_file() for name in ("one", "two", "named"))


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_one_item_and_the_best_steps(tmp_path: Path, asynchronous: bool) -> None:
    options = _options(
        enable_async_checkpointing=asynchronous, best_fn=lambda metrics: metrics["loss"], best_mode="min", max_to_keep=2
    )
    with ocp.CheckpointManager(tmp_path, item_handlers=StandardHandler(), options=options) as manager:
        for step, loss in enumerate([3.0, 1.0, 2.0, 4.0]):
            manager.save(step, args=ocp.args.StandardSave({"w": jnp.full(3, loss)}), metrics={"loss": loss})
        manager.wait_until_finished()
        assert manager.best_step() == 1
        assert sorted(manager.all_steps()) == [1, 2]
        assert manager.item_metadata(1)["w"].shape == (3,)
        np.testing.assert_array_equal(manager.restore(1)["w"], np.ones(3))
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        np.testing.assert_array_equal(manager.restore(2, args=ocp.args.StandardRestore())["w"], np.full(3, 2.0))


def test_legacy_checkpointers_argument_of_a_manager(tmp_path: Path) -> None:
    checkpointers = {"params": ocp.AsyncCheckpointer(PyTreeHandler()), "other": ocp.PyTreeCheckpointer()}
    with ocp.CheckpointManager(tmp_path, checkpointers) as manager:
        manager.save(
            3,
            {"params": {"a": jnp.ones(2)}, "other": {"b": 1}},
            save_kwargs={"params": {"save_args": {"a": ocp.SaveArgs()}}},
        )
        manager.wait_until_finished()
        assert manager.restore(3, {"params": {"a": jnp.zeros(2)}, "other": None})["other"] == {"b": 1}
    assert (tmp_path / "3" / "params" / "_JAXCKPT").is_file()


@pytest.mark.parametrize("directories", [False, True])
def test_host_memory_is_copied_whatever_the_options_say(tmp_path: Path, directories: bool) -> None:
    array = np.zeros(1 << 20)
    for handler, name in (
        (PyTreeHandler(CheckpointOptions(enable_async=False)), "pytree"),
        (StandardHandler(), "standard"),
    ):
        arguments = ocp.args.StandardSave({"a": array}) if name == "standard" else ocp.args.PyTreeSave({"a": array})
        options = ocp.AsyncOptions(create_directories_asynchronously=directories)
        array[:] = 0
        with ocp.AsyncCheckpointer(handler, async_options=options) as checkpointer:
            checkpointer.save(tmp_path / name, args=arguments)
            array[:] = 1
            checkpointer.wait_until_finished()
            assert not checkpointer.restore(tmp_path / name)["a"].any()


def test_a_restore_finds_damage(tmp_path: Path) -> None:
    tree = {"a": np.random.default_rng(0).normal(size=(100, 100)), "t": "text"}
    files = {"data": "d/*", "tree": "_METADATA", "text": "_strings.json"}
    for name, pattern in files.items():
        path = tmp_path / name
        with ocp.Checkpointer(PyTreeHandler()) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
            checkpointer.restore(path)
            file = max(path.glob(pattern), key=lambda each: each.stat().st_size)
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 4
            file.write_bytes(content)
            with pytest.raises(ValueError, match=r"damaged|DATA_LOSS|crc32c|CRC"):
                checkpointer.restore(path)


@pytest.mark.slow
def test_an_error_of_the_write_is_raised_and_nothing_is_committed(tmp_path: Path) -> None:
    limit = [
        "import resource, signal",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))",
    ]
    program = [
        *limit,
        "import numpy as np, orbax.checkpoint as ocp, jaxckpt",
        "checkpointer = ocp.AsyncCheckpointer(jaxckpt.orbax.PyTreeHandler())",
        f"checkpointer.save({str(tmp_path / 'x')!r}, args=ocp.args.PyTreeSave({{'a': np.zeros(1 << 20)}}))",
        "try: checkpointer.wait_until_finished()",
        "except OSError as error: print('errno', error.errno)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert "errno 27" in done.stdout, done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_end_of_the_program_waits_for_the_save(tmp_path: Path) -> None:
    program = [
        "import time, numpy as np, orbax.checkpoint as ocp, jaxckpt",
        "from jaxckpt.storage.arrays import writer",
        "original = writer.write_arrays",
        "def slow(*given):",
        "    time.sleep(1)",
        "    original(*given)",
        "writer.write_arrays = slow",
        f"manager = ocp.CheckpointManager({str(tmp_path)!r}, item_handlers=jaxckpt.orbax.PyTreeHandler())",
        "manager.save(5, args=ocp.args.PyTreeSave({'a': np.arange(4)}))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "shutdown" not in done.stderr
    with ocp.CheckpointManager(tmp_path) as manager:
        np.testing.assert_array_equal(manager.restore(5, args=ocp.args.PyTreeRestore())["a"], np.arange(4))


def test_a_cancelled_save_leaves_the_next_one_alone(tmp_path: Path) -> None:
    with ocp.AsyncCheckpointer(PyTreeHandler()) as checkpointer:
        for name in ("cancelled", "saved"):
            checkpointer.save(tmp_path / name, args=ocp.args.PyTreeSave({"a": np.zeros(1 << 22)}))
            if name == "cancelled":
                checkpointer.cancel()
        checkpointer.wait_until_finished()
    assert jaxckpt.verify(tmp_path / "saved").ok
    if (tmp_path / "cancelled").exists():
        assert jaxckpt.verify(tmp_path / "cancelled").ok


@pytest.mark.slow
def test_a_manager_goes_on_with_the_steps_of_plain_orbax(tmp_path: Path) -> None:
    state = nnx.state(Model(nnx.Rngs(1)))
    for step, handler in ((1, None), (2, StandardHandler()), (3, None)):
        with ocp.CheckpointManager(tmp_path, item_handlers=handler) as manager:
            if step > 1:
                assert_same(manager.restore(step - 1, args=ocp.args.StandardRestore(state)), state)
            manager.save(step, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            assert manager.latest_step() == step
    assert [(tmp_path / str(step) / "default" / "_JAXCKPT").exists() for step in (1, 2, 3)] == [False, True, False]
    assert os.listdir(tmp_path / "2" / "default")
