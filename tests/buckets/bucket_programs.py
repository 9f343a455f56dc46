"""What runs in the processes of the jobs. Nothing here imports pytest: it would be slow, in every process."""

from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxckpt
from jaxckpt.storage.stores import bucket, servers

SHAPE = (64, 96)


def impatient(retries: dict[str, Any]) -> None:
    """Sets how often a request is tried again, in the processes of the job."""
    servers.RETRIES.update(retries)
    bucket._opened.cache_clear()


def options(io: int | None, asynchronous: bool = False, **more: Any) -> jaxckpt.CheckpointOptions:
    orbax = jaxckpt.OrbaxSettings(timeout_secs=more.pop("timeout_secs", 30), **more.pop("orbax", {}))
    return jaxckpt.CheckpointOptions(io, enable_async=asynchronous, orbax=orbax, **more)


def values(seed: int = 0) -> dict[str, Any]:
    """Arrays on all processes, on each one's own devices, on none; small and of several chunks; text."""
    rng = np.random.default_rng(seed)
    mesh = Mesh(np.asarray(jax.devices()), ("x",))

    def spread(spec: PartitionSpec) -> jax.Array:
        full = rng.standard_normal(SHAPE).astype(np.float32)
        return jax.make_array_from_callback(SHAPE, NamedSharding(mesh, spec), lambda index: full[index])

    return {
        "rows": spread(PartitionSpec("x")),
        "columns": spread(PartitionSpec(None, "x")),
        "same": spread(PartitionSpec()),
        "host": {"array": rng.standard_normal(700), "empty": np.zeros((0, 3)), "step": seed, "text": f"text {seed}"},
        "key": jax.random.key(seed),
    }


def assert_same(found: Any, expected: Any) -> None:
    def compare(a: Any, b: Any) -> None:
        if isinstance(b, jax.Array) and jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if isinstance(b, jax.Array):
            assert a.sharding == b.sharding
            for one, other in zip(a.addressable_shards, b.addressable_shards, strict=True):
                np.testing.assert_array_equal(one.data, other.data)
        else:
            np.testing.assert_array_equal(a, b)

    jax.tree.map(compare, found, expected)


def restored(path: str, given: jaxckpt.CheckpointOptions, seed: int) -> None:
    tree = values(seed)
    target = jaxckpt.Checkpoint(**values(seed + 1000))
    target.read(path, given).assert_consumed()
    assert_same({name: getattr(target, name) for name in tree}, tree)


def round_trip(directory: str, io: int | None, asynchronous: bool, orbax: dict[str, Any]) -> list[Any]:
    """Saves, replaces, restores, keeps the last two. With an IO process, no other one may ask the bucket for anything."""

    def refuse(spec: object, key: str, path: str) -> None:
        raise AssertionError(f"process {jax.process_index()} reached for {path}")

    opened = bucket.open_store if io in (None, jax.process_index()) else refuse
    with mock.patch.object(bucket, "open_store", opened):
        given = options(io, asynchronous, orbax=orbax)
        with jaxckpt.Checkpoint(**values(1)) as checkpoint:
            exact = checkpoint.write(f"{directory}/exact", given)
            for name, value in values(2).items():
                setattr(checkpoint, name, value)
            # This replaces the first one.
            assert checkpoint.write(f"{directory}/exact", given) == exact
            checkpoint.sync()
            restored(exact, given, 2)
            manager = jaxckpt.CheckpointManager(checkpoint, f"{directory}/run", max_to_keep=2, options=given)
            for seed in (3, 4, 5):
                for name, value in values(seed).items():
                    setattr(checkpoint, name, value)
                manager.save()
            manager.sync()
            kept = list(manager.checkpoints)
        latest = jaxckpt.latest_checkpoint(f"{directory}/run", given)
        assert latest is not None
        restored(latest, given, 5)
    # Every process reads on its own.
    assert jaxckpt.load_checkpoint(exact).get_tensor("host/text") == "text 2"
    return [exact, kept, latest]


def outcome(directory: str, io: int | None, **more: Any) -> tuple[list[str], str]:
    """What a save raises: its classes, and what it says."""
    try:
        jaxckpt.Checkpoint(**values()).save(f"{directory}/ckpt", options(io, **more))
    except BaseException as error:
        return [kind.__name__ for kind in type(error).__mro__], str(error)
    return [], ""


def outcome_with_small_files(directory: str, io: int | None) -> tuple[list[str], str]:
    return outcome(directory, io, experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(1 << 20))


def saved(directory: str, io: int | None) -> str:
    path = jaxckpt.Checkpoint(**values()).save(f"{directory}/ckpt", options(io))
    restored(path, options(io), 0)
    return path
