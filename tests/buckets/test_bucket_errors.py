"""What a bucket refuses, and what does not reach it."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bucket_server import Bucket, Request

import jaxckpt
from jaxckpt import storage
from jaxckpt.directory import paths
from jaxckpt.storage import stores
from jaxckpt.storage.commit import leases
from jaxckpt.storage.stores import bucket as client
from jaxckpt.storage.stores import servers


def checkpoint() -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(value=np.arange(1000.0))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few retries."""
    for name, value in {"max_retries": 2, "initial_delay": "10ms", "max_delay": "20ms"}.items():
        monkeypatch.setitem(servers.RETRIES, name, value)
    client._opened.cache_clear()
    yield
    client._opened.cache_clear()


class TestMissingBucket:
    def test_saving(self, bucket: Bucket) -> None:
        with pytest.raises(FileNotFoundError, match="No such bucket"):
            checkpoint().save(f"{bucket.server.scheme}test-no-such-bucket/run/ckpt")

    def test_reading(self, bucket: Bucket) -> None:
        with pytest.raises(FileNotFoundError):
            checkpoint().restore(f"{bucket.server.scheme}test-no-such-bucket/run/ckpt-1")
        assert jaxckpt.latest_checkpoint(f"{bucket.server.scheme}test-no-such-bucket/run") is None


class TestRefusedPermission:
    def test_everything(self, bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
        path = checkpoint().save(bucket.path("run/ckpt"))
        bucket.rule(lambda _: 403)
        with pytest.raises(PermissionError, match="refuses permission") as caught:
            checkpoint().save(bucket.path("run/ckpt"))
        assert caught.value.errno == errno.EACCES
        with pytest.raises(PermissionError):
            checkpoint().restore(path)
        assert jaxckpt.latest_checkpoint(bucket.path("run")) is None
        assert "refuses permission" in caplog.text
        manager = jaxckpt.CheckpointManager(checkpoint(), bucket.path("run"), max_to_keep=1)
        with pytest.raises(PermissionError):
            _ = manager.checkpoints
        with pytest.raises(PermissionError):
            storage.delete(storage.CheckpointPath.of(path))

    def test_writing_only(self, bucket: Bucket) -> None:
        bucket.rule(lambda request: 403 if request.action == "write" else None)
        with pytest.raises(PermissionError):
            checkpoint().save(bucket.path("run/ckpt"))
        assert bucket.keys == set()

    def test_listing_is_never_taken_for_empty(self, bucket: Bucket) -> None:
        checkpoint().save(bucket.path("run/ckpt"))
        keys = bucket.keys
        # As the real server does: who may not list is refused when asking for what is not there.
        bucket.rule(
            lambda request: (
                403 if request.action == "list" or (request.action == "read" and request.name not in keys) else None
            )
        )
        with pytest.raises(PermissionError):
            storage.list_numbered(bucket.path("run/ckpt"))

    @pytest.mark.parametrize("status", [400, 401, 403, 404])
    def test_listing_alone(self, status: int, bucket: Bucket) -> None:
        """The store answers with "not found" where it could have said "refused"."""
        if bucket.server.scheme == "gs://":
            expected = r"refuses to list.*storage\.objects\.list"
        elif status == 400:
            pytest.skip("an answer that has another meaning")
        else:
            expected = {401: "does not know who", 403: r"s3:ListBucket", 404: r"refuses to list.*s3:ListBucket"}[status]
        saved = checkpoint()
        paths = [saved.save(bucket.path("run/ckpt")) for _ in range(2)]
        before = {key: stores.read(bucket.path(key)) for key in bucket.keys}
        bucket.rule(lambda request: status if request.action == "list" else None)
        manager = jaxckpt.CheckpointManager(
            checkpoint(), bucket.path("run"), max_to_keep=1, init_fn=lambda: pytest.fail("initialized")
        )
        for call in (
            manager.restore_or_initialize,
            lambda: manager.checkpoints,
            lambda: manager.latest_checkpoint,
            lambda: checkpoint().save(bucket.path("run/ckpt")),
            lambda: storage.list_numbered(bucket.path("run/ckpt")),
            lambda: storage.leftovers(bucket.path("run")),
            lambda: storage.delete(storage.CheckpointPath.of(paths[0])),
        ):
            with pytest.raises(PermissionError, match=expected) as caught:
                call()
            assert caught.value.errno == errno.EACCES
        assert jaxckpt.latest_checkpoint(bucket.path("run")) == paths[1]
        if bucket.server.scheme == "gs://":
            checkpoint().restore(paths[1]).assert_consumed()
        bucket.rule(None)
        assert {key: stores.read(bucket.path(key)) for key in bucket.keys} == before

    def test_an_empty_directory_is_empty(self, bucket: Bucket) -> None:
        """Also while another process begins to write there: its listing is not refused."""
        path = bucket.path("run")

        def rule(request: Request) -> None:
            if request == Request("read", "run/checkpoint"):
                bucket.rule(None)
                stores.write(f"{path}/checkpoint", b"")

        assert not stores.is_directory(path)
        bucket.rule(rule)
        assert stores.names(path) == ["checkpoint"]


@pytest.mark.usefixtures("impatient")
class TestUnreachable:
    def test_from_the_beginning(self, bucket: Bucket) -> None:
        path = checkpoint().save(bucket.path("run/ckpt"))
        bucket.rule(lambda _: "drop")
        with pytest.raises(OSError, match="cannot be reached") as caught:
            checkpoint().save(bucket.path("run/ckpt"))
        assert caught.value.errno == errno.EHOSTUNREACH
        with pytest.raises(OSError, match="cannot be reached"):
            checkpoint().restore(path)

    @pytest.mark.parametrize("end", ["_METADATA", "manifest.ocdbt", "commit_success.txt"])
    def test_in_the_middle(self, bucket: Bucket, end: str) -> None:
        first = checkpoint().save(bucket.path("run/ckpt"))
        broken = []

        def rule(request: Request) -> str | None:
            if request.action == "write" and request.name.endswith(end):
                broken.append(request)
            return "drop" if broken else None

        bucket.rule(rule)
        saved = checkpoint()
        with pytest.raises(OSError, match="cannot be reached"):
            saved.save(bucket.path("run/ckpt"))
        bucket.rule(None)
        assert saved.save_counter == 0
        assert jaxckpt.latest_checkpoint(bucket.path("run")) == first
        checkpoint().restore(first).assert_consumed()
        # The name was still in use.
        assert saved.save(bucket.path("run/ckpt")) == bucket.path("run/ckpt-3")
        assert {key.split("/")[1] for key in bucket.keys} == {"checkpoint", "ckpt-1", "ckpt-3"}

    def test_silence_ends_with_the_timeout(self, bucket: Bucket) -> None:
        go_on = threading.Event()

        def rule(request: Request) -> None:
            if request.name.endswith("_METADATA"):
                go_on.wait(100)

        bucket.rule(rule)
        options = jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(timeout_secs=1.0))
        try:
            with pytest.raises(TimeoutError, match="longer than 1 s"):
                checkpoint().save(bucket.path("run/ckpt"), options)
        finally:
            go_on.set()
        assert not storage.is_checkpoint(bucket.path("run/ckpt-1"))

    def test_silence_of_a_single_request(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "_WAIT_SECS", 0.5)
        go_on = threading.Event()

        def rule(_: Request) -> None:
            go_on.wait(100)

        bucket.rule(rule)
        try:
            with pytest.raises(TimeoutError, match="not answered for 0.5 s"):
                checkpoint().restore(bucket.path("run/ckpt-1"))
        finally:
            go_on.set()

    def test_passing_failures_are_survived(self, bucket: Bucket) -> None:
        failures = [503, 429]
        bucket.rule(lambda request: failures.pop() if failures and request.action == "write" else None)
        path = checkpoint().save(bucket.path("run/ckpt"))
        assert storage.verify(path).ok
        assert not failures


def test_a_save_that_is_running(bucket: Bucket) -> None:
    path = bucket.path("run/ckpt-1")
    lease = leases.Lease(path, "save")
    with pytest.raises(FileNotFoundError, match=f"Not committed yet: process {os.getpid()} is saving"):
        checkpoint().restore(path)
    lease.release()
    with pytest.raises(FileNotFoundError, match="No checkpoint at this path"):
        checkpoint().restore(path)


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
class TestDamage:
    def test_every_object(self, bucket: Bucket) -> None:
        path = jaxckpt.Checkpoint(value=np.arange(60_000.0), small=np.arange(5), text="text").save(bucket.path("ckpt"))
        for key in sorted(bucket.keys - {"checkpoint"}):
            content = stores.read(bucket.path(key))
            damages = [None, content[:-1], content + b"x"]
            for position in {0, len(content) // 3, len(content) // 2, len(content) - 1}:
                damages.append(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
            for damage in damages:
                if damage is None:
                    stores.remove(bucket.path(key))
                else:
                    stores.write(bucket.path(key), damage)
                target = jaxckpt.Checkpoint(value=np.zeros(60_000), small=np.zeros(5, int), text="")
                try:
                    target.restore(path)
                except jaxckpt.CheckpointError:
                    assert target.text == ""
                    assert not target.value.any()
                else:
                    np.testing.assert_array_equal(target.value, np.arange(60_000.0))
                    np.testing.assert_array_equal(target.small, np.arange(5))
                    assert target.text == "text"
                    assert damage is not None or key.endswith(("_sharding", "_CHECKPOINT_METADATA"))
            stores.write(bucket.path(key), content)
        assert storage.verify(path).ok

    def test_exchanged_data(self, bucket: Bucket) -> None:
        """A chunk of another checkpoint carries a checksum that is right."""
        options = jaxckpt.CheckpointOptions(experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(1 << 20))
        first, second = (
            jaxckpt.Checkpoint(value=np.full(60_000, number)).save(bucket.path("ckpt"), options)
            for number in (1.0, 2.0)
        )
        (key,) = [key for key in bucket.keys if key.startswith("ckpt-1/value/c/")]
        stores.write(bucket.path(key), stores.read(second + key.removeprefix("ckpt-1")))
        with pytest.raises(jaxckpt.CorruptCheckpointError, match="not the one that was written"):
            jaxckpt.load_checkpoint(first).tree()
        assert not storage.verify(first).ok


class TestAddresses:
    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            ("ftp://bucket/run/ckpt", "ftp:// is not supported"),
            ("S3://bucket/run/ckpt", "is not supported"),
            ("gs:/bucket/run/ckpt", "one slash"),
            ("s3:/bucket/run/ckpt", "one slash"),
            ("s3://", "not name a bucket"),
            ("s3://bucket", "names only a bucket"),
            ("s3://bucket/a/../b", "'..'"),
            ("gs://", "not name a bucket"),
            ("gs:///ckpt", "not name a bucket"),
            ("gs://bucket", "names only a bucket"),
            ("gs://bucket/", "names only a bucket"),
            ("gs://bucket/a/../b", "'..'"),
            ("gs://bucket/a\nb", "line breaks"),
        ],
    )
    def test_refused_before_anything_is_made(
        self, bad: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for call in (
            lambda: checkpoint().save(bad),
            lambda: checkpoint().write(bad),
        ):
            with pytest.raises(ValueError, match=why):
                call()
        assert os.listdir(tmp_path) == []

    def test_names_that_the_server_does_not_take(self, bucket: Bucket) -> None:
        with pytest.raises(OSError, match="too long") as caught:
            checkpoint().save(bucket.path("n" * 1100 + "/ckpt"))
        assert caught.value.errno == errno.ENAMETOOLONG
        with pytest.raises(ValueError, match=r"Invalid (GCS|S3) bucket name"):
            checkpoint().save(f"{bucket.server.scheme}Not a bucket/ckpt")

    def test_names_with_special_characters(self, bucket: Bucket) -> None:
        path = checkpoint().save(bucket.path("run ü #1?%41&x=[y]*/ck pt"))
        checkpoint().restore(path).assert_consumed()
        assert jaxckpt.latest_checkpoint(bucket.path("run ü #1?%41&x=[y]*")) == path
        assert storage.list_numbered(bucket.path("run ü #1?%41&x=[y]*/ck pt")) == [1]

    def test_other_schemes_are_refused_everywhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        address = "ftp://bucket/run"
        for call in (
            lambda: checkpoint().restore(address),
            lambda: checkpoint().read(address),
            lambda: jaxckpt.CheckpointManager(checkpoint(), address, max_to_keep=1),
            lambda: jaxckpt.latest_checkpoint(address),
            lambda: jaxckpt.get_checkpoint_state(address),
            lambda: jaxckpt.checkpoints_iterator(address),
            lambda: jaxckpt.load_checkpoint(address),
        ):
            with pytest.raises(ValueError, match="ftp:// is not supported"):
                call()
        assert os.listdir(tmp_path) == []

    def test_spelling(self) -> None:
        assert paths.absolute("gs://bucket//a/b/") == "gs://bucket/a/b"
        assert paths.checked_path("gs://bucket/a/ckpt", "file_prefix") == "gs://bucket/a/ckpt"


def delete(path: str) -> None:
    storage.delete(storage.CheckpointPath.of(path))


class TestDeletedWhileItIsRead:
    def test_a_reader_says_so(self, bucket: Bucket) -> None:
        for number, away in enumerate((delete, lambda path: checkpoint().write(path))):
            path = checkpoint().write(bucket.path(f"run/ckpt{number}"))
            reader = jaxckpt.load_checkpoint(path)
            away(path)
            with pytest.raises(FileNotFoundError, match="deleted while it was read") as caught:
                reader.get_tensor("value")
            assert caught.value.filename == path

    def test_a_restore_says_so(self, bucket: Bucket) -> None:
        path = checkpoint().write(bucket.path("run/ckpt"))
        requests = []

        def rule(request: Request) -> int | None:
            requests.append(request)
            # Afterwards nothing of it is there.
            return 404 if len(requests) > 4 else None

        bucket.rule(rule)
        target = jaxckpt.Checkpoint(value=np.zeros(1000))
        with pytest.raises(FileNotFoundError, match="deleted while it was read"):
            target.restore(path)
        assert not target.value.any()
        assert len(requests) > 4

    def test_damage_is_still_damage(self, bucket: Bucket) -> None:
        path = checkpoint().write(bucket.path("run/ckpt"))
        data = [name for name in stores.tree(path) if name.startswith("d/")]
        for name in data:
            stores.remove(f"{path}/{name}")
        with pytest.raises(jaxckpt.CorruptCheckpointError):
            checkpoint().restore(path)
