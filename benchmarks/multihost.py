"""Saving and restoring in a job of several processes, beside one process: ``python -m benchmarks.multihost --gigabytes 1``.

The same state is saved by one process (the engine, which is what the others are measured by) and by a job of several local processes
over which it is divided, in several ways. All processes stay; the rounds go through all contenders in turn; medians are reported, of
the slowest process each. Memory is measured in jobs of their own. Writes RESULTS_MULTIHOST.md beside this file (or where
``--results`` says).
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks import multihost_report, report
from jaxckpt import testing

_WORKER = "benchmarks.multihost_worker"
_TIMEOUT_SECS = 600
ENGINE = "engine"
# As many programs at the same time as the job has processes, each of which does what the engine does.
APART = "apart"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit code: 1 if a contender failed."""
    chosen = _parse(arguments)
    names = chosen.contenders.split(",")
    results = multihost_report.Results(names, chosen.processes, chosen.gigabytes)
    directory = tempfile.mkdtemp(prefix="jaxckpt-multihost-", dir=chosen.dir)
    results.disk = report.filesystem(directory)
    try:
        _compare(results, directory, names, chosen)
        for gigabytes in filter(None, map(float, chosen.memory_gigabytes.split(","))):
            for name in names:
                if name == APART:
                    continue
                _memory(results, directory, name, chosen.processes, gigabytes)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(results.text())
    target = Path(chosen.results)
    target.mkdir(parents=True, exist_ok=True)
    (target / "RESULTS_MULTIHOST.md").write_text(results.markdown(), encoding="utf-8")
    print(f"Wrote {target / 'RESULTS_MULTIHOST.md'}")
    for failure in results.failures:
        print(failure, file=sys.stderr)
    return 1 if results.failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.multihost", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the state (default: 1)")
    parser.add_argument(
        "--memory-gigabytes",
        default="1,2",
        help="sizes of the states for memory, comma separated; 0 for none (default: 1,2)",
    )
    parser.add_argument(
        "--states", default="large,leaves", help="large, leaves (many small ones), or both (default: large,leaves)"
    )
    parser.add_argument("--processes", type=int, default=4, help="processes of the job (default: 4)")
    parser.add_argument("--leaves", type=int, default=5000, help="leaves of the state of small leaves (default: 5000)")
    parser.add_argument(
        "--rounds",
        type=report.positive,
        default=3,
        help="rounds of everything, of which the medians are shown (default: 3)",
    )
    parser.add_argument(
        "--dir", default="/dev/shm" if os.path.isdir("/dev/shm") else None, help="where to save (default: /dev/shm)"
    )
    parser.add_argument(
        "--contenders", help="comma separated; default: engine, apart, io-0, io-K, shared, gather, orbax"
    )
    parser.add_argument("--results", default=str(Path(__file__).parent), help="directory for RESULTS_MULTIHOST.md")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.states.split(",")) - {"large", "leaves"}:
        parser.error(f"--states: there is no state {min(unknown)!r}; there are large, leaves")
    if chosen.processes < 2:
        parser.error("--processes: a job of several processes has two at least")
    known = [ENGINE, APART, *(f"io-{process}" for process in range(chosen.processes)), "shared", "gather", "orbax"]
    if chosen.contenders is None:
        chosen.contenders = f"{ENGINE},{APART},io-0,io-{chosen.processes // 2},shared,gather,orbax"
    for name in chosen.contenders.split(","):
        if name not in known:
            parser.error(f"there is no contender {name!r}; there are {', '.join(known)}")
    return chosen


def _job(processes: int) -> testing.Job:
    return testing.Job(
        processes=processes,
        timeout=_TIMEOUT_SECS,
        heartbeat_timeout=100,
        cwd=Path(__file__).parents[1],
        env={"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"},
    )


def _compare(
    results: multihost_report.Results, directory: str, names: Sequence[str], chosen: argparse.Namespace
) -> None:
    with contextlib.ExitStack() as stack:
        alone, several = stack.enter_context(_job(1)), stack.enter_context(_job(chosen.processes))
        apart = _Apart([stack.enter_context(_job(1)) for _ in range(chosen.processes if APART in names else 0)])
        jobs: dict[str, _Runs] = {name: {ENGINE: alone, APART: apart}.get(name, several) for name in names}
        for name, job in jobs.items():
            _try(results, name, lambda name=name, job=job: _warm(job, name, directory))  # type: ignore[misc]
        for fill, size, kind in (("fill", chosen.gigabytes * 1e9, "large"), ("fill_leaves", chosen.leaves, "leaves")):
            if kind not in chosen.states.split(","):
                continue
            for job in (alone, several, *([apart] if APART in names and kind == "leaves" else [])):
                job.run(f"{_WORKER}:{fill}", size, chosen.processes)
            for number in range(chosen.rounds):
                # The one after the single process finds colder caches, so the order changes.
                turn = number % len(names)
                for name in [*names[turn:], *names[:turn]]:
                    job = jobs[name]
                    if kind == "leaves" and name in ("gather", "orbax"):
                        # This would take minutes a round: what a leaf costs Orbax and a collective is measured elsewhere.
                        continue
                    if kind == "large" and name == APART:
                        # Each program would have the whole state.
                        continue
                    print(f"{kind} round {number + 1}/{chosen.rounds}: {name}", file=sys.stderr, flush=True)
                    _try(
                        results,
                        name,
                        lambda name=name, job=job, kind=kind: _round(results, job, name, directory, kind),  # type: ignore[misc]
                    )
                if kind == "large":
                    results.add(kind, "snapshot", _slowest(several.run(f"{_WORKER}:snapshot")))


class _Runs(Protocol):
    """Something that runs a function on several processes: a job, or several jobs."""

    def run(self, function: str, *args: Any) -> list[Any]:
        """Runs a function on every process, and returns the results."""


class _Apart:
    """Programs that know nothing of each other. They show what the cores of this machine give to so many processes at the same time."""

    def __init__(self, programs: Sequence[testing.Job]) -> None:
        self._programs = programs

    def run(self, function: str, *args: Any) -> list[Any]:
        """Runs a function in all programs at the same time, and returns the results. Each program has paths of its own."""
        for number, program in enumerate(self._programs):
            program.start(function, *[f"{each}-{number}" if _is_path(each) else each for each in args])
        return [result.value for program in self._programs for result in program.results()]


def _is_path(value: object) -> bool:
    return isinstance(value, str) and os.path.isabs(value)


def _warm(job: _Runs, name: str, directory: str) -> None:
    job.run(f"{_WORKER}:warm", name, os.path.join(directory, f"warm-{name}"))
    _clear(directory)


def _round(results: multihost_report.Results, job: _Runs, name: str, directory: str, kind: str) -> None:
    path = os.path.join(directory, name)
    results.add(kind, name, _slowest(job.run(f"{_WORKER}:save", name, path)))
    if kind == "large":
        # As in a program that has just started. Afterwards, in "again", the system need not supply memory for the arrays.
        job.run(f"{_WORKER}:forget")
    results.add(kind, name, _slowest(job.run(f"{_WORKER}:restore", name, path)))
    if kind == "large":
        results.add(kind, name, _slowest(job.run(f"{_WORKER}:restore", name, path, "again")))
    _clear(directory)
    results.add(kind, name, _slowest(job.run(f"{_WORKER}:start", name, path + "-async")))
    _clear(directory)


def _memory(results: multihost_report.Results, directory: str, name: str, processes: int, gigabytes: float) -> None:
    print(f"memory of {gigabytes:g} GB: {name}", file=sys.stderr, flush=True)

    def measure() -> None:
        with _job(1 if name == ENGINE else processes) as job:
            _warm(job, name, directory)
            parts = job.run(f"{_WORKER}:fill", gigabytes * 1e9, processes)
            found = [{"part_mb": part / 1e6} for part in parts]
            for function in ("save", "restore", "start"):
                job.run(f"{_WORKER}:forget")
                measured = job.run(f"{_WORKER}:{function}", name, os.path.join(directory, function[0]))
                for values, more in zip(found, measured, strict=True):
                    values.update(more)
                if function == "save":
                    os.rename(os.path.join(directory, "s"), os.path.join(directory, "r"))
            _clear(directory)
        for process, values in enumerate(found):
            results.add_memory(name, gigabytes, process, values)

    _try(results, name, measure)


def _try(results: multihost_report.Results, name: str, work: Callable[[], object]) -> None:
    try:
        work()
    except (testing.JobFailed, testing.JobTimeout) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        results.failures.append(f"{name}: {lines[0] if lines else error!r}")
        print(error, file=sys.stderr)


def _slowest(found: Sequence[dict[str, float] | None]) -> dict[str, float]:
    """Returns the largest values of all processes; processor times and numbers of messages are added up."""
    measured = [values for values in found if values is not None]
    summed = ("_cpu_secs", "_messages")
    return {key: (sum if key.endswith(summed) else max)(values[key] for values in measured) for key in measured[0]}


def _clear(directory: str) -> None:
    for left in os.listdir(directory):
        report.remove(os.path.join(directory, left))


if __name__ == "__main__":
    sys.exit(main())
