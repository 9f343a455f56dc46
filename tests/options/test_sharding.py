"""Sharding callbacks in TensorFlow's form: their groups become data files, and what they may not do is refused."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxckpt
from jaxckpt._lib.deadline import Deadline
from jaxckpt.storage.ocdbt.index import Index
from jaxckpt.storage.ocdbt.model import Place
from jaxckpt.storage.stores.inside import Inside

pytestmark = pytest.mark.sampled

Groups = Sequence[Mapping[str, Mapping[str, Any]]]


class Callback:
    """A callback of a function that says to which group a tensor belongs."""

    def __init__(self, group_of: Callable[[Any], Any], description: str = "groups of the test") -> None:
        self.group_of = group_of
        self.description = description
        self.seen: list[Any] = []

    def __call__(self, shardable_tensors: Sequence[Any]) -> Groups:
        self.seen = list(shardable_tensors)
        groups: dict[Any, dict[str, dict[str, Any]]] = defaultdict(dict)
        for each in shardable_tensors:
            groups[self.group_of(each)].setdefault(each.checkpoint_key, {})[each.slice_spec] = each.tensor
        return list(groups.values())


def make(policy: Any = None) -> Callback:
    """A factory that a config can name."""
    return Callback(lambda tensor: tensor.checkpoint_key.split("/")[0], f"by {policy}")


by_top = make("name")
no_callback = "text"


def options(callback: Any, **settings: Any) -> jaxckpt.CheckpointOptions:
    asynchronous = settings.pop("enable_async", False)
    return jaxckpt.CheckpointOptions(
        enable_async=asynchronous, experimental_sharding_callback=callback, orbax=jaxckpt.OrbaxSettings(**settings)
    )


def files_of(path: str) -> dict[str, set[str]]:
    """Returns the data files of each leaf (by Orbax's name) that has chunks."""
    found: dict[str, set[str]] = {}
    for key, value in Index(Inside(path), Deadline(60.0, "Reading").left).entries():
        name, chunk, _ = key.decode().rpartition("/c")
        if chunk:
            # The value must not be in a node of the tree, which all groups share.
            assert isinstance(value, Place), key
            found.setdefault(name, set()).add(value.file)
    return found


def values() -> dict[str, Any]:
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    return {
        "model": {
            "large": jnp.arange(60_000, dtype=jnp.float32).reshape(300, 200),
            "small": jnp.arange(3),
            "sharded": jax.device_put(
                np.arange(64.0, dtype=np.float32).reshape(8, 8), NamedSharding(mesh, P("x", "y"))
            ),
            "replicated": jax.device_put(np.arange(6), NamedSharding(mesh, P())),
        },
        "optimizer": optax.adam(0.1).init({"w": jnp.ones(5)}),
        "host": [np.arange(100), 1.5, np.float16(2), b"bytes", "text", np.zeros((0, 3)), None],
        "key": jax.random.key(0),
    }


def blank(value: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf * 0 if isinstance(leaf, jax.Array) and leaf.dtype != jax.random.key(0).dtype else leaf, value
    )


def assert_restores(path: str, expected: dict[str, Any]) -> None:
    checkpoint = jaxckpt.Checkpoint(**blank(expected))
    checkpoint.read(path).assert_consumed()
    for name, value in expected.items():
        for one, two in zip(jax.tree.leaves(getattr(checkpoint, name)), jax.tree.leaves(value), strict=True):
            if isinstance(two, jax.Array) and jax.dtypes.issubdtype(two.dtype, jax.dtypes.prng_key):
                one, two = jax.random.key_data(one), jax.random.key_data(two)
            np.testing.assert_array_equal(one, two)
    assert jaxckpt.verify(path).ok


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "asynchronous": {"enable_async": True},
    "many chunks and files": {"chunk_byte_size": 5000, "target_data_file_size": 20_000},
    "zstd": {"compression": "zstd", "chunk_byte_size": 5000},
}
GROUPINGS: dict[str, Callable[[Any], Any]] = {
    "all in one": lambda tensor: 0,
    "by top-level name": lambda tensor: tensor.checkpoint_key.split("/")[0],
    "one each": lambda tensor: (tensor.checkpoint_key, tensor.slice_spec),
    "by dtype": lambda tensor: tensor.dtype,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_groups_become_data_files(grouping: str, layout: str, tmp_path: Path) -> None:
    expected = values()
    callback = Callback(GROUPINGS[grouping])
    checkpoint = jaxckpt.Checkpoint(**expected)
    path = checkpoint.save(tmp_path / "ckpt", options(callback, **LAYOUTS[layout]))
    checkpoint.sync()
    assert_restores(path, expected)
    # TensorStore writes here; it may put small values into the nodes of its tree.
    if layout == "zstd":
        return
    files = files_of(path)
    groups: dict[Any, set[str]] = defaultdict(set)
    for tensor in callback.seen:
        # The slices of the tensor are in several groups.
        cut = grouping == "one each" and tensor.slice_spec
        if 0 not in tensor.shape and not cut:
            groups[callback.group_of(tensor)] |= files[tensor.checkpoint_key.replace("/", ".")]
    together = [file for group in groups.values() for file in group]
    # Two groups share no data file.
    assert len(together) == len(set(together))
    assert len([tensor for tensor in callback.seen if tensor.slice_spec]) == 8
    if grouping == "one each":
        assert len(files["model.sharded"]) == 8
        assert files["model.sharded"].isdisjoint(together)


def test_what_a_callback_is_given(tmp_path: Path) -> None:
    callback = make()
    path = jaxckpt.Checkpoint(**values()).write(tmp_path / "c", options(callback))
    given = {(each.checkpoint_key, each.slice_spec): each for each in callback.seen}
    assert len(given) == len(callback.seen)
    names = set(jaxckpt.load_checkpoint(path).keys()) - {"save_counter", "host/4"}
    # A str has no tensor.
    assert {name for name, _ in given} == names
    large = given["model/large", ""]
    assert (large.shape, large.shape.rank, large.shape.num_elements(), large.shape.as_list()) == (
        (300, 200),
        2,
        60_000,
        [300, 200],
    )
    assert (large.dtype, large.tensor.dtype, large.tensor.shape, large.tensor.nbytes) == (
        np.float32,
        np.float32,
        (300, 200),
        240_000,
    )
    assert large.device == large.tensor.device == "/job:localhost/replica:0/task:0/device:CPU:0"
    assert (large.device.job, large.device.task, large.device.device_type) == ("localhost", 0, "CPU")
    assert (large.name, large.trackable) == ("model/large", None)
    assert large.tensor_save_spec.tensor is large._tensor_save_spec.tensor is large.tensor
    np.testing.assert_array_equal(np.asarray(large.tensor)[2], np.arange(400, 600))
    slices = {spec: each for (name, spec), each in given.items() if name == "model/sharded"}
    assert sorted(slices)[:3] == ["8 8 0,2:0,4", "8 8 0,2:4,4", "8 8 2,2:0,4"]
    np.testing.assert_array_equal(slices["8 8 2,2:4,4"].tensor.numpy(), [[20, 21, 22, 23], [28, 29, 30, 31]])


def tensors_of(groups: Groups) -> dict[str, dict[str, Any]]:
    (group,) = groups
    return {name: dict(slices) for name, slices in group.items()}


def missing(group: dict[str, Any]) -> Any:
    return [{name: slices for name, slices in group.items() if name != "a"}]


def twice(group: dict[str, Any]) -> Any:
    return [group, {"b": group["b"]}]


def unknown(group: dict[str, Any]) -> Any:
    return [group | {"c": group["a"]}]


def other_slice(group: dict[str, Any]) -> Any:
    return [group | {"a": {"4 0,2": group["a"][""], "4 2,2": group["a"][""]}}]


def reshaped(group: dict[str, Any]) -> Any:
    return [group | {"a": {"": group["a"][""].numpy().reshape(2, 2)}}]


def converted(group: dict[str, Any]) -> Any:
    return [group | {"a": {"": group["a"][""].numpy().astype(np.float16)}}]


def changed(group: dict[str, Any]) -> Any:
    return [group | {"a": {"": group["a"][""].numpy() + 1}}]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, "left out a; every tensor must be in one"),
        (twice, "returned b twice"),
        (unknown, "returned 'c', which is not among"),
        (other_slice, "returned a, slice '4 0,2', a slice that is not among its arguments"),
        (reshaped, r"returned a as a tensor of shape \(2, 2\) instead of \(4,\)"),
        (converted, "returned a as a tensor of dtype float16 instead of float32"),
        (changed, "returned a as another tensor than its argument"),
        (lambda group: group, "must return a list of .*, got dict"),
        (lambda group: [["a", "b"]], "must return a list of .*; one of its items has another form"),
        (lambda group: None, "must return a list of .*, got NoneType"),
    ],
)
def test_what_a_callback_may_not_do(
    change: Callable[[dict[str, Any]], Any], message: str, asynchronous: bool, tmp_path: Path
) -> None:
    class Wrong(Callback):
        def __call__(self, shardable_tensors: Sequence[Any]) -> Any:
            return change(tensors_of(super().__call__(shardable_tensors)))

    checkpoint = jaxckpt.Checkpoint(a=jnp.ones(4), b=jnp.zeros(2))
    wrong = Wrong(lambda tensor: 0, "what it says")
    with pytest.raises(RuntimeError, match=rf"Wrong \(what it says\) {message}"):
        checkpoint.save(tmp_path / "ckpt", options(wrong, enable_async=asynchronous))
    assert checkpoint.save_counter == 0
    assert list(tmp_path.iterdir()) == []
    path = checkpoint.save(tmp_path / "ckpt", options(make()))
    assert path == f"{tmp_path}/ckpt-1"


def test_an_error_of_a_callback_is_that_of_the_save(tmp_path: Path) -> None:
    error = LookupError("no group")

    def fail(tensor: Any) -> Any:
        raise error

    with pytest.raises(LookupError) as raised:
        jaxckpt.Checkpoint(a=jnp.ones(4)).save(tmp_path / "ckpt", options(Callback(fail)))
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def tensorflows(name: str, **attributes: Any) -> Any:
    """An object of the class that TensorFlow calls so."""
    module = "tensorflow.python.checkpoint.sharding.sharding_policies"

    def call(self: Any, shardable_tensors: Sequence[Any]) -> Any:
        raise AssertionError("calls TensorFlow")

    made = type(name, (), {"__module__": module, "__call__": call, "description": "TensorFlow's"})()
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def test_tensorflows_own_policies(tmp_path: Path) -> None:
    limited = tensorflows("MaxShardSizePolicy", max_shard_size=10_000)
    expected = values()
    path = jaxckpt.Checkpoint(**expected).write(tmp_path / "limited", options(limited))
    sizes = [file.stat().st_size for file in Path(path).rglob("*") if "/c/" in str(file)]
    assert max(sizes) <= 10_000
    assert_restores(path, expected)
    by_task = tensorflows("ShardByTaskPolicy")
    assert_restores(jaxckpt.Checkpoint(**expected).write(tmp_path / "task", options(by_task)), expected)
    assert jaxckpt.CheckpointOptions(experimental_sharding_callback=by_task).experimental_sharding_callback is by_task
    own = jaxckpt.CheckpointOptions(experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(10_000))
    assert jaxckpt.to_orbax(options(limited)).array_settings == jaxckpt.to_orbax(own).array_settings
    assert "MaxShardSizePolicy(max_shard_size=10000)" in str(jaxckpt.to_orbax(options(limited)))
    for bad in (0, 2.5):
        with pytest.raises((TypeError, ValueError), match="max_shard_size"):
            options(tensorflows("MaxShardSizePolicy", max_shard_size=bad))


def test_the_explanation_has_the_description() -> None:
    text = str(jaxckpt.to_orbax(options(make("something"))))
    assert "test_sharding.Callback (by something)" in text
    assert "one set of data files per group" in text


def test_the_engine_alone_forms_the_groups_too(tmp_path: Path) -> None:
    with jaxckpt.to_orbax(options(by_top)).checkpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", args=ocp.args.PyTreeSave({"a": jnp.ones(3), "b": jnp.zeros(2)}))
    files = files_of(str(tmp_path / "c"))
    assert files["a"].isdisjoint(files["b"])


@pytest.mark.parametrize(
    "value",
    ["test_sharding:by_top", {"call": "test_sharding:make", "with": {"policy": 3}}, by_top],
    ids=["name", "call", "object"],
)
def test_a_config_names_one(value: Any, tmp_path: Path) -> None:
    config = jaxckpt.load_config(
        {"directory": str(tmp_path), "max_to_keep": 1, "options": {"experimental_sharding_callback": value}}
    )
    found = config.options.experimental_sharding_callback
    assert found.description == ("by 3" if isinstance(value, dict) else "by name")
    assert "test_sharding" in str(config)
    manager = config.manager(jaxckpt.Checkpoint(a=jnp.ones(3), b=jnp.zeros(2)))
    files = files_of(manager.save())
    assert files["a"].isdisjoint(files["b"])


def test_a_config_that_names_something_else(tmp_path: Path) -> None:
    data = {
        "directory": str(tmp_path),
        "max_to_keep": 1,
        "options": {"experimental_sharding_callback": "test_sharding:no_callback"},
    }
    with pytest.raises(jaxckpt.ConfigError, match="a callable object with a `description`"):
        jaxckpt.load_config(data)
