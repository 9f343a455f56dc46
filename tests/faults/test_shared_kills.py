"""Processes that are killed at every stage of a save into a shared directory: the previous checkpoint restores in a new job there."""

import os
from pathlib import Path

import fault_programs as programs
import pytest

from jaxckpt import testing

pytestmark = pytest.mark.timeout(300)
PROCESSES = 3
# Which process dies, where, at which passage, and whether the save is complete by then.
CASES: list[tuple[int, str, int, bool]] = [
    # Before it looks for the directory; before, and in the middle of, writing its part; when it is asked whether it is still there.
    (2, "look", 1, False),
    (2, "part", 1, False),
    (2, "data", 2, False),
    (1, "vote", 1, False),
    # Before it asks whether the others see the directory; in its part; with all parts there; before and after the commit.
    (0, "mark", 1, False),
    (0, "data", 2, False),
    (0, "merge", 1, False),
    (0, "commit", 1, False),
    (0, "outcome", 1, True),
]


def temporaries(directory: str) -> list[str]:
    return [name for name in os.listdir(directory) if "tmp" in name]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_previous_checkpoint_survives(tmp_path: Path, asynchronous: bool) -> None:
    directory = str(tmp_path)
    prefix = f"{directory}/ckpt"
    version = latest = 0
    # Each stage once; those of a save in both ways on both sides.
    for who, place, nth, complete in CASES[1::3] if asynchronous else CASES:
        case = (who, place, nth)
        with testing.Job(processes=PROCESSES, heartbeat_timeout=100, exit="fast", timeout=60) as job:
            if latest:
                for found in job.run(programs.restore, prefix, None, secs=20):
                    assert found["error"] is None, (case, found)
                    assert found["value"][1] == latest, (case, found)
            version += 1
            saved = job.run(programs.save, prefix, None, version, secs=20)
            assert [found["error"] for found in saved] == [None] * PROCESSES, (case, saved)
            assert temporaries(directory) == [], case
            latest = version
            version += 1
            fault = (who, place, "die", nth)
            job.start(programs.save, prefix, None, version, asynchronous=asynchronous, fault=fault)
            results = job.results(check=False)
            assert results[who].state in ("died", "killed"), (case, results[who])
            for process in set(range(PROCESSES)) - {who}:
                if who == 0 and results[process].state == "died":
                    # JAX ends the others with process 0, perhaps before they can tell anything.
                    continue
                found = results[process].value
                assert found["error"] is not None, (case, process, found)
                assert "ProcessError" in found["error"], (case, process, found)
                assert found["processes"] == (who,), (case, process, found)
        # Process 0 removes what it has begun. If it is dead itself, the next save does, unless the checkpoint is complete.
        assert len(temporaries(directory)) == (who == 0 and not complete), case
        if complete:
            latest = version
    with testing.Job(processes=PROCESSES, timeout=60) as job:
        for found in job.run(programs.restore, prefix, None, secs=20):
            assert found["error"] is None, found
            assert found["value"][1] == latest, found
        assert [found["error"] for found in job.run(programs.save, prefix, None, version + 1, secs=20)] == [None] * 3
        assert temporaries(directory) == []
