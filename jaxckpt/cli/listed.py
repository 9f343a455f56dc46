"""Looks through a directory of checkpoints, for the commands that list them."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jaxckpt import storage
from jaxckpt._lib import numbering
from jaxckpt._lib.output import print_error
from jaxckpt.cli.resolve import size_of
from jaxckpt.directory import on_disk
from jaxckpt.directory.latest import CheckpointState, get_checkpoint_state, latest_checkpoint
from jaxckpt.errors import CheckpointError
from jaxckpt.storage import foreign, stores
from jaxckpt.storage.item.account import Account


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
      save: what it remembers of its save; None if it remembers nothing.
    """

    path: str
    bytes: int | None
    saved: float
    age_secs: float
    registered: bool
    latest: bool
    step: int | None
    metrics: dict[str, Any] | None
    save: Account | None


@dataclass(frozen=True)
class Looked:
    """What is in a directory.

    Attributes:
      checkpoints: its checkpoints, oldest first.
      latest: path of the latest one; None if there is none.
      is_run: whether they are the steps of one of Orbax's managers, which has no state file.
    """

    checkpoints: list[Listed]
    latest: str | None
    is_run: bool


def refuse_checkpoint(directory: str) -> None:
    """Refuses a checkpoint where a directory of checkpoints is wanted.

    Args:
      directory: the directory.

    Raises:
      ValueError: it is a checkpoint.
    """
    if storage.is_checkpoint(directory):
        above = os.path.dirname(stores.absolute(directory))
        raise ValueError(
            f"{directory} is a checkpoint, not a directory of checkpoints. `jaxckpt inspect {directory}` shows it, "
            f"and `jaxckpt list {above}` the checkpoints beside it."
        )


def look(directory: str) -> Looked:
    """Looks through a directory.

    Args:
      directory: the directory.

    Raises:
      OSError: it cannot be read.
    """
    state = get_checkpoint_state(directory)
    latest = storage.latest_step(directory) if state is None else latest_checkpoint(directory)
    return Looked(_checkpoints(directory, state, latest), latest, state is None and latest is not None)


def exit_code(command: str, directory: str, looked: Looked) -> int:
    """Returns 0 if there are checkpoints; otherwise prints an error and returns 1.

    Args:
      command: the command, for the error.
      directory: the directory.
      looked: what is in it.
    """
    if looked.checkpoints:
        return 0
    what = foreign.describe_directory(directory)
    print_error(f"jaxckpt {command}: error: {directory} holds no checkpoint" + (f": {what}" if what else "."))
    return 1


def about(checkpoint: Listed) -> str:
    """Returns step and metrics as text."""
    step = [] if checkpoint.step is None else [f"step {checkpoint.step}"]
    return "  ".join([*step, *metrics_of(checkpoint)])


def metrics_of(checkpoint: Listed) -> list[str]:
    """Returns the metrics as texts, such as "loss=0.3"."""
    return [
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in (checkpoint.metrics or {}).items()
    ]


def versions(save: Account) -> str:
    """Returns the versions of the program that saved, as text."""
    names = sorted(save.versions, key=lambda name: (name != "jaxckpt", name))
    return ", ".join(f"{name} {save.versions[name]}" for name in names)


def as_json(checkpoint: Listed) -> dict[str, Any]:
    """Returns a checkpoint as JSON values."""
    save = None if checkpoint.save is None else checkpoint.save._asdict()
    return {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)} | {"save": save}


def _checkpoints(directory: str, state: CheckpointState | None, latest: str | None) -> list[Listed]:
    """Returns the checkpoints of a directory, oldest first.

    Args:
      directory: the directory.
      state: its state file; None if there is none.
      latest: path of the latest checkpoint; None if there is none.
    """
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
                facts.account,
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


def _changed(path: str) -> float:
    modified = stores.modified(path)
    return on_disk.commit_time(path) if modified is None else modified
