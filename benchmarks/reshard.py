"""Bytes that a job moves where shardings differ and replicas exist: ``python -m benchmarks.reshard``.

Saves and restores under other shardings, beside plain Orbax (v0 and v1), in one run. Bytes are exact: the kernel counts what each process
reads from files and writes to them (/proc/<pid>/io). Seconds depend on the machine. Writes RESULTS_RESHARD.md and reshard.png beside this
file (or where ``--results`` says).
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, reshard_plan, reshard_report
from benchmarks.reshard_report import Case
from jaxckpt import testing

_WORKER = "benchmarks.reshard_worker"
_NAMES = ("jaxckpt", "orbax-v0", "orbax-v1")


def cases(mib: int) -> list[Case]:
    """Returns what is measured.

    Args:
      mib: size of the array in MiB.
    """
    three = max(1, mib // 4)
    once, io = {"once": True}, {"io": 0}
    restores: list[Any] = [
        ("saved by rows, restored by columns, 1 process × 8 devices", 1, 8, "rows", "columns", "job", 1.05, {}),
        ("saved by rows, restored by columns, 4 × 2", 4, 2, "rows", "columns", "process", 1.25, {}),
        ("saved by columns, restored by rows, 4 × 2", 4, 2, "columns", "rows", "process", 1.25, {}),
        ("saved by rows, restored by rows, 4 × 2", 4, 2, "rows", "rows", "job", 1.05, {}),
        ("restored replicated, 4 × 2, each process reads", 4, 2, "rows", "replicated", "job", None, {}),
        ("restored replicated, 4 × 2, read once", 4, 2, "rows", "replicated", "job", 1.05, once),
        ("restored by columns, 4 × 2, read once", 4, 2, "rows", "columns", "job", 1.05, once),
        ("IO process, restored by columns, 4 × 2", 4, 2, "rows", "columns", "job", 1.05, io),
        ("IO process, restored replicated, 4 × 2", 4, 2, "rows", "replicated", "job", 1.05, io),
    ]
    return [
        *(
            Case(name, processes, devices, saved, restored, "read", by, goal, mib if by == "job" else mib / 4, options)
            for name, processes, devices, saved, restored, by, goal, options in restores
        ),
        Case(f"3 × {three} MiB replicated, 4 × 2", 4, 2, "replicated", "", "written", "process", 1.1, 3 * three / 4),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit code: 1 if jaxckpt misses a goal."""
    chosen = _parse(arguments)
    results = reshard_report.Results(chosen.mebibytes)
    directory = tempfile.mkdtemp(prefix="jaxckpt-reshard-", dir=chosen.dir)
    results.disk = report.filesystem(directory)
    try:
        for shape in {(case.processes, case.devices): None for case in cases(chosen.mebibytes)}:
            _measure(results, directory, *shape, chosen)
        results.plans = reshard_plan.all_figures()
        if chosen.scale:
            _scale(results, directory, chosen)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(results.text())
    target = Path(chosen.results)
    target.mkdir(parents=True, exist_ok=True)
    results.write_plot(target / "reshard.png")
    (target / "RESULTS_RESHARD.md").write_text(results.markdown("reshard.png"), encoding="utf-8")
    print(f"Wrote {target / 'RESULTS_RESHARD.md'} and {target / 'reshard.png'}")
    for miss in results.misses():
        print(f"missed: {miss}", file=sys.stderr)
    return 1 if results.misses() else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reshard", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--mebibytes", type=report.positive, default=256, help="size of the array (default: 256)")
    parser.add_argument("--contenders", default=",".join(_NAMES), help=f"comma separated (default: {','.join(_NAMES)})")
    parser.add_argument(
        "--rounds", type=report.positive, default=1, help="rounds, of which medians are shown (default: 1)"
    )
    parser.add_argument(
        "--scale", action="store_true", help="measure 32 processes, 100,000 leaves and one large array too"
    )
    parser.add_argument("--gigabytes", type=report.positive, default=4, help="size of the one large array (default: 4)")
    parser.add_argument("--dir", help="where to save (default: a temporary directory)")
    parser.add_argument("--results", default=str(Path(__file__).parent), help="directory for the results")
    chosen = parser.parse_args(arguments)
    chosen.contenders = chosen.contenders.split(",")
    for name in chosen.contenders:
        if name not in _NAMES:
            parser.error(f"there is no contender {name!r}; there are {', '.join(_NAMES)}")
    return chosen


def _shapes(mib: int, count: int) -> dict[str, tuple[int, int]]:
    columns = 4096 if mib >= 16 else 512
    return {f"array{number}": (mib * 2**20 // 4 // columns, columns) for number in range(count)}


def _measure(
    results: reshard_report.Results, directory: str, processes: int, devices: int, chosen: argparse.Namespace
) -> None:
    """Measures the cases of jobs of one form, with all contenders in turn."""
    wanted = [case for case in cases(chosen.mebibytes) if (case.processes, case.devices) == (processes, devices)]
    with testing.Job(processes=processes, devices=devices, timeout=600) as job:
        for _ in range(chosen.rounds):
            # Modules are imported, and threads started, before anything is counted.
            for name in chosen.contenders:
                _run(job, name, os.path.join(directory, "warm"), wanted[0], _shapes(1, 1))
            for case in wanted:
                for name in chosen.contenders:
                    if case.options and name != "jaxckpt":
                        continue
                    size, count = (chosen.mebibytes, 1) if case.restored_as else (max(1, chosen.mebibytes // 4), 3)
                    results.add(case, name, _run(job, name, os.path.join(directory, "c"), case, _shapes(size, count)))


def _run(
    job: testing.Job, name: str, path: str, case: Case, shapes: dict[str, tuple[int, int]]
) -> list[dict[str, float]]:
    saved = job.run(f"{_WORKER}:save", name, path, case.saved_as, shapes, case.options)
    try:
        if not case.restored_as:
            return saved
        return job.run(f"{_WORKER}:restore", name, path, case.restored_as, shapes, case.options)
    finally:
        shutil.rmtree(path)


def _scale(results: reshard_report.Results, directory: str, chosen: argparse.Namespace) -> None:
    """Measures what is large in one way or another."""
    path = os.path.join(directory, "s")

    def job(what: str, processes: int, devices: int, calls: Sequence[tuple[str, Sequence[Any]]]) -> None:
        with testing.Job(processes=processes, devices=devices, timeout=600) as each:
            for name, given in calls:
                found = each.run(f"{_WORKER}:{name}", *given)
                if name == "many_leaves":
                    results.add_scale(f"{what}: save", [saved for saved, _ in found])
                    results.add_scale(f"{what}: restore", [restored for _, restored in found])
                else:
                    results.add_scale(f"{what}: {name}", found)
        shutil.rmtree(path)

    job("32 processes, 200 arrays of 32 × 64 floats, first calls", 32, 1, [("many_leaves", (path, 200, 64))])
    job("100,000 arrays of 8 floats, 1 process", 1, 1, [("many_leaves", (path, 100_000, 8))])
    large = _shapes(chosen.gigabytes * 1024, 1)
    job(
        f"one array of {chosen.gigabytes} GiB, 1 process × 8 devices, rows to columns",
        1,
        8,
        [("save", ("jaxckpt", path, "rows", large, {})), ("restore", ("jaxckpt", path, "columns", large, {}))],
    )


if __name__ == "__main__":
    sys.exit(main())
