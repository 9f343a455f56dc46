"""`jaxckpt.orbax.v1_handler` and `v1_registry`: Orbax's new interface writes with jaxckpt's engine, and nothing is ignored."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from orbax.checkpoint import v1

import jaxckpt

# Orbax makes this coroutine before it calls the handler, and forgets it if the handler refuses. Tests of that collect it at once.
pytestmark = [
    pytest.mark.sampled,
    pytest.mark.filterwarnings(
        "ignore:coroutine '_create_paths' was never awaited:RuntimeWarning",
        "ignore:Sharding info not provided:UserWarning",
    ),
]


def tree() -> dict[str, Any]:
    return {
        "w": jnp.arange(6.0).reshape(2, 3),
        "optimizer": optax.adam(1e-3).init({"w": jnp.ones(3)}),
        "numpy": np.arange(5),
        "int": 3,
        "text": "text",
        "key": jax.random.key(1),
        "none": None,
        "state": nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0))),
    }


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other)
        if isinstance(one, jax.Array) and jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)


def context(options: jaxckpt.CheckpointOptions | None = None) -> Any:
    found = v1.Context()
    found.checkpointables.registry = jaxckpt.orbax.v1_registry(options)
    return found


def _save(path: Path) -> Path:
    v1.save(path, tree())
    return path / "state"


def _save_async(path: Path) -> Path:
    given = tree()
    response = v1.save_async(path, given)
    given["numpy"][:] = -1
    response.result()
    return path / "state"


def _checkpointables(path: Path) -> Path:
    v1.save_checkpointables(path, {"model": tree(), "other": {"a": 1}})
    return path / "model"


def _training(path: Path) -> Path:
    with v1.training.Checkpointer(path) as checkpointer:
        checkpointer.save(1, tree())
        checkpointer.save_async(10, tree())
    return path / "10" / "state"


ways = pytest.mark.parametrize("way", [_save, _save_async, _checkpointables, _training], ids=lambda way: way.__name__)


@ways
def test_every_function_saves_with_the_handler(tmp_path: Path, way: Callable[[Path], Path]) -> None:
    with context():
        item = way(tmp_path / "ours")
    theirs = way(tmp_path / "theirs")
    assert (item / "_JAXCKPT").is_file()
    assert not (theirs / "_JAXCKPT").exists()
    described = [json.loads((each / "_METADATA").read_text())["tree_metadata"] for each in (item, theirs)]
    assert described[0] == described[1]
    # Without jaxckpt, too, and with the same target, or none.
    for target in ((), (tree(),)):
        found = v1.load(item.parent, *target, checkpointable_name=item.name)
        assert_same(found, v1.load(theirs.parent, *target, checkpointable_name=theirs.name))
    assert_same(found, tree())
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        assert_same(checkpointer.restore(item, args=ocp.args.PyTreeRestore(tree())), tree())
    handlers = [
        json.loads((each.parent / "_CHECKPOINT_METADATA").read_text())["item_handlers"] for each in (item, theirs)
    ]
    assert handlers[0] == handlers[1]
    with context():
        assert_same(v1.load(theirs.parent, tree(), checkpointable_name=theirs.name), tree())
        assert_same(v1.load(item.parent, tree(), checkpointable_name=item.name), tree())
        assert v1.metadata(item.parent, checkpointable_name=item.name).metadata["w"].shape == (2, 3)
    assert jaxckpt.verify(item).ok


def test_a_handler_is_registered_for_a_name_or_for_all(tmp_path: Path) -> None:
    for name in ("mine", None):
        registry = v1.handlers.local_registry()
        registry.add(jaxckpt.orbax.v1_handler(), checkpointable_name=name)
        given = v1.Context()
        given.checkpointables.registry = registry
        path = tmp_path / str(name)
        with given:
            v1.save_checkpointables(path, {"mine": {"a": jnp.ones(2)}, "other": {"b": jnp.ones(2)}, "state": {"c": 1}})
        found = [(path / each / "_JAXCKPT").exists() for each in ("mine", "other", "state")]
        # Orbax looks up `state` by its name.
        assert found == [True, name is None, False]


def test_a_load_finds_damage(tmp_path: Path) -> None:
    with context():
        item = _save(tmp_path / "x")
        file = item / "_METADATA"
        file.write_text(file.read_text().replace('"numpy"', '"numpz"'))
        with pytest.raises(ValueError, match="this file is damaged"):
            v1.load(tmp_path / "x")


def test_storage_options_are_honoured(tmp_path: Path) -> None:
    def scoped(path: Any, leaf: Any) -> Any:
        small = jax.tree_util.keystr(path) == "['small']"
        return v1.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=512) if small else None

    given = {"small": jnp.ones((64, 8)), "whole": np.ones((64, 8))}
    found = []
    for active in (context(), v1.Context()):
        active.array.saving.storage_options.dtype = np.dtype("bfloat16")
        active.array.saving.scoped_storage_options_creator = scoped
        active.array.saving.ocdbt_target_data_file_size = 1 << 20
        path = tmp_path / str(len(found))
        with active:
            v1.save(path, given)
        found.append(v1.metadata(path).metadata)
        assert_same(v1.load(path), jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), given))
    assert found[0]["small"].dtype == found[1]["small"].dtype
    assert np.prod(found[0]["small"].storage_metadata.chunk_shape) * 2 == 512


REFUSED: dict[str, tuple[str, str, Any]] = {
    "use_ocdbt": ("array.saving", "use_ocdbt", False),
    "use_zarr3": ("array.saving", "use_zarr3", False),
    "use_compression": ("array.saving", "use_compression", False),
    "pinned": ("array.saving", "enable_pinned_host_transfer", True),
    "replicas": ("array.saving", "use_replica_parallel", False),
    "slices": ("array.saving", "min_slice_bytes_for_replica_parallel", 5),
    "most replicas": ("array.saving", "max_replicas_for_replica_parallel", 1),
    "folder": ("array.saving", "enable_replica_parallel_separate_folder", True),
    "shardings": ("array.saving", "enable_write_sharding_file", False),
    "store": ("array.saving", "array_metadata_store", None),
    "rich": ("pytree.saving", "pytree_metadata_options", None),
    "write bytes": ("memory", "write_concurrent_bytes", 1 << 20),
    "transfer bytes": ("memory", "transfer_concurrent_bytes", 1 << 20),
    "order": ("memory", "is_prioritized_key_fn", lambda path: True),
    "no copies": ("memory", "deepcopy_host_arrays", False),
}


@pytest.mark.parametrize(
    ("section", "name", "value"), REFUSED.values(), ids=[name.replace(" ", "_") for name in REFUSED]
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, section: str, name: str, value: Any) -> None:
    given = context()
    part: Any = given
    for each in section.split("."):
        part = getattr(part, each)
    setattr(part, name, value)
    with given, pytest.raises(ValueError, match=f"Context.{section}.{name}: "):
        v1.save(tmp_path / "x", {"a": jnp.ones(2)})
    gc.collect()
    assert not (tmp_path / "x").exists()


def test_options_are_those_of_jaxckpt(tmp_path: Path) -> None:
    with context(jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(compression="zstd"))):
        v1.save(tmp_path / "x", {"a": np.zeros(1 << 18)})
    assert sum(each.stat().st_size for each in (tmp_path / "x").rglob("*") if each.is_file()) < 1 << 18
    with pytest.raises(ValueError, match="experimental_write_callbacks"):
        context(jaxckpt.CheckpointOptions(experimental_write_callbacks=[print]))
