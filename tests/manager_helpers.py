"""What the tests of managers share: checkpoints to save, a clock to turn, and views of a directory."""

import functools
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxckpt
from jaxckpt.directory import latest, registration, series

HOUR = 3600.0
ASYNC = functools.partial(jaxckpt.CheckpointOptions, enable_async=True)


def make_checkpoint(value: float = 0.0) -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(value=np.full(4, value), step=0)


def make_manager(directory: Path, max_to_keep: int | None = 3, **arguments: Any) -> jaxckpt.CheckpointManager:
    checkpoint = arguments.pop("checkpoint", None)
    return jaxckpt.CheckpointManager(checkpoint or make_checkpoint(), directory, max_to_keep, **arguments)


def names(paths: list[str]) -> list[str]:
    return [os.path.basename(path) for path in paths]


def names_in(directory: Path) -> list[str]:
    """Everything in the directory but the state file, by number where there is one."""
    found = [name for name in os.listdir(directory) if name != "checkpoint"]
    return sorted(found, key=lambda name: (len(name), name))


def restored(path: str | None) -> float:
    """The value that a checkpoint made by `make_checkpoint` holds."""
    checkpoint = make_checkpoint(-1.0)
    checkpoint.restore(path).assert_consumed()
    return float(checkpoint.value[0])


def state_of(directory: Path) -> latest.CheckpointState:
    state = jaxckpt.get_checkpoint_state(directory)
    assert state is not None
    return state


def damage(path: str) -> None:
    """Flips one bit in every file that holds data."""
    for folder, _, files in os.walk(path):
        for name in files:
            file = Path(folder, name)
            data = bytearray(file.read_bytes())
            if "d" in Path(folder).parts[-2:] and data:
                data[len(data) // 2] ^= 1
                file.write_bytes(data)


def run_python(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], text=True, capture_output=True, timeout=120
    )


class Clock:
    """Stands for the module `time` where the manager and the state file ask for the time of day."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: float, *, goes_on: bool = False) -> None:
        self.now = now
        self._goes_on = goes_on
        for module in (series, registration):
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return self.now + (time.time() if self._goes_on else 0.0)
