"""Starts programs, preempts them, and looks at what they have saved."""

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator

import numpy as np

import jaxckpt
from jaxckpt import storage, testing
from tests.preemptions import programs

_START_SECS = 180.0
_END_SECS = 180.0
# A moment is chosen within this time after the program is ready. JAX's service looks for the signal once a second.
_ALONE_SECS, _JOB_SECS = 0.4, 1.5
# After so many tries in one directory, a new one begins, so that early steps have their turn too.
_FRESH = 10


def run(processes: int, tries: int, seed: int, secs: float | None) -> int:
    """Preempts programs, prints what was wrong, and returns the number of findings.

    Args:
      processes: number of processes of each program.
      tries: number of programs.
      seed: of the moments.
      secs: most seconds to go on; None for no limit.
    """
    chance = random.Random(seed)
    end = None if secs is None else time.monotonic() + secs
    findings = done = 0
    top = tempfile.mkdtemp(prefix="jaxckpt-preemptions-")
    try:
        directory, restored = "", 0
        for number in range(tries):
            if end is not None and time.monotonic() > end:
                break
            if number % _FRESH == 0:
                shutil.rmtree(directory, ignore_errors=True)
                directory, restored = os.path.join(top, f"run-{number}"), 0
            log = os.path.join(top, f"log-{number}")
            wrong = list(_try(directory, log, restored, processes, chance))
            done += 1
            findings += bool(wrong)
            for text in wrong:
                print(f"try {number} (seed {seed}): {text}", flush=True)
            if wrong:
                return _summary(done, findings)
            restored = _latest(directory)[1]
        return _summary(done, findings)
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _summary(done: int, findings: int) -> int:
    print(f"{done} tries, {findings} findings", flush=True)
    return findings


def _try(directory: str, log: str, restored: int, processes: int, chance: random.Random) -> Iterator[str]:
    """Preempts one program, and yields what was wrong."""
    ends = _alone(directory, log, chance) if processes == 1 else _job(directory, log, processes, chance)
    yield from ends
    logs = [_lines(f"{log}-{index}") for index in range(processes)]
    if any(not lines for lines in logs):
        yield "a program has not begun"
        return
    if [lines[0] for lines in logs] != [f"-1 {restored}"] * processes:
        yield f"restored {[lines[0] for lines in logs]}, expected step {restored}"
    completed = max(restored, *(int(lines[-1].split()[-1]) for lines in logs))
    path, step = _latest(directory)
    if path is None:
        yield "there is no checkpoint"
        return
    if step != completed:
        yield f"{path} has step {step}, but step {completed} was completed"
    if not np.array_equal(jaxckpt.load_variable(path, "values"), programs.expected(step)):
        yield f"{path} has wrong values"
    if not (report := jaxckpt.verify(path)).ok:
        yield f"{path} is damaged: {report}"
    if left := storage.leftovers(directory):
        yield f"left over: {left}"


def _latest(directory: str) -> tuple[str | None, int]:
    path = jaxckpt.latest_checkpoint(directory)
    return path, 0 if path is None else int(jaxckpt.load_variable(path, "step"))


def _lines(path: str) -> list[str]:
    if not os.path.exists(path):
        return []
    with open(path, encoding="ascii") as file:
        return file.read().splitlines()


def _wait_for_begin(log: str, processes: int) -> bool:
    end = time.monotonic() + _START_SECS
    while not all(_lines(f"{log}-{index}") for index in range(processes)):
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def _alone(directory: str, log: str, chance: random.Random) -> Iterator[str]:
    # The server has imported everything, and starts a program in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preemptions.programs"])
    program = context.Process(target=programs.train, args=(directory, log))
    program.start()
    try:
        _wait_for_begin(log, 1)
        time.sleep(chance.uniform(0, _ALONE_SECS))
        assert program.pid is not None
        os.kill(program.pid, signal.SIGTERM)
        program.join(_END_SECS)
        if program.exitcode != 143:
            yield f"it ended with {'nothing' if program.exitcode is None else programs.ended_by(program.exitcode)}"
    finally:
        program.kill()
        program.join()


def _job(directory: str, log: str, processes: int, chance: random.Random) -> Iterator[str]:
    with testing.Job(processes=processes, timeout=_START_SECS, heartbeat_timeout=60) as job:
        job.start(programs.train, directory, log)
        _wait_for_begin(log, processes)
        time.sleep(chance.uniform(0, _JOB_SECS))
        os.kill(chance.choice(job.pids), signal.SIGTERM)
        for result in job.results(_END_SECS, check=False):
            found = None if result.error is None else (result.error.type, result.error.message)
            if found is None or found[0] != "SystemExit" or "143" not in str(found[1]):
                yield f"process {result.index} ended with {found or result.state}: {result.output[-2000:]}"
