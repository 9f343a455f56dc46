"""``jaxckpt list DIR``: shows the checkpoints of a directory, and leftovers of killed saves."""

import argparse
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxckpt import storage
from jaxckpt._lib import numbering
from jaxckpt._lib.output import (
    count,
    human_age,
    human_bytes,
    print_error,
    print_json,
    print_line,
    sum_bytes,
    table,
)
from jaxckpt._lib.progress import Progress
from jaxckpt.cli.resolve import existing_directory, size_of
from jaxckpt.directory import on_disk
from jaxckpt.directory.latest import CheckpointState, get_checkpoint_state, latest_checkpoint
from jaxckpt.errors import CheckpointError
from jaxckpt.storage import foreign, stores

HELP = "show the checkpoints of a directory: sizes, ages, the latest, leftovers"
DESCRIPTION = (
    "Shows the committed checkpoints of a directory, oldest first, which of them the state file lists, and which one is "
    "the latest. Also shows temporary directories of running and of killed saves (`jaxckpt clean` removes the latter). "
    "Exits with 1 if there is no checkpoint."
)


@dataclass(frozen=True)
class Listed:
    """A checkpoint of the directory.

    Attributes:
      path: path of the checkpoint.
      bytes: total size of its files; None in a bucket, where it is not known.
      saved: when the checkpoint was committed, in seconds since the epoch.
      age_secs: seconds since then.
      registered: whether the state file lists the checkpoint.
      latest: whether `jaxckpt.latest_checkpoint` returns the checkpoint.
      step: the training step; None if the checkpoint does not know it.
      metrics: its metrics, by name; None if it has none, or if they cannot be read.
    """

    path: str
    bytes: int | None
    saved: float
    age_secs: float
    registered: bool
    latest: bool
    step: int | None
    metrics: dict[str, Any] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("directory", metavar="DIR", help="a directory with checkpoints")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    directory = existing_directory(arguments.directory)
    if storage.is_checkpoint(directory):
        above = os.path.dirname(stores.absolute(directory))
        raise ValueError(
            f"{directory} is a checkpoint, not a directory of checkpoints. `jaxckpt inspect {directory}` shows it, "
            f"and `jaxckpt list {above}` the checkpoints beside it."
        )
    with Progress(f"looking through {directory}"):
        state = get_checkpoint_state(directory)
        latest = storage.latest_step(directory) if state is None else latest_checkpoint(directory)
        checkpoints = _checkpoints(directory, state, latest)
        leftovers = storage.leftovers(directory)
    if arguments.json:
        print_json(
            {
                "directory": directory,
                "latest": latest,
                "checkpoints": [asdict(checkpoint) for checkpoint in checkpoints],
                "leftovers": [asdict(leftover) for leftover in leftovers],
            }
        )
        return _exit_code(directory, checkpoints)
    # The steps of one of Orbax's managers, which has no state file.
    is_run = state is None and latest is not None
    total = sum_bytes(checkpoint.bytes for checkpoint in checkpoints)
    print_line(f"{directory}: {count(len(checkpoints), 'checkpoint')}, {human_bytes(total)}")
    rows = [
        (
            f"  {os.path.basename(checkpoint.path)}",
            human_bytes(checkpoint.bytes),
            human_age(checkpoint.age_secs),
            _about(checkpoint),
            "latest" if checkpoint.latest else "" if checkpoint.registered or is_run else "not in the state file",
        )
        for checkpoint in checkpoints
    ]
    for line in table(rows, right=[1, 2]):
        print_line(line)
    if leftovers:
        dead = [leftover for leftover in leftovers if not leftover.live]
        size = human_bytes(sum_bytes(leftover.bytes for leftover in leftovers))
        print_line(f"temporary directories: {len(leftovers)}, {size}")
        lines = [
            (
                f"  {os.path.basename(leftover.path)}",
                human_bytes(leftover.bytes),
                human_age(leftover.age_secs),
                f"in use by {leftover.owner}" if leftover.live else f"left by {leftover.owner}",
            )
            for leftover in leftovers
        ]
        for line in table(lines, right=[1, 2]):
            print_line(line)
        if dead:
            print_line(f"`jaxckpt clean {directory}` removes those that were left.")
    return _exit_code(directory, checkpoints)


def _exit_code(directory: str, checkpoints: list[Listed]) -> int:
    """Returns 0 if there are checkpoints; otherwise prints an error and returns 1."""
    if checkpoints:
        return 0
    what = foreign.describe_directory(directory)
    print_error(f"jaxckpt list: error: {directory} holds no checkpoint" + (f": {what}" if what else "."))
    return 1


def _checkpoints(directory: str, state: CheckpointState | None, latest: str | None) -> list[Listed]:
    # The state file knows best when a checkpoint was saved, because the files of a copied directory have new times.
    registered: dict[str, float] = {}
    if state is not None:
        registered = dict(
            zip(
                map(stores.absolute, state.all_model_checkpoint_paths),
                state.all_model_checkpoint_timestamps,
                strict=False,
            )
        )
    now = time.time()
    found = []
    for name in stores.names(directory):
        path = os.path.join(directory, name)
        try:
            if not storage.is_checkpoint(path):
                continue
            saved = registered.get(stores.absolute(path)) or _changed(path)
            size = size_of(path)
        except FileNotFoundError:
            # The manager has deleted it meanwhile.
            continue
        same = stores.absolute(path)
        is_latest = latest is not None and same == stores.absolute(latest)
        facts = _facts(path)
        found.append(
            Listed(
                path,
                size,
                saved,
                max(0.0, now - saved),
                same in registered,
                is_latest,
                facts.step,
                None if facts.metrics is None else _finite(facts.metrics),
            )
        )
    if state is None and latest is not None:
        # The steps of one of Orbax's managers.
        return sorted(found, key=lambda checkpoint: numbering.natural(checkpoint.path))
    return sorted(found, key=lambda checkpoint: (checkpoint.saved, numbering.natural(checkpoint.path)))


def _facts(path: str) -> storage.SaveFacts:
    try:
        return storage.read_facts(path)
    except (OSError, CheckpointError):
        # `jaxckpt verify` says what is damaged. A list has to name damaged checkpoints too.
        return storage.NO_FACTS


def _finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metrics as JSON values: NaN and infinities, which JSON lacks, become text."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }


def _about(checkpoint: Listed) -> str:
    """Returns step and metrics as text."""
    step = [] if checkpoint.step is None else [f"step {checkpoint.step}"]
    metrics = checkpoint.metrics or {}
    numbers = [
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in metrics.items()
    ]
    return "  ".join([*step, *numbers])


def _changed(path: str) -> float:
    modified = stores.modified(path)
    return on_disk.commit_time(path) if modified is None else modified
