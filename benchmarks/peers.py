"""jaxckpt beside other ways to save a state: ``python -m benchmarks.peers --states L,S --rounds 3``.

Every measurement is a process of its own; the rounds go through all contenders in turn, so that a busy minute of the machine hits all
of them; what is reported are medians. Writes RESULTS.md and results.png beside this file (or where ``--results`` says).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import lineup, report, states, worker

_ROOT = Path(__file__).parents[1]
_TIMEOUT_SECS = 600
_STEPS_STATES = ("L", "tiny-l")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit code: 1 if a contender failed."""
    chosen = _parse(arguments)
    if chosen.worker is not None:
        worker.run(chosen.worker, chosen.state, chosen.measure, chosen.dir[0])
        return 0
    found, missing = _present(chosen.contenders.split(",") if chosen.contenders else list(lineup.BY_NAME))
    for name in missing:
        print(f"{name}: not installed, left out", flush=True)
    names = chosen.states.split(",")
    results = report.Results(
        [(name, lineup.BY_NAME[name].version() or "", lineup.BY_NAME[name].verifies) for name in found],
        missing,
        {name: states.facts(name) for name in names},
    )
    with tempfile.TemporaryDirectory(prefix="jaxckpt-peers-") as temporary:
        for place in chosen.dir or [temporary, *(["/dev/shm"] if os.path.isdir("/dev/shm") else [])]:
            _run_rounds(results, place, names, found, chosen.rounds)
    print(results.text())
    target = Path(chosen.results)
    target.mkdir(parents=True, exist_ok=True)
    results.write_plot(target / "results.png")
    (target / "RESULTS.md").write_text(results.markdown("results.png"), encoding="utf-8")
    print(f"Wrote {target / 'RESULTS.md'} and {target / 'results.png'}")
    for failure in results.failures:
        print(failure, file=sys.stderr)
    return 1 if results.failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument(
        "--states", default="L,S", help=f"states to save, comma separated, of {', '.join(states.NAMES)} (default: L,S)"
    )
    parser.add_argument(
        "--rounds",
        type=report.positive,
        default=3,
        help="rounds of everything, of which the medians are shown (default: 3)",
    )
    parser.add_argument(
        "--dir",
        action="append",
        help="where to save; may be given several times (default: a temporary directory, and /dev/shm)",
    )
    parser.add_argument("--contenders", help=f"comma separated; default: all of {', '.join(lineup.BY_NAME)}")
    parser.add_argument(
        "--results", default=str(Path(__file__).parent), help="directory for RESULTS.md and results.png"
    )
    parser.add_argument("--worker", metavar="NAME", help="measure one contender in this process and print JSON")
    parser.add_argument("--state", default="L", help="with --worker: the state")
    parser.add_argument("--measure", default="save", choices=worker.MEASURES, help="with --worker: what to measure")
    chosen = parser.parse_args(arguments)
    for name in chosen.states.split(","):
        if name not in states.NAMES:
            parser.error(f"there is no state {name!r}; there are {', '.join(states.NAMES)}")
    for name in (chosen.contenders or "raw").split(","):
        if name not in lineup.BY_NAME:
            parser.error(f"there is no contender {name!r}; there are {', '.join(lineup.BY_NAME)}")
    if chosen.worker is not None and not chosen.dir:
        parser.error("--worker needs --dir")
    return chosen


def _present(names: Sequence[str]) -> tuple[list[str], list[str]]:
    found = [name for name in names if lineup.BY_NAME[name].version() is not None]
    return found, [name for name in names if name not in found]


def _run_rounds(results: report.Results, place: str, names: Sequence[str], found: Sequence[str], rounds: int) -> None:
    directory = tempfile.mkdtemp(prefix="jaxckpt-peers-", dir=place)
    disk = report.filesystem(directory)
    try:
        for state in names:
            for number in range(rounds):
                for contender in found:
                    for measure in _measures(contender, state, number):
                        print(
                            f"{disk} {state} round {number + 1}/{rounds}: {contender} {measure}",
                            file=sys.stderr,
                            flush=True,
                        )
                        _measure(results, directory, disk, state, contender, measure)
                    for left in os.listdir(directory):
                        report.remove(os.path.join(directory, left))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _measures(name: str, state: str, number: int) -> list[str]:
    contender = lineup.BY_NAME[name]
    measures = ["save"]
    if contender.restores:
        measures.append("restore")
    # Hundreds of steps at once are enough.
    if contender.asynchronous and state in _STEPS_STATES and number == 0:
        measures.append("steps")
    return measures


def _measure(results: report.Results, directory: str, disk: str, state: str, contender: str, measure: str) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.peers",
        "--worker",
        contender,
        "--state",
        state,
        "--measure",
        measure,
        "--dir",
        directory,
    ]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=_ROOT, env=environment, timeout=_TIMEOUT_SECS, check=False
        )
    except subprocess.TimeoutExpired:
        results.failures.append(f"{contender}: {measure} of {state} took longer than {_TIMEOUT_SECS} s")
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        results.failures.append(f"{contender}: {measure} of {state} failed: {last}")
        return
    results.add(disk, state, contender, json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
