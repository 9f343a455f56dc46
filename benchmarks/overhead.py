"""What jaxckpt costs over plain Orbax, beside it in one run: ``python -m benchmarks.overhead``.

Three limits, each measured in interleaved rounds, medians compared; the exit code is 0 when all hold:

* an asynchronous save blocks its caller at most 1 ms + 20 µs a leaf longer than plain Orbax does for the same tree;
* restore takes at most 5 % longer than plain Orbax, for the same checkpoint and the same targets;
* ``import jaxckpt`` takes at most 50 ms over ``import jax``; what the first use of its main names adds is shown beside it.
"""

import argparse
import gc
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax

from benchmarks import report, states

_ROOT = Path(__file__).parents[1]
_BASE_SECS, _LEAF_SECS = 1e-3, 20e-6
_RESTORE_SLACK = 1.05
_IMPORT_SECS = 50e-3
# Leaves, and float32 elements of each: from few large ones to many tiny ones.
_CASES = ((10, 8), (10, 1 << 20), (100, 1 << 16), (1_000, 1 << 10), (1_000, 8), (3_000, 8))
_IMPORTS = """
import time, jax
started = time.perf_counter()
import jaxckpt
imported = time.perf_counter()
jaxckpt.Checkpoint, jaxckpt.CheckpointOptions, jaxckpt.CheckpointManager
print(imported - started, time.perf_counter() - started)
"""


class Check(NamedTuple):
    """One line of the table; times in seconds."""

    what: str
    ours: float
    plain: float | None
    limit: float | None

    @property
    def holds(self) -> bool:
        """Whether it is within the limit, if it has one."""
        return self.limit is None or self.ours <= self.limit


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=report.positive, default=7, help="measurements of each kind; medians are compared (default: 7)"
    )
    parser.add_argument("--dir", help="where to save (default: a temporary directory)")
    parser.add_argument("--cases", help="leaves x elements, comma separated, such as 10x8,1000x8")
    chosen = parser.parse_args(arguments)
    cases: Sequence[tuple[int, int]] = _CASES
    if chosen.cases:
        cases = tuple(
            (int(count), int(size)) for count, _, size in (case.partition("x") for case in chosen.cases.split(","))
        )
    logging.getLogger("absl").setLevel(logging.ERROR)
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="jaxckpt-overhead-", dir=chosen.dir) as directory:
        for count, size in cases:
            state = states.leaves(count, size)
            what = f"{count:,} leaves of {_bytes(4 * size)}"
            checks.append(_blocked(state, count, directory, chosen.rounds, what))
            checks.append(_restored(state, directory, chosen.rounds, what))
    checks.sort(key=lambda check: check.what.split(",")[0])
    checks += _imports(chosen.rounds)
    print(report.table(_rows(checks)))
    failed = sum(not check.holds for check in checks)
    limits = sum(check.limit is not None for check in checks)
    print(f"\n{failed} of {limits} over the limit" if failed else f"\nall {limits} within their limits")
    return 1 if failed else 0


def _rows(checks: Sequence[Check]) -> list[list[str]]:
    rows = [["", "jaxckpt ms", "plain ms", "difference ms", "limit ms", ""]]
    for check in checks:
        plain = "–" if check.plain is None else f"{check.plain * 1e3:.2f}"
        difference = "–" if check.plain is None else f"{(check.ours - check.plain) * 1e3:+.2f}"
        limit, verdict = "–", ""
        if check.limit is not None:
            limit, verdict = f"{check.limit * 1e3:.2f}", "ok" if check.holds else "OVER"
        rows.append([check.what, f"{check.ours * 1e3:.2f}", plain, difference, limit, verdict])
    return rows


def _bytes(count: int) -> str:
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:g} {unit}"
    return f"{count} B"


def _interleaved(rounds: int, ours: Callable[[], float], plain: Callable[[], float]) -> tuple[float, float]:
    """Returns the medians of both, each measured `rounds` times in turn, after one turn that does not count."""
    ours(), plain()
    pairs = []
    for number in range(rounds):
        # The second one finds a warmer machine, so they change places.
        first, second = (ours, plain) if number % 2 else (plain, ours)
        one, other = first(), second()
        pairs.append((one, other) if number % 2 else (other, one))
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


def _timed(work: Callable[[], Any]) -> float:
    # The garbage of one contender must not count as a cost of the next.
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _blocked(state: states.State, count: int, directory: str, rounds: int, what: str) -> Check:
    """Time on the caller's thread of an asynchronous save."""
    import orbax.checkpoint as ocp

    import jaxckpt

    checkpoint = jaxckpt.Checkpoint(**state)
    options = jaxckpt.CheckpointOptions(enable_async=True)
    plain = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
    path = os.path.join(directory, "blocked")

    def ours() -> float:
        elapsed = _timed(lambda: checkpoint.write(path, options))
        checkpoint.sync()
        shutil.rmtree(path)
        return elapsed

    def theirs() -> float:
        elapsed = _timed(lambda: plain.save(path, args=ocp.args.PyTreeSave(state)))
        plain.wait_until_finished()
        shutil.rmtree(path)
        return elapsed

    mine, other = _interleaved(rounds, ours, theirs)
    plain.close()
    return Check(f"async save blocks, {what}", mine, other, other + _BASE_SECS + _LEAF_SECS * count)


def _restored(state: states.State, directory: str, rounds: int, what: str) -> Check:
    """Time of a restore of the same checkpoint into the same targets."""
    import orbax.checkpoint as ocp

    import jaxckpt

    path = jaxckpt.Checkpoint(**state).write(os.path.join(directory, "restored"))
    targets = states.targets(state)
    plain = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
    restore_args = ocp.checkpoint_utils.construct_restore_args(targets)

    def ours() -> float:
        checkpoint = jaxckpt.Checkpoint(**targets)

        def restore() -> None:
            checkpoint.read(path).assert_existing_objects_matched()
            jax.block_until_ready(checkpoint.leaves)

        return _timed(restore)

    def theirs() -> float:
        args = ocp.args.PyTreeRestore(item=targets, restore_args=restore_args)
        return _timed(lambda: jax.block_until_ready(plain.restore(path, args=args)["leaves"]))

    mine, other = _interleaved(rounds, ours, theirs)
    plain.close()
    shutil.rmtree(path)
    return Check(f"restore, {what}", mine, other, other * _RESTORE_SLACK)


def _imports(rounds: int) -> list[Check]:
    """What imports cost a program that has imported JAX: the package alone, and with the names that every program uses."""
    alone, used = [], []
    for _ in range(rounds):
        command = [sys.executable, "-W", "ignore", "-c", _IMPORTS]
        done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, check=True)
        package, names = map(float, done.stdout.split())
        alone.append(package)
        used.append(names)
    return [
        Check("import jaxckpt, over import jax", median(alone), None, _IMPORT_SECS),
        Check("the same, and the first use of its main names", median(used), None, None),
    ]


if __name__ == "__main__":
    sys.exit(main())
