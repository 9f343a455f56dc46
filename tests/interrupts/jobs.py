"""Tries with a job of three processes, which live on from one try to the next."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxckpt import testing
from tests.interrupts import job_programs

NAMES = (*job_programs.JOB_SCENARIOS,)
PROCESSES = 3
_BATCH = 5
_START_SECS = 120.0
_TRY_SECS = 30.0


class Batch(NamedTuple):
    """What came of some tries.

    Attributes:
      name: the scenario.
      made: how many tries were made.
      hits: in how many of them a signal came during the call.
      finding: what was wrong, as text; None if nothing was.
    """

    name: str
    made: int
    hits: int
    finding: str | None


def batches(names: Sequence[str], tries: int, seed: int, end: float | None) -> Iterator[Batch]:
    """Makes tries, at least one batch of each scenario if there are enough, and yields what came of them.

    Args:
      names: the scenarios.
      tries: how many.
      seed: of the first batch; each further one has the next.
      end: when to begin no further batch, by the monotonic clock; None for no end.
    """
    ios: tuple[int | None, ...] = (None, 0, 1)
    problem = testing.private_disks_problem()
    if problem is not None:
        print(f"skipped: {', '.join(names)} with an IO device: {problem}", flush=True)
        ios = (None,)
    left, turn = tries, 0
    while left > 0 and (turn == 0 or not _over(end)):
        base = Path(tempfile.mkdtemp(prefix="jaxckpt-interrupts-", dir=_memory()))
        disks = None if problem is not None else [testing.Disk(base / f"disk{index}") for index in range(PROCESSES)]
        (base / "private").mkdir()
        (base / "shared").mkdir()
        try:
            with testing.Job(
                processes=PROCESSES,
                private=None if disks is None else base / "private",
                disks=disks,
                timeout=_START_SECS,
                exit="fast",
                cwd=base,
            ) as job:
                while left > 0 and (turn == 0 or not _over(end)):
                    # Each scenario comes with each device.
                    name, io = names[turn % len(names)], ios[(turn + turn // len(names)) % len(ios)]
                    folder = base / ("shared" if io is None else "private") / f"ground{turn}"
                    found = _batch(job, name, io, folder, seed + turn, min(_BATCH, left))
                    turn += 1
                    left -= max(1, found.made)
                    yield found
                    shutil.rmtree(base / "shared" / f"ground{turn - 1}", ignore_errors=True)
                    if found.finding is not None:
                        # Its processes may be in any state.
                        break
        finally:
            shutil.rmtree(base, ignore_errors=True)


def _batch(job: testing.Job, name: str, io: int | None, folder: Path, seed: int, times: int) -> Batch:
    try:
        results: list[dict[str, Any]] = job.run(
            job_programs.tries, name, io, str(folder), seed, times, timeout=60 + times * _TRY_SECS
        )
    except (testing.JobFailed, testing.JobTimeout) as error:
        return Batch(name, times, 0, f"FOUND {name} device {io} seed {seed}: {error}")
    lines = [line for result in results for text in result["found"] for line in text.splitlines()]
    finding = f"FOUND {name} device {io} seed {seed}:\n" + "\n".join(f"    {line}" for line in lines)
    return Batch(name, results[0]["made"], sum(result["hits"] for result in results), finding if lines else None)


def _over(end: float | None) -> bool:
    return end is not None and time.monotonic() > end


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
