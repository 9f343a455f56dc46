"""Jobs of several processes save into a bucket: through one process, or each its part."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bucket_programs
import numpy as np
import pytest
from bucket_server import Bucket, Request, Server

from jaxckpt import storage, testing
from jaxckpt.storage import joint, stores
from jaxckpt.storage.commit import leases
from jaxckpt.storage.item.content import ArrayContent, Entry, Piece, Snapshot
from jaxckpt.storage.owner import Owner
from jaxckpt.storage.settings import WriteSettings

pytestmark = [pytest.mark.job, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def job(gs_server: Server, s3_server: Server) -> Iterator[testing.Job]:
    environment = {**gs_server.environment(), **s3_server.environment()}
    with testing.Job(processes=2, devices=2, timeout=90, env=environment) as job:
        job.run(bucket_programs.impatient, {"max_retries": 2, "initial_delay": "10ms", "max_delay": "20ms"})
        yield job


@pytest.mark.parametrize(
    ("bucket", "io", "asynchronous", "orbax"),
    [
        ("gs", 0, False, {}),
        ("gs", 1, True, {}),
        ("gs", None, False, {"chunk_byte_size": 4096}),
        ("gs", None, True, {"compression": "zstd"}),
        ("s3", 1, True, {}),
        ("s3", None, False, {}),
    ],
    indirect=["bucket"],
)
def test_saves_and_restores(
    job: testing.Job, bucket: Bucket, io: int | None, asynchronous: bool, orbax: dict[str, Any]
) -> None:
    found = job.run(bucket_programs.round_trip, str(bucket), io, asynchronous, orbax)
    run = bucket.path("run")
    kept = [f"{run}/ckpt-2", f"{run}/ckpt-3"]
    assert found == [[bucket.path("exact"), kept, kept[-1]]] * 2
    for path in [bucket.path("exact"), *kept]:
        assert storage.verify(path).ok
        parts = {key for key in bucket.keys if key.startswith(path.removeprefix(f"{bucket}/") + "/ocdbt.process_")}
        assert len({key.split("/ocdbt.")[1].split("_")[1] for key in parts}) == (2 if io is None else 0)
    assert {key.split("/")[0] for key in bucket.keys} == {"exact", "run"}
    assert not any(key.endswith((leases.FILE, "/mark")) for key in bucket.keys)


def test_plain_orbax_reads_what_several_processes_wrote(job: testing.Job, gs_bucket: Bucket, tmp_path: Path) -> None:
    pytest.importorskip("gcsfs", reason="plain Orbax reaches buckets only with gcsfs")
    path, _ = job.run(bucket_programs.saved, str(gs_bucket), None)
    program = """
        import sys
        import numpy as np
        import orbax.checkpoint as ocp

        found = ocp.PyTreeCheckpointer().restore(sys.argv[1])
        same = {name: found[name] for name in ("rows", "columns", "same")}
        np.savez(sys.argv[2], **same, array=found["host"]["array"])
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    output = tmp_path / "found.npz"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), path, str(output)],
        env={**os.environ, "XLA_FLAGS": flags},
        check=True,
        capture_output=True,
        timeout=120,
    )
    rng = np.random.default_rng(0)
    with np.load(output) as found:
        for name in ("rows", "columns", "same"):
            np.testing.assert_array_equal(found[name], rng.standard_normal(bucket_programs.SHAPE).astype(np.float32))
        np.testing.assert_array_equal(found["array"], rng.standard_normal(700))


@pytest.mark.parametrize("io", [0, 1, None])
def test_refused_writes_fail_on_every_process_and_leave_nothing(
    job: testing.Job, bucket: Bucket, io: int | None
) -> None:
    part = "/d/" if io is not None else "/ocdbt.process_1_"

    def refuse(request: Request) -> int | None:
        return 403 if request.action == "write" and part in request.name else None

    bucket.rule(refuse)
    for kinds, text in job.run(bucket_programs.outcome, str(bucket), io):
        assert "PermissionError" in kinds or "ProcessError" in kinds
        assert "refuses permission" in text
    bucket.rule(None)
    assert bucket.keys == set()
    assert job.run(bucket_programs.saved, str(bucket), io) == [bucket.path("ckpt-1")] * 2


def test_a_process_that_does_not_see_the_bucket_is_named(job: testing.Job, bucket: Bucket) -> None:
    bucket.rule(lambda request: 404 if request.action == "read" and request.name.endswith("/mark") else None)
    for kinds, text in job.run(bucket_programs.outcome, str(bucket), None, timeout_secs=8):
        assert "ProcessError" in kinds
        assert "experimental_io_device" in text
    bucket.rule(None)
    assert bucket.keys == set()


def test_an_object_for_each_chunk_needs_an_io_process(job: testing.Job, bucket: Bucket) -> None:
    for kinds, text in job.run(bucket_programs.outcome_with_small_files, str(bucket), None):
        assert "ValueError" in kinds
        assert "max_shard_size" in text
    assert bucket.keys == set()
    assert job.run(bucket_programs.outcome_with_small_files, str(bucket), 1) == [([], "")] * 2


def part() -> Snapshot:
    data = np.arange(5000.0)
    content = ArrayContent("jax.Array", data.shape, data.dtype, data.shape, [Piece((0,), data.shape, data)])
    return Snapshot((Entry((("value", False),), content),))


class TestPartOfASaveThatWasGivenUp:
    """A process that was stopped wakes up, and nothing of what it goes on writing stays."""

    def test_before_it_writes(self, bucket: Bucket) -> None:
        with pytest.raises(FileNotFoundError):
            joint.write_part(bucket.path("ckpt-1"), part(), WriteSettings(), 1, "a-token")
        assert bucket.keys == set()

    def test_before_it_writes_and_another_save_has_begun(self, bucket: Bucket) -> None:
        """The part must not become one of the other save, which has the same name."""
        new = bucket.path("ckpt-1")
        lease = leases.Lease(new, "save")
        token = joint.save_token(new)
        lease.release()
        later = leases.Lease(new, "save")
        assert joint.save_token(new) != token
        before = bucket.keys
        with pytest.raises(FileNotFoundError, match="given up"):
            joint.write_part(new, part(), WriteSettings(), 1, token)
        assert bucket.keys == before
        later.release()

    def test_before_it_asks_which_save_it_is(self, bucket: Bucket) -> None:
        """Otherwise all its processes would write as parts of the save of another process."""
        new = bucket.path("ckpt-1")
        other = dataclasses.replace(Owner.new(token_bytes=8), pid=1)
        stores.write(f"{new}/{leases.FILE}", leases._content("save", None, other))
        with pytest.raises(FileNotFoundError, match="given up"):
            joint.save_token(new)

    @pytest.mark.parametrize("followed", [False, True])
    def test_while_it_writes(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, followed: bool) -> None:
        new = bucket.path("ckpt-1")
        lease = leases.Lease(new, "save")
        later: list[leases.Lease] = []
        write = joint.writer.write_arrays

        def late(*arguments: Any) -> None:
            lease.release()
            if followed:
                later.append(leases.Lease(new, "save"))
            write(*arguments)

        monkeypatch.setattr(joint.writer, "write_arrays", late)
        with pytest.raises(FileNotFoundError, match="given up"):
            joint.write_part(new, part(), WriteSettings(), 1, joint.save_token(new))
        for lease in later:
            lease.release()
        assert stores.tree(str(bucket)) == []
