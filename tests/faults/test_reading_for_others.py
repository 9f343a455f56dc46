"""What happens to one process while it reads for others, or waits for them, is known to all, and changes no target."""

from collections.abc import Iterator
from pathlib import Path

import fault_programs as programs
import pytest

from jaxckpt import testing

pytestmark = pytest.mark.timeout(180)
PROCESSES = 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def job() -> Iterator[testing.Job]:
    with testing.Job(processes=PROCESSES, heartbeat_timeout=200, timeout=60) as job:
        yield job


def restored(job: testing.Job, prefix: str, version: int) -> None:
    for found in job.run(programs.restore, prefix, None, secs=20, once=True):
        assert found["error"] is None, found
        assert found["value"][1] == version


def saved(job: testing.Job, prefix: str, version: int) -> str:
    found = job.run(programs.save, prefix, None, version, secs=20)
    assert [each["error"] for each in found] == [None] * PROCESSES
    return str(found[0]["value"])


@pytest.mark.parametrize(
    ("stalled", "place", "nth"),
    [(0, "shared tile", 1), (0, "shared tile", 3), (0, "announced", 1), (2, "request", 1), (1, "request", 3)],
)
def test_a_process_that_stops_is_named_by_all(
    job: testing.Job, directory: Path, stalled: int, place: str, nth: int
) -> None:
    prefix = str(directory / "stopped" / "ckpt")
    saved(job, prefix, 1)
    job.start(programs.restore, prefix, None, fault=(stalled, place, "pause", nth), once=True)
    job.wait_for(stalled, place)
    job.stall(stalled)
    job.release(place)
    others = sorted(set(range(PROCESSES)) - {stalled})
    for process in others:
        job.wait_for(process, "done")
    job.resume(stalled)
    found = [result.value for result in job.results()]
    for process in others:
        assert "ProcessError" in found[process]["error"], found[process]
        assert found[process]["processes"] == (stalled,), found[process]
    assert found[stalled]["error"], found[stalled]
    restored(job, prefix, 1)


@pytest.mark.parametrize(("process", "place"), [(0, "shared tile"), (2, "request")])
@pytest.mark.parametrize("kind", ["raise", "interrupt"])
def test_an_error_reaches_all(job: testing.Job, directory: Path, process: int, place: str, kind: str) -> None:
    prefix = str(directory / "errors" / "ckpt")
    saved(job, prefix, 1)
    found = job.run(programs.restore, prefix, None, secs=20, once=True, fault=(process, place, kind, 1))
    own = "PermissionError" if kind == "raise" else "KeyboardInterrupt"
    assert any(own in (each["error"] or ()) or own in each["text"] for each in found), found
    for each in found:
        assert each["error"], found
        if kind == "raise":
            assert each["errno"] == 13
    restored(job, prefix, 1)


def test_damage_is_told_to_every_process_and_changes_no_target(job: testing.Job, directory: Path) -> None:
    prefix = str(directory / "damaged" / "ckpt")
    path = saved(job, prefix, 1)
    # The largest file holds arrays of one process.
    file = max(Path(path).glob("**/d/*"), key=lambda each: each.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for found in job.run(programs.restore, prefix, None, secs=20, once=True):
        assert "CorruptCheckpointError" in found["error"], found
        assert any(found["text"].count(name) for name in programs.NAMES), found


def test_a_process_that_is_killed_is_named(directory: Path) -> None:
    prefix = str(directory / "killed" / "ckpt")
    with testing.Job(processes=PROCESSES, heartbeat_timeout=100, exit="fast", timeout=60) as job:
        saved(job, prefix, 1)
        job.start(programs.restore, prefix, None, fault=(2, "request", "die", 2), once=True)
        results = job.results(check=False)
        assert results[2].state in ("died", "killed")
        for process in (0, 1):
            assert results[process].value["processes"] == (2,), results[process].value
    with testing.Job(processes=PROCESSES, timeout=60) as job:
        restored(job, prefix, 1)
