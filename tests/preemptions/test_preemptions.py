"""`PreemptionCheckpointHandler`: real signals to real programs, and a short run of ``python -m tests.preemptions``."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxckpt
from jaxckpt import testing
from tests.preemptions import cases, jobs, runner

EXITED = 143
ENDED = -signal.SIGTERM


@pytest.mark.parametrize(
    ("case", "status", "saved"),
    [
        (cases.before_the_first_step, EXITED, ["ckpt-0"]),
        (cases.after_a_restore, EXITED, ["ckpt-7"]),
        (cases.an_earlier_handler_is_called, EXITED, ["ckpt-3"]),
        (cases.a_save_in_flight_is_finished_first, 0, ["ckpt-1", "ckpt-2"]),
        (cases.a_save_in_flight_that_fails, EXITED, ["ckpt-5"]),
        (cases.a_second_signal_ends_it, ENDED, ["ckpt-2"]),
        (cases.a_save_that_fails, 0, []),
        (cases.closed_it_gives_the_signal_back, ENDED, []),
        (cases.a_signal_after_the_last_step, ENDED, []),
        (cases.an_earlier_handler_comes_back, 0, []),
        (cases.too_little_time, 0, ["ckpt-1", "ckpt-2", "ckpt-3"]),
        (cases.enough_time, 0, ["ckpt-1", "ckpt-2", "ckpt-3"]),
        (cases.on_another_thread, 0, []),
        (cases.a_policy_sees_it, 0, ["ckpt-2"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_one_program(case: Callable[[str], None], status: int, saved: list[str], tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preemptions.cases", "tests.preemptions.programs"])
    directory = tmp_path / "run"
    program = context.Process(target=case, args=(str(directory),))
    program.start()
    try:
        program.join(120)
        assert program.exitcode == status
    finally:
        program.kill()
        program.join()
    found = sorted(os.listdir(directory)) if directory.exists() else []
    assert [name for name in found if name != "checkpoint"] == saved
    for name in saved:
        assert jaxckpt.verify(directory / name).ok


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: cases.HANDLER(3), TypeError, "manager must be a jaxckpt.CheckpointManager, got int"),
        (lambda: jaxckpt.TerminationConfig(exit_fn=3), TypeError, "exit_fn must be callable, got int"),
        (lambda: jaxckpt.TerminationConfig(grace_period=0), ValueError, "grace_period"),
        (lambda: jaxckpt.TerminationConfig(grace_period="long"), TypeError, "grace_period"),
    ],
    ids=["manager", "exit_fn", "zero", "text"],
)
def test_arguments_that_are_refused(make: Callable[[], Any], error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_a_config_of_another_kind_is_refused(tmp_path: Path) -> None:
    _, manager = cases.make(str(tmp_path))
    with pytest.raises(TypeError, match="termination_config must be a jaxckpt.TerminationConfig, got dict"):
        cases.HANDLER(manager, {})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_short_run() -> None:
    assert runner.run(processes=1, tries=6, seed=os.getpid(), secs=30) == 0


@pytest.mark.job
@pytest.mark.timeout(300)
def test_a_job_is_preempted() -> None:
    assert runner.run(processes=4, tries=1, seed=os.getpid(), secs=None) == 0


@pytest.mark.job
@pytest.mark.timeout(300)
def test_a_policy_of_orbax_and_the_handler_save_the_same_step(tmp_path: Path) -> None:
    with testing.Job(processes=3, timeout=120, heartbeat_timeout=60) as job:
        job.start(jobs.with_a_policy, str(tmp_path / "run"))
        for process in range(3):
            job.wait_for(process, "third")
        os.kill(job.pids[2], signal.SIGTERM)
        found = [result.value for result in job.results()]
    last = found[0]["last"]
    assert last > 3
    expected = {"saved": ["ckpt-2", f"ckpt-{last}"], "last": last, "ended": [1], "latest": f"ckpt-{last}"}
    assert found == [expected] * 3
    names = sorted(name for name in os.listdir(tmp_path / "run") if name != "checkpoint")
    assert names == sorted(["ckpt-2", f"ckpt-{last}"])


@pytest.mark.job
@pytest.mark.timeout(300)
def test_what_stands_in_the_way_of_jaxs_service(tmp_path: Path) -> None:
    with testing.Job(processes=1, timeout=120, env={"JAX_ENABLE_PREEMPTION_SERVICE": "false"}) as job:
        (text,) = job.run(jobs.without_the_service)
    assert "preemption service is turned off" in text
    assert "jax_enable_preemption_service" in text
    with testing.Job(processes=1, timeout=120) as job:
        ((text,),) = job.run(jobs.with_a_handler_of_its_own, str(tmp_path / "run"))
    assert "a handler for SIGTERM of its own" in text
