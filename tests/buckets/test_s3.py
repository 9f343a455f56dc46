"""What differs between S3 and Google Cloud Storage: servers that do not check conditions, and how a server is found."""

import errno
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from bucket_server import Bucket, Request
from s3_server import S3Server
from test_bucket_errors import impatient  # noqa: F401 - a fixture

import jaxckpt
from jaxckpt import storage
from jaxckpt.storage import stores
from jaxckpt.storage.commit import leases

ROOT = Path(__file__).parents[2]


def checkpoint() -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(value=np.arange(1000.0))


def server_of(bucket: Bucket) -> S3Server:
    assert isinstance(bucket.server, S3Server)
    return bucket.server


@pytest.fixture
def conditions(s3_bucket: Bucket) -> Iterator[Callable[[str], None]]:
    """Sets what the server does with the conditions of writes."""

    def choose(what: str) -> None:
        server_of(s3_bucket).conditions = what

    yield choose
    choose("kept")


class TestConditions:
    def test_a_server_that_ignores_them(self, s3_bucket: Bucket, conditions: Callable[[str], None]) -> None:
        written = checkpoint()
        conditions("ignored")
        for call in (
            lambda: written.save(s3_bucket.path("run/ckpt")),
            lambda: written.write(s3_bucket.path("best")),
            lambda: jaxckpt.CheckpointManager(written, s3_bucket.path("run"), 1).save(),
        ):
            with pytest.raises(OSError, match="does not check the conditions of writes") as caught:
                call()
            assert caught.value.errno == errno.ENOTSUP
            assert s3_bucket.keys == set()
        conditions("kept")
        # The answer is not remembered: another server may stand there now.
        assert written.save(s3_bucket.path("run/ckpt")) == s3_bucket.path("run/ckpt-1")

    def test_a_server_that_looks_first_and_writes_later(
        self, s3_bucket: Bucket, conditions: Callable[[str], None]
    ) -> None:
        conditions("raced")
        with pytest.raises(OSError, match="6 of 6 creations of one object at the same time"):
            checkpoint().save(s3_bucket.path("run/ckpt"))
        assert s3_bucket.keys == set()

    def test_each_condition_is_tried(self, s3_bucket: Bucket) -> None:
        """A server may know If-None-Match alone, or the other way round."""
        server = server_of(s3_bucket)
        for ignored in ("if-none-match", "if-match"):
            server.ignored_header = ignored
            try:
                with pytest.raises(OSError, match="does not check the conditions"):
                    checkpoint().save(s3_bucket.path("run/ckpt"))
            finally:
                server.ignored_header = None
            assert s3_bucket.keys == set()

    def test_reading_needs_no_permission_to_write(self, s3_bucket: Bucket) -> None:
        path = checkpoint().save(s3_bucket.path("run/ckpt"))
        program = """
            import sys
            import jaxckpt
            from jaxckpt import storage

            assert jaxckpt.latest_checkpoint(sys.argv[1]) == sys.argv[2]
            assert jaxckpt.load_checkpoint(sys.argv[2]).get_tensor("value")[7] == 7
            assert storage.verify(sys.argv[2]).ok
        """
        s3_bucket.requests.clear()
        s3_bucket.rule(lambda request: 403 if request.action in ("write", "delete") else None)
        run(program, s3_bucket.path("run"), path)
        assert {request.action for request in s3_bucket.requests} == {"read", "list"}

    def test_once_in_each_process(self, s3_bucket: Bucket) -> None:
        written = checkpoint()
        for _ in range(2):
            written.save(s3_bucket.path("run/ckpt"))
        written.write(s3_bucket.path("other/best"))
        trials = [request for request in s3_bucket.requests if "jaxckpt-tmp" in request.name]
        assert [request.action for request in trials].count("delete") == 1
        assert len({request.name for request in trials}) == 1

    def test_killed_in_the_middle(self, s3_bucket: Bucket) -> None:
        """The scratch object counts as the leftover of a dead process."""
        (s3_bucket.server.rules)[s3_bucket.name] = lambda request: "drop" if request.action == "delete" else None
        program = """
            import os, sys
            from jaxckpt.storage.stores import bucket
            from jaxckpt.storage.commit import leases

            real = bucket.wait
            def wait(future, path):
                found = real(future, path)
                os._exit(9) if getattr(found, "generation", b"") else None
                return found
            bucket.wait = wait
            leases.require_conditions(sys.argv[1])
        """
        assert run(program, s3_bucket.path("run/ckpt-1"), returncode=9).returncode == 9
        s3_bucket.rule(None)
        (key,) = s3_bucket.keys
        assert key.startswith("run/ckpt-1.jaxckpt-tmp-")
        assert key.endswith(f"/{leases.FILE}")
        assert checkpoint().save(s3_bucket.path("run/ckpt")) == s3_bucket.path("run/ckpt-1")
        assert {name.split("/")[1] for name in s3_bucket.keys} == {"checkpoint", "ckpt-1"}

    def test_without_the_permission_to_delete(self, s3_bucket: Bucket) -> None:
        s3_bucket.rule(lambda request: 403 if request.action == "delete" else None)
        with pytest.raises(PermissionError, match="s3:DeleteObject"):
            checkpoint().save(s3_bucket.path("run/ckpt"))
        assert not storage.is_checkpoint(s3_bucket.path("run/ckpt-1"))

    def test_lost_answers(self, s3_bucket: Bucket) -> None:
        """Each first answer to a write gets lost, and the write is done twice."""
        lost: set[Request] = set()

        def rule(request: Request) -> str | None:
            if request.action != "write" or request in lost:
                return None
            lost.add(request)
            return "lose"

        s3_bucket.rule(rule)
        assert checkpoint().save(s3_bucket.path("run/ckpt")) == s3_bucket.path("run/ckpt-1")
        s3_bucket.rule(None)
        assert storage.leftovers(s3_bucket.path("run")) == []


def run(program: str, *arguments: str, returncode: int = 0, **variables: str | None) -> CompletedProcess[str]:
    """Runs a program in a process of its own. A variable that is None is taken out of its environment."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env={name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == returncode, finished.stderr
    return finished


NO_KEYS = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
OUTCOME = """
    import sys
    import numpy as np
    import jaxckpt

    try:
        jaxckpt.Checkpoint(value=np.arange(3.0)).save(sys.argv[1])
    except OSError as error:
        print(type(error).__name__, error.errno, error)
"""


class TestFindingTheServer:
    def test_another_endpoint_for_all_services(self, s3_bucket: Bucket) -> None:
        url = s3_bucket.server.environment()["AWS_ENDPOINT_URL_S3"]
        run(OUTCOME, s3_bucket.path("run/ckpt"), AWS_ENDPOINT_URL_S3=None, AWS_ENDPOINT_URL=f"{url}/")
        assert storage.is_checkpoint(s3_bucket.path("run/ckpt-1"))

    def test_that_of_s3_goes_first(self, s3_bucket: Bucket) -> None:
        run(OUTCOME, s3_bucket.path("run/ckpt"), AWS_ENDPOINT_URL="http://127.0.0.1:1")
        assert storage.is_checkpoint(s3_bucket.path("run/ckpt-1"))

    def test_without_a_region(self, s3_bucket: Bucket) -> None:
        run(OUTCOME, s3_bucket.path("run/ckpt"), AWS_REGION=None)
        assert storage.is_checkpoint(s3_bucket.path("run/ckpt-1"))
        # The server is asked for it, and not each time.
        assert [request.name for request in s3_bucket.requests].count("") < 5

    @pytest.mark.parametrize("name", ["mine", None])
    def test_credentials_of_a_profile(self, s3_bucket: Bucket, tmp_path: Path, name: str | None) -> None:
        text = f"[{name or 'default'}]\naws_access_key_id = from-{name}\naws_secret_access_key = b\n"
        (tmp_path / "credentials").write_text(text)
        (tmp_path / "config").write_text("")
        files = {
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
        }
        found = run(OUTCOME, s3_bucket.path("run/ckpt"), **NO_KEYS, AWS_PROFILE=name, **files)
        assert found.stdout == ""
        assert storage.is_checkpoint(s3_bucket.path("run/ckpt-1"))
        assert f"from-{name}" in server_of(s3_bucket).key_ids

    def test_no_credentials(self, s3_bucket: Bucket, tmp_path: Path) -> None:
        server_of(s3_bucket).anonymous = False
        try:
            found = run(OUTCOME, s3_bucket.path("run/ckpt"), **NO_KEYS, HOME=str(tmp_path))
        finally:
            server_of(s3_bucket).anonymous = True
        assert found.stdout.startswith(f"PermissionError {errno.EACCES}")
        assert "AWS_ACCESS_KEY_ID" in found.stdout
        assert s3_bucket.keys == set()

    def test_keys_in_the_environment_print_nothing(self, s3_bucket: Bucket, tmp_path: Path) -> None:
        found = run(OUTCOME, s3_bucket.path("run/ckpt"), HOME=str(tmp_path))
        assert (found.stdout, found.stderr) == ("", "")

    def test_an_endpoint_that_is_not_there(self, s3_bucket: Bucket) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        program = f"from jaxckpt.storage.stores import servers\nservers.RETRIES['max_retries'] = 2\n{textwrap.dedent(OUTCOME)}"
        found = run(program, s3_bucket.path("run/ckpt"), AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{port}")
        assert found.stdout.startswith(f"OSError {errno.EHOSTUNREACH}")
        assert "cannot be reached" in found.stdout

    def test_a_bucket_in_another_region(self, s3_bucket: Bucket) -> None:
        s3_bucket.rule(lambda _: 301)
        with pytest.raises(OSError, match="AWS_REGION"):
            checkpoint().save(s3_bucket.path("run/ckpt"))


@pytest.mark.slow
def test_no_object_is_larger_than_the_server_takes(s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 64 << 20
    monkeypatch.setattr(stores.store_of("s3://"), "largest_file", largest)
    settings = jaxckpt.OrbaxSettings(chunk_byte_size=1 << 30, target_data_file_size=1 << 30, memory_limit_bytes=1 << 30)
    # A prime extent: with equal parts alone, its chunks would be larger.
    value = np.random.default_rng(0).integers(0, 256, (101, 1_000_003), np.uint8)
    server_of(s3_bucket).largest_body = 0
    path = jaxckpt.Checkpoint(value=value).save(s3_bucket.path("ckpt"), jaxckpt.CheckpointOptions(orbax=settings))
    assert 1 << 20 < server_of(s3_bucket).largest_body <= largest
    np.testing.assert_array_equal(jaxckpt.load_checkpoint(path).get_tensor("value"), value)


class TestVersions:
    def test_markers_of_two_checkpoints_differ(self, s3_bucket: Bucket) -> None:
        """The version of an object is made of its content."""
        path = s3_bucket.path("best")
        found = set()
        for _ in range(2):
            checkpoint().write(path)
            found.add(storage.identity(path))
        assert len(found) == 2

    def test_equal_contents_have_one_version(self, s3_bucket: Bucket) -> None:
        path = s3_bucket.path("file")
        first = stores.write_if(path, b"one", stores.ABSENT)
        stores.write(path, b"two")
        stores.write(path, b"one")
        # What was read is what is there. So what is made of it is right.
        stores.write_if(path, b"three", first)
        assert stores.read(path) == b"three"
