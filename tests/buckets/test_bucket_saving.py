"""Checkpoints in a bucket: everything that works in a directory works there."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bucket_server import Bucket, Request

import jaxckpt
from jaxckpt import storage
from jaxckpt.storage import stores
from jaxckpt.storage.arrays import counts

VARIANTS = {
    "packed": {},
    "async": {"enable_async": True},
    "files": {"experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(100_000)},
    "zstd": {"orbax": jaxckpt.OrbaxSettings(compression="zstd")},
}


def values(number: float) -> dict[str, Any]:
    return {
        "device": jnp.full((100, 7), float(number)),
        "large": np.full(60_000, float(number)),
        "empty": np.zeros((0, 3)),
        "key": jax.random.key(int(number)),
        "text": f"number {number}",
        "raw": b"\0\1",
        "nested": {"list": [1, 2.5, None], "int": int(number)},
    }


def checkpoint(number: float) -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(**values(number))


def assert_holds(path: str, number: float) -> None:
    target = checkpoint(0)
    target.read(path).assert_consumed()
    found = {**{name: getattr(target, name) for name in values(0)}, "key": jax.random.key_data(target.key)}
    expected = {**values(number), "key": jax.random.key_data(jax.random.key(int(number)))}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert storage.verify(path).ok


class TestCheckpoint:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_save_and_restore(self, bucket: Bucket, variant: str) -> None:
        saved, options = checkpoint(3), jaxckpt.CheckpointOptions(**VARIANTS[variant])
        assert saved.save(bucket.path("run/ckpt"), options) == bucket.path("run/ckpt-1")
        saved.large = np.full(60_000, 4.0)
        saved.text = "number 4"
        assert saved.save(bucket.path("run/ckpt"), options) == bucket.path("run/ckpt-2")
        saved.sync()
        assert_holds(bucket.path("run/ckpt-1"), 3)
        target = checkpoint(0)
        target.restore(bucket.path("run/ckpt-2")).assert_consumed()
        assert target.save_counter == 2
        assert target.text == "number 4"
        assert jaxckpt.latest_checkpoint(bucket.path("run")) == bucket.path("run/ckpt-2")
        assert not [key for key in bucket.keys if "JAXCKPT_OWNER" in key or "tmp" in key]

    def test_at_the_top_of_the_bucket(self, bucket: Bucket) -> None:
        path = checkpoint(1).save(bucket.path("ckpt"))
        assert path == bucket.path("ckpt-1")
        assert_holds(path, 1)
        assert jaxckpt.latest_checkpoint(str(bucket)) == path
        assert jaxckpt.latest_checkpoint(f"{bucket}/") == f"{bucket}/ckpt-1"

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_write_replaces(self, bucket: Bucket, variant: str) -> None:
        options = jaxckpt.CheckpointOptions(**VARIANTS[variant])
        path = bucket.path("best")
        for number in (1, 2):
            saved = checkpoint(number)
            assert saved.write(path, options) == path
            saved.sync()
            assert_holds(path, number)
        assert {key.partition("/")[0] for key in bucket.keys} == {"best"}
        assert "best/_JAXCKPT_OWNER" not in bucket.keys
        assert jaxckpt.latest_checkpoint(str(bucket)) is None

    def test_numbers_in_use_are_not_given_again(self, bucket: Bucket) -> None:
        stores.write(bucket.path("ckpt-7/file_of_a_user"), b"")
        assert checkpoint(1).save(bucket.path("ckpt")) == bucket.path("ckpt-1")
        target = checkpoint(1)
        target.save_counter = 6
        assert target.save(bucket.path("ckpt")) == bucket.path("ckpt-8")

    def test_what_is_no_checkpoint_is_not_replaced(self, bucket: Bucket) -> None:
        stores.write(bucket.path("thesis/chapter"), b"text")
        with pytest.raises(FileExistsError, match="not a checkpoint"):
            checkpoint(1).write(bucket.path("thesis"))
        assert bucket.keys == {"thesis/chapter"}

    def test_nothing_there(self, bucket: Bucket) -> None:
        with pytest.raises(FileNotFoundError):
            checkpoint(1).restore(bucket.path("nothing-1"))
        stores.write(bucket.path("thesis/chapter"), b"text")
        with pytest.raises(jaxckpt.CheckpointError, match="not a committed"):
            checkpoint(1).restore(bucket.path("thesis"))

    def test_local_and_bucket_checkpoints_can_be_copied(self, bucket: Bucket, tmp_path: Path) -> None:
        local = checkpoint(5).save(tmp_path / "ckpt")
        for name in stores.tree(local):
            stores.write(bucket.path(f"copy-1/{name}"), Path(local, name).read_bytes())
        assert_holds(bucket.path("copy-1"), 5)
        remote = checkpoint(6).save(bucket.path("ckpt"))
        back = tmp_path / "back-1"
        for name in stores.tree(remote):
            (back / name).parent.mkdir(parents=True, exist_ok=True)
            (back / name).write_bytes(stores.read(f"{remote}/{name}"))
        assert_holds(str(back), 6)


class TestManager:
    @pytest.mark.parametrize("enable_async", [False, True])
    def test_retention(self, bucket: Bucket, enable_async: bool) -> None:
        directory = bucket.path("run")
        options = jaxckpt.CheckpointOptions(enable_async=enable_async)
        saved = checkpoint(0)
        manager = jaxckpt.CheckpointManager(saved, directory, max_to_keep=2, options=options)
        assert manager.latest_checkpoint is None
        for number in range(1, 5):
            saved.text = f"number {number}"
            assert manager.save() == f"{directory}/ckpt-{number}"
        manager.sync()
        assert manager.checkpoints == [f"{directory}/ckpt-3", f"{directory}/ckpt-4"]
        assert {key.split("/")[1] for key in bucket.keys} == {"checkpoint", "ckpt-3", "ckpt-4"}
        again = jaxckpt.CheckpointManager(checkpoint(0), directory, max_to_keep=2)
        assert again.restore_or_initialize() == f"{directory}/ckpt-4"
        assert again.checkpoint.text == "number 4"
        assert again.save(checkpoint_number=4) == f"{directory}/ckpt-4"

    def test_unregistered_checkpoints_are_adopted(self, bucket: Bucket) -> None:
        saved = checkpoint(0)
        saved.save(bucket.path("run/ckpt"))
        stores.remove(bucket.path("run/checkpoint"))
        saved.write(bucket.path("run/ckpt-2"))
        manager = jaxckpt.CheckpointManager(saved, bucket.path("run"), max_to_keep=3)
        assert manager.checkpoints == [bucket.path("run/ckpt-1"), bucket.path("run/ckpt-2")]
        assert manager.latest_checkpoint == bucket.path("run/ckpt-2")

    def test_a_damaged_state_file_is_rebuilt(self, bucket: Bucket) -> None:
        saved = checkpoint(0)
        saved.save(bucket.path("run/ckpt"))
        stores.write(bucket.path("run/checkpoint"), b"{ garbage")
        saved.save(bucket.path("run/ckpt"))
        state = jaxckpt.get_checkpoint_state(bucket.path("run"))
        assert state is not None
        assert state.all_model_checkpoint_paths == [bucket.path("run/ckpt-1"), bucket.path("run/ckpt-2")]

    def test_iterator(self, bucket: Bucket) -> None:
        found = jaxckpt.checkpoints_iterator(bucket.path("run"), timeout=0)
        saved = checkpoint(0)
        saved.save(bucket.path("run/ckpt"))
        assert next(found) == bucket.path("run/ckpt-1")
        saved.save(bucket.path("run/ckpt"))
        assert list(found) == [bucket.path("run/ckpt-2")]


class TestReading:
    def test_reader(self, bucket: Bucket) -> None:
        checkpoint(2).save(bucket.path("run/ckpt"))
        reader = jaxckpt.load_checkpoint(bucket.path("run"))
        assert reader.path == bucket.path("run/ckpt-1")
        np.testing.assert_array_equal(reader.get_tensor("large"), np.full(60_000, 2.0))
        assert ("nested/int", ()) in jaxckpt.list_variables(bucket.path("run/ckpt-1"))
        assert reader.metadata("device").sharding is not None

    def test_command_line(self, bucket: Bucket, cli: Callable[..., CompletedProcess[str]]) -> None:
        saved = checkpoint(2)
        saved.save(bucket.path("run/ckpt"))
        saved.save(bucket.path("run/ckpt"))
        listed = cli("list", bucket.path("run"))
        assert listed.returncode == 0, listed.stderr
        assert "2 checkpoints" in listed.stdout
        assert "ckpt-2" in listed.stdout
        assert "latest" in listed.stdout
        verified = cli("verify", bucket.path("run"))
        assert verified.returncode == 0, verified.stderr
        assert "checksums match" in verified.stdout
        inspected = cli("inspect", bucket.path("run/ckpt-1"))
        assert inspected.returncode == 0, inspected.stderr
        assert "nested" in inspected.stdout
        cleaned = cli("clean", bucket.path("run"))
        assert cleaned.returncode == 0, cleaned.stderr


def test_config(bucket: Bucket) -> None:
    directory = bucket.path("run")
    config = jaxckpt.load_config(Path(__file__).parents[2] / "configs" / "bucket.yaml", {"directory": directory})
    manager = config.manager(checkpoint(1))
    path = manager.save(options=config.options)
    manager.sync()
    assert path == bucket.path("run/ckpt-1")
    assert_holds(path, 1)


def test_each_chunk_is_read_once(bucket: Bucket) -> None:
    """Eight devices want a part of each chunk."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]), ("x",))
    rows, columns = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)) for spec in (("x",), (None, "x"))
    )
    value = np.arange(512 * 1024, dtype=np.int32).reshape(512, 1024)
    options = jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(chunk_byte_size=64 << 10))
    path = jaxckpt.Checkpoint(value=jax.device_put(value, rows)).write(bucket.path("run/c"), options)
    requests: list[str] = []

    def watch(request: Request) -> None:
        if request.action == "read" and "/d/" in request.name:
            requests.append(request.name)

    target = jaxckpt.Checkpoint(value=jax.device_put(np.zeros_like(value), columns))
    before = counts.so_far()
    bucket.rule(watch)
    try:
        target.read(path).assert_consumed()
    finally:
        bucket.rule(None)
    np.testing.assert_array_equal(np.asarray(target.value), value)
    assert counts.so_far().chunks - before.chunks == 32
    # Some requests are for nodes of the index.
    assert len(requests) <= 32 + 8
