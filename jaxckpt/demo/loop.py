"""The demo's training loop. It shows how a training program uses jaxckpt."""

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
    """Times of one training step.

    Attributes:
      step: number of the step.
      began: when it began, by `time.perf_counter`.
      secs: how many seconds it took, without a save.
    """

    step: int
    began: float
    secs: float


@dataclass
class Run:
    """The result of one run of the demo.

    Attributes:
      restored: path of the restored checkpoint; None for a fresh start.
      first_step: the step from which the run started: 0, or the step of the restored checkpoint.
      last_step: the step at which it ended.
      loss: loss of the last step of this run; None if it did not train any step.
      accuracy: fraction of the test examples that the model classifies correctly at the end.
      steps: times of the steps.
      saves: times of the saves.
      checkpoints: paths of the checkpoints that the manager keeps, oldest first.
      preempted: whether SIGTERM ended it. The last step is saved; accuracy and checkpoints are left out, because time is short.
    """

    restored: str | None
    first_step: int
    last_step: int = 0
    loss: float | None = None
    accuracy: float = 0.0
    steps: list[StepTimes] = field(default_factory=list)
    saves: list[SaveTimes] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    preempted: bool = False


class Saves(Protocol):
    """The log of saves as the training loop sees it. See `SaveLog` for the methods."""

    def begin(self, number: int) -> None: ...

    def returned(self, number: int, path: str | None) -> object: ...

    def finished(self) -> list[SaveTimes]: ...


def train(
    config: TrainingConfig,
    saving: jaxckpt.CheckpointConfig,
    losses_path: str | None,
    saves: Saves,
    say: Callable[[str], object],
    update: Callable[[str], object],
) -> Run:
    """Trains up to ``config.steps``, from the latest checkpoint if there is one.

    In a job of several processes, all of them call this function, and each trains with its part of every batch.

    Args:
      config: how to train.
      saving: how to save.
      losses_path: path of the log of losses; None on processes that do not write one.
      saves: the log of saves.
      say: prints a line.
      update: shows the current activity. It is called many times a second.
    """
    train_set, test_set = training.digits()
    mesh = training.mesh()
    model, optimizer = training.new_model(config, mesh)
    batches = training.Batches(train_set, config.batch_size, config.seed)

    # The Checkpoint holds everything on which the rest of the training depends. A restore updates the NNX objects and the stream of
    # batches in place.
    checkpoint = jaxckpt.Checkpoint(model=model, optimizer=optimizer, batches=batches, step=0)
    manager = saving.manager(checkpoint, step_counter=lambda: checkpoint.step, numbers="step")

    def save(step: int, loss: np.float32, *, check_interval: bool = True) -> None:
        saves.begin(step)
        path = manager.save(check_interval=check_interval, metrics={"loss": loss})
        saves.returned(step, path)

    restored = manager.restore_or_initialize()
    run = Run(restored, checkpoint.step, checkpoint.step)
    say(_where_it_starts(restored, run.first_step, config))
    update("compiling the training step")

    def leave() -> None:
        # Most programs do without such a function: the default ends the program with exit code 143. The demo says goodbye first.
        run.preempted = True

    handler = jaxckpt.PreemptionCheckpointHandler(manager, jaxckpt.TerminationConfig(exit_fn=leave))
    # The end of the block waits for the running save, and raises its error.
    with handler, checkpoint, _log(losses_path, run.first_step) as log:
        for step in range(run.first_step + 1, config.steps + 1):
            began = time.perf_counter()
            images, labels = next(batches)
            batch = training.spread(images, mesh), training.spread(labels, mesh)
            loss = np.float32(training.train_step(model, optimizer, *batch, mesh))
            run.steps.append(StepTimes(step, began, time.perf_counter() - began))
            if log is not None:
                # Logged before the save, so that the log has every step that a checkpoint has.
                log.append(step, loss)
            checkpoint.step = run.last_step = step
            run.loss = float(loss)
            update(f"step {step} of {config.steps}, loss {loss:.4f}")
            save(step, loss)
            handler.save_checkpoint_if_preempted()
            if run.preempted:
                break
        if run.steps and manager.last_checkpoint_step != run.last_step:
            save(run.last_step, loss, check_interval=False)
    run.saves = saves.finished()
    if run.preempted:
        return run
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
