"""Managers with policies, as they run in the processes of a job."""

import warnings
from typing import Any

import jax
import numpy as np
from mp_programs import options
from orbax.checkpoint import checkpoint_managers as orbax

import jaxckpt


class Stubborn:
    """A policy whose answer depends on the process that is asked, which is a mistake."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return bool((step.step + jax.process_index()) % 2 == 0 or not previous_steps)


class Broken:
    """A policy that raises, in both protocols."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        raise KeyError(f"asked at step {step.step}")

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        raise KeyError("asked to preserve")


def orbax_count() -> int:
    """Orbax makes names of signals from this count. If it differs between processes, they wait for each other for ever."""
    from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

    return int(OperationIdGenerator.get_current_operation_id())


def manage(directory: str, io: int | None, asynchronous: bool) -> dict[str, Any]:
    """Saves with policies and metrics, and returns what every process saw."""
    checkpoint: Any = jaxckpt.Checkpoint(value=np.zeros(3), step=0)

    def make(**arguments: Any) -> jaxckpt.CheckpointManager:
        return jaxckpt.CheckpointManager(
            checkpoint,
            directory,
            None,
            step_counter=lambda: checkpoint.step,
            numbers="step",
            options=options(io, asynchronous=asynchronous),
            **arguments,
        )

    def train(manager: jaxckpt.CheckpointManager, steps: Any) -> list[str | None]:
        paths = []
        for step in steps:
            checkpoint.step = step
            # Each process measures another loss. The one that writes counts.
            loss = abs(step - 4) + 0.1 * jax.process_index()
            paths.append(manager.save(metrics={"loss": loss, "process": jax.process_index()}))
        manager.sync()
        return paths

    seen: dict[str, Any] = {}
    lowest = orbax.BestN(n=1, get_metric_fn=lambda metrics: metrics["loss"], reverse=True)
    manager = make(preservation_policy=lowest, save_decision_policy=orbax.FixedIntervalPolicy(2))
    seen["fixed"] = train(manager, range(1, 9))
    seen["kept"] = manager.checkpoints
    seen["best"] = manager.best_checkpoint("loss"), manager.best_checkpoint("process", "max")
    # A new program that did not restore does not replace a checkpoint, on any process.
    manager = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen["existing"] = train(manager, [4])
    seen["warned"] = [str(warning.message).partition(",")[0] for warning in caught if warning.category is UserWarning]
    manager = make(save_decision_policy=Stubborn())
    seen["stubborn"] = train(manager, range(10, 16))
    manager = make(save_decision_policy=orbax.ContinuousCheckpointingPolicy(minimum_interval_secs=3600))
    seen["continuous"] = train(manager, range(20, 24))
    before = orbax_count()
    mixed = orbax.AnySavePolicy([Stubborn(), orbax.ContinuousCheckpointingPolicy(minimum_interval_secs=3600)])
    manager = make(save_decision_policy=mixed)
    seen["mixed"] = train(manager, range(24, 27))
    seen["counted"] = orbax_count() - before
    manager = make(save_decision_policy=Broken())
    checkpoint.step = 30
    try:
        manager.save()
    except Exception as error:
        seen["broken"] = isinstance(error, KeyError), "asked at step 30" in str(error)
    manager = make(preservation_policy=Broken())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen["unbroken"] = train(manager, [31])
    seen["names it"] = ["Broken" in str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    seen["restored"] = make().restore_or_initialize()
    return seen
