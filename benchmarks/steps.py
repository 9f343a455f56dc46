"""Training time that asynchronous saves cost: ``python -m benchmarks.steps``.

One process, held to two cores, trains while each contender in turn saves the state in the background. **lost** is what one save costs the
training: how long the call kept its caller, and for each step until the save was over, what it took more than the median step of the
seconds around the save. The row ``nothing`` shows the same sum over as many seconds without a save: what the rest of the machine adds.
The contender ``jaxckpt-nice-0`` is jaxckpt whose threads have the program's priority; any number of steps of nice can be given.
"""

import argparse
import contextlib
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import contenders, lineup, report, states
from jaxckpt._lib import giving_way

_NOTHING = "nothing"
_NICE = re.compile(r"jaxckpt-nice-(\d+)")
_ALONE_STEPS = 40
# After files have been removed, the file system goes on working for a while.
_PAUSE_SECS = 0.5


class Step:
    """A jitted update of a small network that keeps the cores busy for some ten milliseconds, with donated parameters."""

    def __init__(self, width: int = 512, batch: int = 512) -> None:
        """Compiles the step.

        Args:
          width: width of the layers.
          batch: number of rows of the input.
        """

        def loss(params: Any, inputs: Any) -> Any:
            for weights in params:
                inputs = jnp.tanh(inputs @ weights)
            return jnp.mean(inputs**2)

        def update(params: Any, inputs: Any) -> Any:
            return jax.tree.map(lambda value, slope: value - 0.1 * slope, params, jax.grad(loss)(params, inputs))

        self._update = jax.jit(update, donate_argnums=0)
        key = jax.random.key(0)
        self._params = [jax.random.normal(key, (width, width)) / width**0.5 for _ in range(3)]
        self._inputs = jax.random.normal(key, (batch, width))
        for _ in range(10):
            self()

    def __call__(self) -> float:
        """Runs one step, and returns how many seconds it took."""
        started = time.perf_counter()
        self._params = jax.block_until_ready(self._update(self._params, self._inputs))
        return time.perf_counter() - started


class Turn(NamedTuple):
    """The figures of one save beside training steps, in seconds.

    Attributes:
      lost: what the save cost the training.
      blocked: how long the call kept its caller.
      took: from the call to the end of the save.
      alone: the median step around the save.
      during: the median step while the save was going on.
      slowest: the slowest of those steps.
      idle: how long a save took while nothing else ran.
    """

    lost: float
    blocked: float
    took: float
    alone: float
    during: float
    slowest: float
    idle: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the tables; returns the exit code."""
    chosen = _parse(arguments)
    if hasattr(os, "sched_setaffinity"):
        # Before JAX makes its threads: they are as many as the cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.cores])
    print(*(f"* {fact}" for fact in report.machine()), sep="\n")
    state = states.make(chosen.state)
    taking_part = [(name, _kind(name)(state)) for name in chosen.contenders.split(",")]
    step = Step()
    places = chosen.dir or [tempfile.gettempdir(), *(["/dev/shm"] if os.path.isdir("/dev/shm") else [])]
    for place in places:
        with tempfile.TemporaryDirectory(prefix="jaxckpt-steps-", dir=place) as directory:
            rows = _rounds(step, taking_part, directory, chosen.rounds)
            print(f"\n## One save of {chosen.state} on {report.filesystem(directory)}\n")
            print("\n".join(report.markdown_table(rows)), flush=True)
    return 0


class _AnyNice(contenders.Jaxckpt):
    """jaxckpt, with another number of steps of nice by which its threads give way."""

    steps = 0

    def start(self, path: str) -> contenders.Wait:
        usual, giving_way.STEPS = giving_way.STEPS, self.steps
        wait = super().start(path)

        def until_over() -> None:
            wait()
            giving_way.STEPS = usual

        return until_over


def _kind(name: str) -> type[contenders.Contender]:
    """Returns the class of a contender. Raises KeyError if there is no such one."""
    found = _NICE.fullmatch(name)
    return lineup.BY_NAME[name] if found is None else type(name, (_AnyNice,), {"steps": int(found[1])})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=(__doc__ or "").splitlines()[0])
    can = [name for name, contender in lineup.BY_NAME.items() if contender.asynchronous]
    parser.add_argument("--state", default="L", choices=states.NAMES, help="state to save (default: L)")
    parser.add_argument(
        "--contenders", default="raw,jaxckpt", help=f"comma separated, of {', '.join(can)} (default: raw,jaxckpt)"
    )
    parser.add_argument(
        "--rounds", type=report.positive, default=5, help="saves of each, of which the medians are shown (default: 5)"
    )
    parser.add_argument("--cores", type=report.positive, default=2, help="cores to use, on Linux (default: 2)")
    parser.add_argument(
        "--dir",
        action="append",
        help="where to save; may be given several times (default: a temporary directory, and /dev/shm)",
    )
    chosen = parser.parse_args(arguments)
    for name in chosen.contenders.split(","):
        if name not in can and _NICE.fullmatch(name) is None:
            parser.error(f"there is no asynchronous contender {name!r}; there are {', '.join(can)}")
        if _kind(name).version() is None:
            parser.error(f"{name} is not installed")
    return chosen


def _rounds(
    step: Step, taking_part: Sequence[tuple[str, contenders.Contender]], directory: str, rounds: int
) -> list[list[str]]:
    turns: dict[str, list[Turn]] = {name: [] for name, _ in taking_part}
    turns[_NOTHING] = []
    path = os.path.join(directory, "save")
    for name, contender in taking_part:
        # Imports, event loops and thread pools are paid once a program, not once a save.
        small = type(contender)(states.make("tiny-l"))
        small.start(path)()
        report.remove(path)
        del small, name
    for number in range(rounds):
        for name, contender in taking_part:
            load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
            turns[name].append(turn := _turn(step, contender, path))
            print(
                f"round {number + 1}/{rounds}: {name} lost {turn.lost * 1e3:.0f} ms{load}", file=sys.stderr, flush=True
            )
        took = median(turn.took for turns_ in turns.values() for turn in turns_)
        turns[_NOTHING].append(_without_save(step, took))
    return _table(turns)


def _turn(step: Step, contender: contenders.Contender, path: str) -> Turn:
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, path)
        started = time.perf_counter()
        contender.start(path)()
        idle = time.perf_counter() - started
    before = [step() for _ in range(_ALONE_STEPS)]
    errors: list[BaseException] = []

    def run(wait: contenders.Wait) -> None:
        try:
            wait()
        except BaseException as error:
            errors.append(error)

    started = time.perf_counter()
    wait = contender.start(path)
    blocked = time.perf_counter() - started
    waiting = threading.Thread(target=run, args=(wait,))
    waiting.start()
    during = _steps_while(step, waiting.is_alive)
    took = time.perf_counter() - started
    waiting.join()
    _remove(path)
    if errors:
        raise errors[0]
    return _turn_of(blocked, took, during, before + [step() for _ in range(_ALONE_STEPS)], idle)


def _without_save(step: Step, seconds: float) -> Turn:
    before = [step() for _ in range(_ALONE_STEPS)]
    started = time.perf_counter()
    during = _steps_while(step, lambda: time.perf_counter() - started < seconds)
    took = time.perf_counter() - started
    return _turn_of(0.0, took, during, before + [step() for _ in range(_ALONE_STEPS)], 0.0)


def _steps_while(step: Step, going_on: Any) -> list[float]:
    times = []
    while going_on():
        times.append(step())
    return times


def _turn_of(blocked: float, took: float, during: list[float], around: list[float], idle: float) -> Turn:
    alone = median(around)
    lost = blocked + sum(during) - alone * len(during)
    # A small state may be saved before a step can begin.
    during = during or [alone]
    return Turn(lost, blocked, took, alone, median(during), max(during), idle)


def _remove(path: str) -> None:
    report.remove(path)
    time.sleep(_PAUSE_SECS)


def _table(turns: dict[str, list[Turn]]) -> list[list[str]]:
    heading = ["", "lost ms", "× raw", "least – most", "blocked ms", "step alone ms", "step saving ms", "slowest ms"]
    rows = [[*heading, "save s while training", "save s alone"]]
    middle = {name: Turn(*map(float, np.median(np.array(all_), axis=0))) for name, all_ in turns.items()}
    raw = middle.get("raw")
    for name, turn in middle.items():
        lost = [each.lost * 1e3 for each in turns[name]]
        rows.append(
            [
                name,
                f"{turn.lost * 1e3:.0f}",
                "–" if raw is None or name == _NOTHING else f"{turn.lost / raw.lost:.2f}",
                f"{min(lost):.0f} – {max(lost):.0f}",
                "–" if name in ("raw", _NOTHING) else f"{turn.blocked * 1e3:.1f}",
                f"{turn.alone * 1e3:.1f}",
                f"{turn.during * 1e3:.1f}",
                f"{turn.slowest * 1e3:.0f}",
                f"{turn.took:.2f}",
                "–" if name == _NOTHING else f"{turn.idle:.2f}",
            ]
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
