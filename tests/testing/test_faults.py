"""Faults on purpose, time limits, and that no process stays."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import job_programs
import pytest

from jaxckpt import testing

ROOT = Path(__file__).parents[2]


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(listed.stdout.strip()) and not listed.stdout.startswith("Z")


def assert_gone(pids: list[int], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while remaining := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"{remaining} still run"
        time.sleep(0.05)


def test_a_killed_process_is_seen_and_the_others_go_on() -> None:
    with testing.Job(processes=3) as job:
        job.start(job_programs.two_gates)
        job.wait_for(1, "first")
        job.kill(1)
        job.release("first")
        job.wait_for(0, "second")
        job.release("second")
        results = job.results()
        assert [result.state for result in results] == ["returned", "killed", "returned"]
        assert (results[1].exitcode, results[0].exitcode) == (-signal.SIGKILL, None)
        assert job.run(job_programs.topology) == [(0, 3, 1), None, (2, 3, 1)]
    assert_gone(job.pids, 0)


def test_a_stalled_process_is_silent_until_resumed() -> None:
    with testing.Job(job_programs.two_gates, heartbeat_timeout=60) as job:
        job.wait_for(0, "first")
        job.wait_for(1, "first")
        job.stall(1)
        job.release("first")
        job.wait_for(0, "second")
        job.release("second", 0)
        job.resume(1)
        job.wait_for(1, "second")
        job.release("second", 1)
        assert [result.value for result in job.results()] == ["through", "through"]
        # In a thread; and a gate that was opened in one call is closed in the next.
        job.start(job_programs.wait_in_thread)
        job.wait_for(0, "gate")
        job.release("gate")
        job.results()
        job.start(job_programs.two_gates)
        with pytest.raises(testing.JobTimeout, match="process 0 did not signal 'second' within 0.2 s"):
            job.wait_for(0, "second", timeout=0.2)
        with pytest.raises(RuntimeError, match="all processes of the job have ended"):
            job.run(job_programs.topology)


def test_at_the_deadline_every_thread_is_shown_and_all_are_killed() -> None:
    with (
        pytest.raises(testing.JobTimeout, match=r"did not finish within 1 s on processes \[0, 1\]") as caught,
        testing.Job(job_programs.two_gates) as job,
    ):
        job.wait_for(0, "first")
        job.wait_for(1, "first")
        # Even a stopped process shows where it was.
        job.stall(1)
        job.results(timeout=1)
    assert isinstance(caught.value, TimeoutError)
    for result in caught.value.results:
        assert result.state == "running"
        assert "in two_gates" in result.stacks
        assert "in two_gates" in str(result)
    assert_gone([result.pid for result in caught.value.results], 0)


def test_a_failure_does_not_leave_the_others_waiting() -> None:
    with (
        pytest.raises(testing.JobFailed, match=r"on process 1; processes \[0\] had not finished 0.5 s later") as caught,
        testing.Job(job_programs.fail_while_others_wait, grace=0.5) as job,
    ):
        job.wait_for(0, "waiting")
        job.release("fail")
        job.results()
    waiting, failed = caught.value.results
    assert "KeyError: 'mine'" in str(failed)
    assert "in fail_while_others_wait" in waiting.stacks
    assert_gone([waiting.pid, failed.pid], 0)


def test_a_process_that_dies_is_a_failure() -> None:
    with testing.Job() as job:
        with pytest.raises(testing.JobFailed, match="failed on process 1") as caught:
            job.run(job_programs.die_on, 1, 7)
        assert [(result.state, result.exitcode) for result in caught.value.results] == [("returned", None), ("died", 7)]
        assert "process 1" in str(caught.value)
        assert "died with status 7" in str(caught.value)


def test_waiting_for_a_signal_that_cannot_come_any_more() -> None:
    with testing.Job(job_programs.topology, processes=1) as job:
        with pytest.raises(testing.JobFailed, match="process 0 ended the function without signalling 'ready'"):
            job.wait_for(0, "ready")
        with pytest.raises(IndexError, match="there is no process 1"):
            job.kill(1)


def test_handlers_run_at_a_normal_end(tmp_path: Path) -> None:
    testing.run(job_programs.leave_mark_at_exit, args=(str(tmp_path),))
    assert sorted(os.listdir(tmp_path)) == ["0", "1"]
    testing.run(job_programs.leave_mark_at_exit, args=(str(tmp_path / "none"),), processes=1, exit="fast")


def test_a_failure_at_the_end_is_one() -> None:
    with pytest.raises(testing.JobFailed, match="process 0 failed when it ended"):
        testing.run(job_programs.fail_at_exit, processes=1)


def test_what_processes_start_ends_with_them() -> None:
    with testing.Job(job_programs.start_child, processes=1) as job:
        job.wait_for(0, "ready")
        listed = subprocess.run(["pgrep", "-g", str(job.pids[0])], capture_output=True, text=True, check=True)
        pids = [int(pid) for pid in listed.stdout.split()]
        assert len(pids) == 2
    assert_gone(pids)


@pytest.mark.parametrize("stalled", [False, True], ids=["", "stalled"])
def test_nothing_stays_when_the_parent_is_killed(stalled: bool, tmp_path: Path) -> None:
    """The parent also forks a process that outlives it and holds what it had open."""
    code = f"""
        import os, signal, sys, threading, time
        from jaxckpt import testing

        def main():
            with testing.Job("{Path(job_programs.__file__)}:start_child_and_tell", args=({str(tmp_path)!r},)) as job:
                job.wait_for(0, "ready")
                job.wait_for(1, "ready")
                if {stalled}:
                    job.stall(1)
                if os.fork() == 0:
                    os.close(1)
                    signal.alarm(100)
                    signal.pause()
                print(*job.pids, job._group.directory, flush=True)
                signal.pause()

        main()
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert parent.stdout is not None
        *pids, directory = parent.stdout.readline().split()
        children = [int((tmp_path / f"pid-{index}").read_text()) for index in (0, 1)]
        everything = [*map(int, pids), *children]
        assert all(map(is_running, everything))
        parent.kill()
        assert_gone(everything)
        deadline = time.monotonic() + 30
        while os.path.exists(directory):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        # It kills the process that the parent forked too.
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait(30)
        assert parent.stdout is not None
        parent.stdout.close()
