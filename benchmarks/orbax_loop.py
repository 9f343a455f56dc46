"""A loop with an ocp.CheckpointManager, with Orbax's own handler and with jaxckpt's: ``python -m benchmarks.orbax_loop``.

Each round saves and restores one step with every handler, in turn. The figures are medians: how long ``save`` keeps the caller, how long
the save takes until it is committed, how long the restore takes into the same targets, the processor time of all threads for both
together, and the size on disk. The last column says whether a flipped bit in the largest data file is an error.
"""

import argparse
import gc
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import report, states

# Leaves, and float32 elements of each.
_CASES = ((20, 1 << 20), (1_000, 1 << 10), (3_000, 8))


class Turn(NamedTuple):
    """The figures of one save and restore; times in seconds."""

    blocked: float
    save: float
    restore: float
    cpu: float
    nbytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.orbax_loop", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=report.positive, default=5, help="measured turns of each (default: 5)")
    parser.add_argument("--dir", help="where to save (default: a temporary directory)")
    parser.add_argument("--cases", help="leaves x elements, comma separated, such as 10x8,1000x8")
    chosen = parser.parse_args(arguments)
    cases: Sequence[tuple[int, int]] = _CASES
    if chosen.cases:
        cases = [
            (int(count), int(size)) for count, _, size in (each.partition("x") for each in chosen.cases.split(","))
        ]
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = [["", "handler", "blocked ms", "save ms", "restore ms", "CPU ms", "MB", "detects damage"]]
    with tempfile.TemporaryDirectory(prefix="jaxckpt-orbax-loop-", dir=chosen.dir) as directory:
        for count, size in cases:
            rows += _case(states.leaves(count, size), f"{count:,} leaves of {4 * size:,} B", directory, chosen.rounds)
    print(report.table(rows))
    return 0


def _case(state: states.State, what: str, directory: str, rounds: int) -> list[list[str]]:
    import orbax.checkpoint as ocp

    import jaxckpt

    handlers: dict[str, Callable[[], Any]] = {
        "Orbax": lambda: ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True),
        "jaxckpt": jaxckpt.orbax.PyTreeHandler,
    }
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    managers = {
        name: ocp.CheckpointManager(
            os.path.join(directory, name), item_names=("state",), item_handlers={"state": make()}, options=options
        )
        for name, make in handlers.items()
    }
    turns: dict[str, list[Turn]] = {name: [] for name in managers}
    for step in range(rounds + 1):
        # The second one finds a warmer machine, so they change places.
        for name in sorted(managers, reverse=bool(step % 2)):
            turns[name].append(_turn(managers[name], step, state))
    rows = []
    for name, manager in managers.items():
        # The first turn pays for imports and thread pools.
        found = Turn(*(median(values) for values in zip(*turns[name][1:], strict=True)))
        detects = _detects_damage(manager, state)
        times = [f"{seconds * 1e3:.1f}" for seconds in found[:4]]
        rows.append([what, name, *times, f"{found.nbytes / 1e6:.1f}", "yes" if detects else "no"])
        manager.close()
        shutil.rmtree(os.path.join(directory, name))
    return rows


def _turn(manager: Any, step: int, state: states.State) -> Turn:
    import orbax.checkpoint as ocp

    gc.collect()
    cpu, began = time.process_time(), time.perf_counter()
    manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)))
    blocked = time.perf_counter() - began
    manager.wait_until_finished()
    saved = time.perf_counter() - began
    restored = _restore(manager, step, state)
    done = time.perf_counter() - began
    cpu = time.process_time() - cpu
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)
    files = [each for each in Path(str(manager.directory), str(step)).rglob("*") if each.is_file()]
    return Turn(blocked, saved, done - saved, cpu, sum(each.stat().st_size for each in files))


def _restore(manager: Any, step: int, state: states.State) -> Any:
    import orbax.checkpoint as ocp

    arguments = ocp.checkpoint_utils.construct_restore_args(state)
    restored = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(state, restore_args=arguments))
    )
    return jax.block_until_ready(restored.state)


def _detects_damage(manager: Any, state: states.State) -> bool:
    """Flips a bit in the middle of the largest data file, and tells whether the restore raises an error."""
    # When a read of Orbax fails, its other reads find their event loop closed, and Python would print that of each.
    sys.unraisablehook = lambda unraisable: None
    step = manager.latest_step()
    largest = max(Path(str(manager.directory), str(step)).rglob("d/*"), key=lambda each: each.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    try:
        _restore(manager, step, state)
    except Exception:
        return True
    return False


if __name__ == "__main__":
    raise SystemExit(main())
