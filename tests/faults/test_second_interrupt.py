"""Ctrl-C, and again, on the IO process of a job in which another process hangs."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import interrupt_programs
import pytest
from waiting import wait_until

from jaxckpt import testing


@pytest.fixture(scope="module")
def job() -> Iterator[testing.Job]:
    with testing.Job(processes=2, devices=1, heartbeat_timeout=100) as job:
        yield job


def is_stopped(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return listed.stdout.startswith("T")


@pytest.mark.parametrize(("action", "place"), [("restore", "vote"), ("restore", "request"), ("write", "decide")])
def test_the_second_one_ends_the_wait_at_once(job: testing.Job, tmp_path: Path, action: str, place: str) -> None:
    prefix = str(tmp_path / "ckpt")
    job.run(interrupt_programs.prepare, prefix)
    job.start(interrupt_programs.hang, prefix, 0, action, place)
    job.wait_for(0, "interrupt")
    wait_until(lambda: is_stopped(job.pids[1]), "process 1 stops")
    job.release("interrupt")
    # A first one waits for no peer; should it take long nevertheless, the second one is heeded at once. The call itself would wait longer.
    job.wait_for(0, "ended", timeout=interrupt_programs.SECS / 2)
    job.resume(1)
    found = job.results(timeout=60)
    interrupted, hung = found[0].value, found[1].value
    assert interrupted["error"][0] == "KeyboardInterrupt"
    # It was told, or finds the connection closed: never a torn message.
    assert "ProcessError" in hung["error"], hung
    assert hung["processes"] == (0,)
    assert "not a message" not in hung["text"]
    if place == "vote":
        assert "KeyboardInterrupt" in hung["text"], "the outcome lay ready for it when it went on"
    # The job can be used again.
    assert job.run(interrupt_programs.check, prefix) == [1.0, 1.0]
