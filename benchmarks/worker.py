"""One measurement, in a process of its own, so that memory is honest and no library disturbs another. Prints JSON.

`save` measures a synchronous and, where there is one, an asynchronous save; `restore` reads what `save` left; `steps` runs training
steps with and without a save going on.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import contenders, lineup, states
from benchmarks.steps import Step

MEASURES = ("save", "restore", "steps")
_STEPS_AT_LEAST = 100
_SAVES_AT_MOST = 8


def run(name: str, state_name: str, measure: str, directory: str) -> None:
    """Measures and prints the result as a line of JSON.

    Args:
      name: the contender.
      state_name: of `benchmarks.states.NAMES`.
      measure: one of `MEASURES`.
      directory: where the checkpoints are; `restore` expects what `save` wrote.
    """
    state = states.make(state_name)
    contender = lineup.BY_NAME[name](state)
    path = os.path.join(directory, f"{name}-{state_name}")
    result = {"save": _save, "restore": _restore, "steps": _steps}[measure](contender, path)
    print(json.dumps(result), flush=True)


def _save(contender: contenders.Contender, path: str) -> dict[str, float]:
    _warm(contender, path)
    _remove(path)
    result = measured("save", lambda: contender.save(path))
    result["disk_mb"] = _size(path) / 1e6
    if contender.asynchronous:
        other = path + "-async"
        os.sync()
        _reset_peak()
        begun, started = _memory("VmRSS"), time.perf_counter()
        wait = contender.start(other)
        result["blocked_secs"] = time.perf_counter() - started
        wait()
        result["async_secs"] = time.perf_counter() - started
        result["async_peak_mb"] = _memory("VmHWM") - begun
        _remove(other)
    return result


def _restore(contender: contenders.Contender, path: str) -> dict[str, float]:
    expected = [states.plain(leaf) for leaf in jax.tree.leaves(contender.state)]
    small, small_path = _small(contender, path)
    _remove(small_path)
    small.save(small_path)
    small.restoring(small_path)()
    _remove(small_path)
    found: list[Any] = []
    restore = contender.restoring(path)
    result = measured("restore", lambda: found.append(restore()))
    if not all(np.array_equal(states.plain(one), other) for one, other in zip(found[0], expected, strict=True)):
        raise AssertionError(f"{contender.name} restored other values than were saved")
    return result


def _steps(contender: contenders.Contender, path: str) -> dict[str, float]:
    """Times a training-like step on its own, then while saves of the state are going on."""
    step = Step()
    _warm(contender, path)
    alone = [step() for _ in range(_STEPS_AT_LEAST)]
    during: list[float] = []
    saves = 0
    saving = blocked = 0.0
    while saves < _SAVES_AT_MOST and (len(during) < _STEPS_AT_LEAST or saves < 2):
        other = f"{path}-steps"
        started = time.perf_counter()
        wait = contender.start(other)
        blocked += time.perf_counter() - started
        done = threading.Thread(target=wait)
        done.start()
        while done.is_alive():
            during.append(step())
        saving += time.perf_counter() - started
        saves += 1
        _remove(other)
        alone += [step() for _ in range(_STEPS_AT_LEAST // 2)]
    lost = (blocked + sum(during) - float(np.median(alone)) * len(during)) / saves
    # The state is so small that it was saved before a step could begin.
    if not during:
        during = alone
    percentiles = {
        f"{name}_{label}_ms": float(np.percentile(times, q)) * 1e3
        for label, times in (("alone", alone), ("saving", during))
        for name, q in (("p50", 50), ("p99", 99))
    }
    return {**percentiles, "steps": float(len(during)), "saving_secs": saving / saves, "lost_ms": lost * 1e3}


def _small(contender: contenders.Contender, path: str) -> tuple[contenders.Contender, str]:
    return type(contender)(states.make("tiny-l")), path + "-warm"


def _warm(contender: contenders.Contender, path: str) -> None:
    """A small save of each kind: imports, event loops and thread pools are paid once a program, not once a save."""
    small, small_path = _small(contender, path)
    _remove(small_path)
    small.save(small_path)
    _remove(small_path)
    if contender.asynchronous:
        small.start(small_path)()
        _remove(small_path)


def measured(what: str, work: Callable[[], object]) -> dict[str, float]:
    os.sync()
    _reset_peak()
    begun, started = _memory("VmRSS"), time.perf_counter()
    work()
    elapsed = time.perf_counter() - started
    return {f"{what}_secs": elapsed, f"{what}_peak_mb": _memory("VmHWM") - begun}


def _reset_peak() -> None:
    """Makes the kernel forget how much memory this process has had."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        # This is not Linux, or not allowed: the peak is then that of the whole process.
        pass


def _memory(field: str) -> float:
    """Returns a field of the process's status in MB; nan where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return float("nan")


def _size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)
