"""A process that is killed while it works in a bucket: what was committed before restores, and its leftovers are swept."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from bucket_server import Bucket, Request

import jaxckpt
from jaxckpt import storage
from jaxckpt.storage import stores
from jaxckpt.storage.commit import leases

ROOT = Path(__file__).parents[2]
WRITER = """
    import sys
    import numpy as np
    import jaxckpt

    action, path = sys.argv[1:]
    checkpoint = jaxckpt.Checkpoint(value=np.full(60_000, 2.0), small=2)
    if action == "delete":
        from jaxckpt import storage
        storage.delete(storage.CheckpointPath.of(path))
    else:
        getattr(checkpoint, action)(path)
"""


def checkpoint(number: float) -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(value=np.full(60_000, float(number)), small=int(number))


def stored(path: str) -> float:
    target = checkpoint(0)
    target.read(path).assert_consumed()
    np.testing.assert_array_equal(target.value, np.full(60_000, float(target.small)))
    report = storage.verify(path)
    assert report.ok, report
    return float(target.small)


def run_and_kill(bucket: Bucket, action: str, path: str, when: Callable[[Request], bool]) -> None:
    """Runs a program that is killed before the first request that `when` holds for."""
    started = threading.Event()
    box: dict[str, Any] = {}

    def rule(request: Request) -> str | None:
        if "killed" in box:
            return "drop"
        if not when(request):
            return None
        started.wait(60)
        box["killed"] = request
        os.kill(box["process"].pid, signal.SIGKILL)
        return "drop"

    bucket.rule(rule)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(WRITER), action, path]
    box["process"] = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    started.set()
    try:
        _, errors = box["process"].communicate(timeout=120)
    finally:
        box["process"].kill()
        box["process"].wait(30)
        bucket.rule(None)
    assert "killed" in box, errors


def at(action: str, end: str, start: str = "") -> Callable[[Request], bool]:
    return lambda request: request.action == action and request.name.endswith(end) and request.name.startswith(start)


def no_leftovers(bucket: Bucket) -> bool:
    return not [key for key in bucket.keys if leases.FILE in key or "jaxckpt-tmp" in key]


@pytest.mark.parametrize(
    "when",
    [
        at("write", "manifest.ocdbt"),
        at("write", "/_METADATA"),
        at("write", "/commit_success.txt"),
        at("write", "run/checkpoint"),
        at("delete", leases.FILE, "run/ckpt-2/"),
    ],
    ids=["data", "metadata", "commit", "register", "after-registration"],
)
def test_killed_while_saving(bucket: Bucket, when: Callable[[Request], bool], request: pytest.FixtureRequest) -> None:
    first = checkpoint(1).save(bucket.path("run/ckpt"))
    run_and_kill(bucket, "save", bucket.path("run/ckpt"), when)
    # The lease goes last, when the checkpoint has been registered.
    registered = "after-registration" in request.node.name
    assert jaxckpt.latest_checkpoint(bucket.path("run")) == (bucket.path("run/ckpt-2") if registered else first)
    assert stored(first) == 1
    committed = "run/ckpt-2/commit_success.txt" in bucket.keys
    if committed:
        assert stored(bucket.path("run/ckpt-2")) == 2
    else:
        assert not storage.is_checkpoint(bucket.path("run/ckpt-2"))
        with pytest.raises(FileNotFoundError):
            checkpoint(0).restore(bucket.path("run/ckpt-2"))
        (leftover,) = storage.leftovers(bucket.path("run"))
        assert (leftover.final, leftover.live) == (bucket.path("run/ckpt-2"), False)
    manager = jaxckpt.CheckpointManager(checkpoint(3), bucket.path("run"), max_to_keep=5)
    assert no_leftovers(bucket)
    assert manager.checkpoints == [first, bucket.path("run/ckpt-2")][: 1 + committed]
    assert manager.save() == bucket.path(f"run/ckpt-{2 + committed}")
    assert {key.split("/")[1] for key in bucket.keys} == {
        "checkpoint",
        *(os.path.basename(path) for path in manager.checkpoints),
    }


@pytest.mark.parametrize(
    "when",
    [
        at("write", "manifest.ocdbt"),
        at("write", "/commit_success.txt"),
        at("write", leases.FILE, "best/"),
        at("delete", "/commit_success.txt", "best/"),
        at("delete", "/_METADATA", "best/"),
        at("write", "/_METADATA", "best/"),
        at("write", "/commit_success.txt", "best/"),
        at("delete", leases.FILE, "best/"),
        at("delete", "/_METADATA", "best.jaxckpt-tmp-"),
    ],
    ids=["stage", "staged", "lease", "uncommit", "remove", "copy", "commit", "release", "clean"],
)
@pytest.mark.parametrize(("bucket", "look_first"), [("gs", True), ("gs", False), ("s3", True)], indirect=["bucket"])
def test_killed_while_replacing(bucket: Bucket, when: Callable[[Request], bool], look_first: bool) -> None:
    path = checkpoint(1).write(bucket.path("best"))
    run_and_kill(bucket, "write", path, when)
    # Readers need not be able to write.
    if look_first:
        bucket.rule(lambda request: 403 if request.action in ("write", "delete") else None)
        assert storage.is_checkpoint(path)
        assert stored(path) in (1, 2)
        bucket.rule(None)
    storage.sweep(str(bucket))
    assert no_leftovers(bucket)
    assert stored(path) in (1, 2)
    checkpoint(3).write(path)
    assert stored(path) == 3
    assert {key.split("/")[0] for key in bucket.keys} == {"best"}


@pytest.mark.parametrize(
    "when",
    [at("delete", "/commit_success.txt"), at("delete", "/_METADATA"), at("delete", leases.FILE)],
    ids=["before", "half", "after"],
)
def test_killed_while_deleting(bucket: Bucket, when: Callable[[Request], bool]) -> None:
    checkpoint(1).save(bucket.path("ckpt"))
    second = checkpoint(2).save(bucket.path("ckpt"))
    run_and_kill(bucket, "delete", second, when)
    survived = storage.is_checkpoint(second)
    if survived:
        assert stored(second) == 2
    storage.sweep(str(bucket))
    assert no_leftovers(bucket)
    assert any(key.startswith("ckpt-2/") for key in bucket.keys) == survived
    assert stored(bucket.path("ckpt-1")) == 1


def test_the_end_of_the_program_waits(bucket: Bucket) -> None:
    program = """
        import sys
        import numpy as np
        import jaxckpt

        options = jaxckpt.CheckpointOptions(enable_async=True)
        jaxckpt.Checkpoint(value=np.full(60_000, 2.0), small=2).save(sys.argv[1], options)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(program), bucket.path("ckpt")]
    finished = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert stored(bucket.path("ckpt-1")) == 2
    assert no_leftovers(bucket)


class TestLiveSaves:
    def test_a_checkpoint_is_readable_while_it_is_replaced(self, bucket: Bucket) -> None:
        path = checkpoint(1).save(bucket.path("run/ckpt"))
        found = []
        looking = threading.Lock()

        def rule(request: Request) -> None:
            if request.action in ("write", "delete") and looking.acquire(blocking=False):
                found.append(
                    (stored(path), jaxckpt.latest_checkpoint(bucket.path("run")), storage.list_numbered(path[:-2]))
                )
                looking.release()

        bucket.rule(rule)
        checkpoint(2).write(path)
        bucket.rule(None)
        assert len(found) > 10
        assert {latest for _, latest, _ in found} == {path}
        assert all(numbers == [1] for _, _, numbers in found)
        assert [number for number, _, _ in found] == sorted(number for number, _, _ in found)
        assert stored(path) == 2

    def test_another_process_leaves_it_alone(self, bucket: Bucket, cli: Callable[..., CompletedProcess[str]]) -> None:
        arrived, go_on = threading.Event(), threading.Event()

        def rule(request: Request) -> None:
            if request.action == "write" and request.name == "run/ckpt-1/_METADATA":
                arrived.set()
                go_on.wait(120)

        bucket.rule(rule)
        saved = checkpoint(1)
        saved.save(bucket.path("run/ckpt"), jaxckpt.CheckpointOptions(enable_async=True))
        try:
            assert arrived.wait(60)
            assert not storage.is_checkpoint(bucket.path("run/ckpt-1"))
            cleaned = cli("clean", bucket.path("run"))
            assert "in use" in cleaned.stdout, cleaned
            assert storage.sweep(bucket.path("run")) == []
            assert checkpoint(2).save(bucket.path("run/ckpt")) == bucket.path("run/ckpt-2")
            with pytest.raises(FileExistsError, match="is working here"):
                checkpoint(3).write(bucket.path("run/ckpt-1"))
        finally:
            go_on.set()
        saved.sync()
        assert stored(bucket.path("run/ckpt-1")) == 1
        assert stored(bucket.path("run/ckpt-2")) == 2

    @pytest.mark.parametrize("silent", [False, True])
    def test_of_another_machine(self, bucket: Bucket, silent: bool) -> None:
        written = time.time() - (leases.DEAD_AFTER_SECS + 10 if silent else 10)
        lease = {"action": "save", "staged": None, "host": "0", "pid": 1, "start": 1, "token": "t", "time": written}
        stores.write(bucket.path(f"ckpt-1/{leases.FILE}"), json.dumps(lease).encode())
        stores.write(bucket.path("ckpt-1/_METADATA"), b"half")
        (leftover,) = storage.leftovers(str(bucket))
        assert leftover.live != silent
        assert "another machine" in leftover.owner
        assert storage.sweep(str(bucket)) == ([bucket.path("ckpt-1")] if silent else [])
        assert checkpoint(1).save(bucket.path("ckpt")) == bucket.path("ckpt-1" if silent else "ckpt-2")

    def test_a_note_that_names_a_place_elsewhere(self, bucket: Bucket) -> None:
        """The lease of another writer decides about the directory that it is in, and about nothing else."""
        precious = checkpoint(7).write(bucket.path("precious/best"))
        beside = checkpoint(8).write(bucket.path("run/mine"))
        for staged in (precious, beside, bucket.path("run")):
            lease = {
                "action": "replace",
                "staged": staged,
                "host": "0",
                "pid": 1,
                "start": 1,
                "token": "t",
                "time": 1.0,
            }
            stores.write(bucket.path(f"run/ckpt-1/{leases.FILE}"), json.dumps(lease).encode())
            assert not storage.is_checkpoint(bucket.path("run/ckpt-1"))
            # It is not a lease of jaxckpt's.
            assert storage.sweep(bucket.path("run")) == []
        assert stored(precious) == 7
        assert stored(beside) == 8

    def test_taken_for_dead(self, bucket: Bucket) -> None:
        def rule(request: Request) -> None:
            if request.action == "write" and request.name == "ckpt-1/_METADATA":
                bucket.rule(None)
                lease = json.loads(stores.read(bucket.path(f"ckpt-1/{leases.FILE}")))
                stores.write(bucket.path(f"ckpt-1/{leases.FILE}"), json.dumps({**lease, "token": "other"}).encode())

        bucket.rule(rule)
        with pytest.raises(OSError, match="took this save for dead"):
            checkpoint(1).save(bucket.path("ckpt"))
        assert not storage.is_checkpoint(bucket.path("ckpt-1"))

    def test_a_lost_answer_is_not_another_writer(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        """A write whose answer was lost is repeated, and meets its own result."""
        monkeypatch.setattr(leases, "RENEW_SECS", 0.05)
        writes = 0

        def rule(request: Request) -> str | None:
            nonlocal writes
            writes += request.action == "write"
            return "lose" if request.action == "write" and writes in (1, 4) else None

        bucket.rule(rule)
        lease = leases.Lease(bucket.path("ckpt-1"), "save")
        end = time.monotonic() + 60
        while writes < 8:
            assert time.monotonic() < end
            time.sleep(0.01)
        lease.confirm()
        lease.release()
        assert bucket.keys == set()

    def test_the_note_is_renewed(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leases, "RENEW_SECS", 0.05)
        lease = leases.Lease(bucket.path("ckpt-1"), "save")
        first = leases.read(bucket.path("ckpt-1"))
        assert first is not None
        end = time.monotonic() + 60
        while (found := leases.read(bucket.path("ckpt-1"))) is not None and found.time == first.time:
            assert time.monotonic() < end
            time.sleep(0.01)
        lease.release()
        assert bucket.keys == set()


def test_a_save_whose_answers_get_lost(bucket: Bucket) -> None:
    """The first answer to every write and every deletion: each is done twice."""
    lost: set[Request] = set()

    def rule(request: Request) -> str | None:
        if request.action not in ("write", "delete") or request in lost:
            return None
        lost.add(request)
        return "lose"

    bucket.rule(rule)
    for number in (1, 2):
        assert checkpoint(number).write(bucket.path("ckpt")) == bucket.path("ckpt")
    assert checkpoint(3).save(bucket.path("other")) == bucket.path("other-1")
    bucket.rule(None)
    assert len(lost) > 10
    assert storage.leftovers(str(bucket)) == []
    for name, number in (("ckpt", 2), ("other-1", 3)):
        assert stored(bucket.path(name)) == number
