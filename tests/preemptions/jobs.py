"""What the processes of a job do that is preempted."""

import os
import time
import warnings
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import checkpoint_managers as orbax

import jaxckpt
from jaxckpt import testing


def without_the_service() -> str:
    """Returns the error of a handler in a job whose preemption service is turned off."""
    manager = jaxckpt.CheckpointManager(jaxckpt.Checkpoint(value=1), "nowhere", 1)
    try:
        jaxckpt.PreemptionCheckpointHandler(manager)
    except RuntimeError as error:
        return str(error)
    return ""


def with_a_policy(directory: str) -> dict[str, Any]:
    """Trains until SIGTERM. A policy of Orbax saves, and so does the handler, the same step on every process."""
    checkpoint: Any = jaxckpt.Checkpoint(value=np.zeros(4), step=0)
    manager = jaxckpt.CheckpointManager(
        checkpoint,
        directory,
        None,
        step_counter=lambda: checkpoint.step,
        numbers="step",
        save_decision_policy=orbax.AnySavePolicy(
            [orbax.PreemptionCheckpointingPolicy(), orbax.SpecificStepsPolicy([2])]
        ),
    )
    ended = []
    handler = jaxckpt.PreemptionCheckpointHandler(manager, jaxckpt.TerminationConfig(exit_fn=lambda: ended.append(1)))
    end = time.monotonic() + 60
    while not ended and time.monotonic() < end:
        checkpoint.step += 1
        # The sync point may be this call, where the policy saves, or the handler's call, where the handler does.
        manager.save()
        handler.save_checkpoint_if_preempted()
        if checkpoint.step == 3:
            testing.signal("third")
        # Processes are never equally fast.
        time.sleep(0.005 * (1 + jax.process_index()))
    return {
        "saved": [os.path.basename(path) for path in manager.checkpoints],
        "last": checkpoint.step,
        "ended": ended,
        "latest": os.path.basename(manager.latest_checkpoint or ""),
    }


def with_a_handler_of_its_own(directory: str) -> list[str]:
    """Returns the warnings in a program that handles SIGTERM itself, too."""
    import signal

    signal.signal(signal.SIGTERM, lambda number, frame: None)
    manager = jaxckpt.CheckpointManager(jaxckpt.Checkpoint(value=1), directory, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jaxckpt.PreemptionCheckpointHandler(manager)
    return [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
