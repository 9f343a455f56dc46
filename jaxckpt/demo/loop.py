"""The demo's training loop: where a training program meets jaxckpt."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

import jaxckpt
from jaxckpt.demo import losses, training
from jaxckpt.demo.saves import SaveTimes
from jaxckpt.demo.settings import TrainingConfig


@dataclass
class StepTimes:
    """A training step: its number, when it began (by `time.perf_counter`), how long it took (a save not included)."""

    step: int
    began: float
    secs: float


@dataclass
class Run:
    """What a run did.

    Attributes:
      restored: path of the checkpoint that was restored; None for a fresh start.
      first_step: the step that the run started from: 0, or that of the restored checkpoint.
      last_step: the step that it ended at.
      loss: of the last step that this run trained; None if it trained none.
      accuracy: share of the test examples that the model gets right at the end.
      steps: times of the steps.
      saves: times of the saves.
      checkpoints: paths of the checkpoints that the manager keeps, oldest first.
    """

    restored: str | None
    first_step: int
    last_step: int = 0
    loss: float | None = None
    accuracy: float = 0.0
    steps: list[StepTimes] = field(default_factory=list)
    saves: list[SaveTimes] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)


class Saves(Protocol):
    """What is told of the saves, see `SaveLog`."""

    def begin(self, number: int) -> None: ...

    def returned(self, number: int, path: str | None) -> object: ...

    def finished(self) -> list[SaveTimes]: ...

    @property
    def last_number(self) -> int | None: ...


def train(
    config: TrainingConfig,
    saving: jaxckpt.CheckpointConfig,
    losses_path: str | None,
    saves: Saves,
    say: Callable[[str], object],
    update: Callable[[str], object],
) -> Run:
    """Trains up to ``config.steps``, from the latest checkpoint if there is one.

    In a job of several processes, all of them call it, and each trains with its part of every batch.

    Args:
      config: how to train.
      saving: how to save.
      losses_path: of the log of losses; None on the processes that write none.
      saves: the log of saves.
      say: prints a line.
      update: is told what the training does now, many times a second.
    """
    train_set, test_set = training.digits()
    mesh = training.mesh()
    model, optimizer = training.new_model(config, mesh)
    batches = training.Batches(train_set, config.batch_size, config.seed)

    # Everything that the rest of the training depends on. A restore updates the NNX objects and the stream in place.
    checkpoint = jaxckpt.Checkpoint(model=model, optimizer=optimizer, batches=batches, step=0)
    manager = saving.manager(checkpoint, step_counter=lambda: checkpoint.step)

    def save(step: int, *, check_interval: bool = True) -> None:
        saves.begin(step)
        path = manager.save(checkpoint_number=step, check_interval=check_interval)
        saves.returned(step, path)

    restored = manager.restore_or_initialize()
    run = Run(restored, checkpoint.step, checkpoint.step)
    say(_where_it_starts(restored, run.first_step, config))
    update("compiling the training step")
    # Leaving the block waits for the save in flight, and raises what went wrong with it.
    with checkpoint, _log(losses_path, run.first_step) as log:
        for step in range(run.first_step + 1, config.steps + 1):
            began = time.perf_counter()
            images, labels = next(batches)
            batch = training.spread(images, mesh), training.spread(labels, mesh)
            loss = np.float32(training.train_step(model, optimizer, *batch, mesh))
            run.steps.append(StepTimes(step, began, time.perf_counter() - began))
            if log is not None:
                log.append(step, loss)  # Before the save: a checkpoint never knows a step that the log does not.
            checkpoint.step = run.last_step = step
            run.loss = float(loss)
            update(f"step {step} of {config.steps}, loss {loss:.4f}")
            save(step)
        if run.steps and saves.last_number != run.last_step:
            save(run.last_step, check_interval=False)
    run.saves = saves.finished()
    run.accuracy = training.accuracy(model, test_set, mesh)
    run.checkpoints = manager.checkpoints
    return run


def _log(path: str | None, step: int) -> contextlib.AbstractContextManager[losses.LossLog | None]:
    if path is None:
        return contextlib.nullcontext()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return losses.LossLog(path, step)


def _where_it_starts(restored: str | None, step: int, config: TrainingConfig) -> str:
    if restored is None:
        return "starting at step 0"
    if step >= config.steps:
        return f"already trained to step {step}, in {restored}: nothing to do for --steps {config.steps}"
    return f"resuming after step {step}, from {restored}"
