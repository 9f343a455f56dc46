"""Processes that are killed at every stage of a save: the previous checkpoint restores in a new job on the same disks."""

from typing import Any

import fault_programs as programs
import pytest

from jaxckpt import testing

pytestmark = [testing.requires_private_disks, pytest.mark.timeout(300)]
PROCESSES = 3
IO = 1
# Which process dies, in what, where, at which passage, and whether the save is complete by then.
CASES: list[tuple[int, str, str, int, bool]] = [
    (2, "save", "piece", 2, False),
    (2, "save", "vote", 1, False),
    (2, "restore", "request", 2, False),
    (IO, "save", "fetch", 2, False),
    (IO, "save", "commit", 1, False),
    (IO, "save", "outcome", 1, True),
    (IO, "restore", "provide", 1, False),
    (0, "save", "piece", 2, False),
]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_previous_checkpoint_survives(tmp_path: Any, asynchronous: bool) -> None:
    disk = str(tmp_path / "disk")
    prefix = f"{disk}/run/ckpt"
    disks: Any = None
    version = latest = 0
    # Each stage once; those of a save in both ways on more than one of them.
    for who, action, place, nth, complete in CASES[::2] if asynchronous else CASES:
        case = (who, action, place, nth)
        with testing.Job(
            processes=PROCESSES, private=disk, disks=disks, heartbeat_timeout=100, exit="fast", timeout=60
        ) as job:
            disks = job.disks
            if latest:
                for found in job.run(programs.restore, prefix, IO, secs=20):
                    assert found["error"] is None, (case, found)
                    assert found["value"][1] == latest, (case, found)
            version += 1
            saved = job.run(programs.save, prefix, IO, version, secs=20)
            assert [found["error"] for found in saved] == [None] * PROCESSES, (case, saved)
            listed = job.run(programs.files, f"{disk}/run")
            assert listed[0] == listed[2] == []
            assert not [name for name in listed[IO] if "tmp" in name], (case, listed)
            latest = version
            if action == "save":
                version += 1
                more = {"asynchronous": asynchronous}
                job.start(programs.save, prefix, IO, version, fault=(who, place, "die", nth), **more)
            else:
                job.start(programs.restore, prefix, IO, fault=(who, place, "die", nth))
            results = job.results(check=False)
            assert results[who].state in ("died", "killed"), (case, results[who])
            # JAX ends the others with process 0.
            if who != 0:
                for process in set(range(PROCESSES)) - {who}:
                    found = results[process].value
                    assert found["error"] is not None, (case, process, found)
                    assert "ProcessError" in found["error"], (case, process, found)
                    assert found["processes"] == (who,), (case, process, found)
            if complete:
                latest = version


def test_a_process_that_is_killed_before_it_calls(tmp_path: Any) -> None:
    disk = str(tmp_path / "disk")
    with testing.Job(processes=PROCESSES, private=disk, heartbeat_timeout=100, exit="fast") as job:
        job.run(programs.save, f"{disk}/ckpt", IO, 1, secs=20)
        job.kill(2)
        for _ in range(2):
            for found in job.run(programs.save, f"{disk}/ckpt", IO, 2)[:2]:
                assert found["processes"] == (2,), found
        assert [len(one.files()) > 0 for one in job.disks] == [False, True, False]
