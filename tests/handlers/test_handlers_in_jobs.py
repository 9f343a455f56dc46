"""The handlers in jobs of several processes on a shared directory."""

from collections.abc import Iterator
from pathlib import Path

import handler_programs
import pytest

from jaxckpt import testing

pytestmark = pytest.mark.job


@pytest.fixture(scope="module", params=[2, 3], ids=["2", "3"])
def job(request: pytest.FixtureRequest) -> Iterator[testing.Job]:
    with testing.Job(processes=request.param, devices=2, timeout=120) as job:
        yield job


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_manager_saves_and_restores(job: testing.Job, tmp_path: Path, asynchronous: bool) -> None:
    found = job.run(handler_programs.manager_loop, str(tmp_path / "manager"), asynchronous)
    written = [each["bytes"] for each in found]
    # Replicas are divided: a process writes neither all of a replicated array nor the part of another process.
    assert max(written) < 1.6 * sum(written) / len(written)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_checkpointers_save_and_everything_restores(job: testing.Job, tmp_path: Path, asynchronous: bool) -> None:
    job.run(handler_programs.checkpointers, str(tmp_path), asynchronous)


def test_nothing_is_committed_without_a_part(tmp_path: Path) -> None:
    with testing.Job(processes=2, devices=2, timeout=60) as job:
        said = job.run(handler_programs.part_is_missing, str(tmp_path))
    assert "the part of process 1 is not here, so the checkpoint is not committed" in said[0][0]
    assert said[1]


def test_new_interface(job: testing.Job, tmp_path: Path) -> None:
    job.run(handler_programs.v1_saves, str(tmp_path))
