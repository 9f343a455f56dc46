"""Policies of Orbax (``ocp.checkpoint_managers``), or of a program, that decide which checkpoints a manager keeps and when it saves.

A policy is any object with the method of Orbax's protocol; this module checks that it has it, calls it, and checks what it returns.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxckpt._lib.arguments import refusal, type_name
from jaxckpt.storage import policies

_SHOWN = 200


@dataclass(frozen=True)
class CheckpointInfo:
    """What a policy is told about a checkpoint (Orbax: `PolicyCheckpointInfo`).

    Attributes:
      step: the training step; for a checkpoint whose save did not know it, its number.
      time: when it was saved, in UTC.
      metrics: its metrics by name; None if its save was given none.
      number: its number; None if it has none yet.
    """

    step: int
    time: datetime.datetime
    metrics: Mapping[str, Any] | None
    number: int | None = None


@runtime_checkable
class PreservationPolicy(Protocol):
    """Decides which checkpoints are kept (Orbax: `ocp.checkpoint_managers.PreservationPolicy`)."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Returns, for each checkpoint, whether to keep it.

        Args:
          checkpoints: `step`, `time` and `metrics` of each checkpoint, oldest first.
          context: Orbax's `PreservationContext`.
        """
        ...


@runtime_checkable
class SaveDecisionPolicy(Protocol):
    """Decides when to save (Orbax: `ocp.checkpoint_managers.SaveDecisionPolicy`)."""

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: Any) -> bool:
        """Returns whether to save now.

        Args:
          step: `step`, `time` and `metrics` of the present moment.
          previous_steps: those of the checkpoints, oldest first.
          context: Orbax's `DecisionContext`.
        """
        ...


def check_preservation_policy(policy: object) -> None:
    """Raises TypeError if a value is neither None nor a preservation policy."""
    _check("preservation_policy", policy, PreservationPolicy, "should_preserve", "ocp.checkpoint_managers.LatestN(3)")


def check_save_decision_policy(policy: object) -> None:
    """Raises TypeError if a value is neither None nor a save decision policy."""
    example = "ocp.checkpoint_managers.FixedIntervalPolicy(100)"
    _check("save_decision_policy", policy, SaveDecisionPolicy, "should_save", example)


def _check(argument: str, policy: object, protocol: type, method: str, example: str) -> None:
    if policy is None:
        return
    if isinstance(policy, type):
        raise refusal(
            TypeError, argument, f"this is the class {policy.__qualname__}; give an object of it, such as {example}"
        )
    if not isinstance(policy, protocol) or not callable(getattr(policy, method)):
        what = f"{type_name(policy)} lacks Orbax's method {method}, which {example} has"
        raise refusal(TypeError, argument, what)


def described(policy: object) -> str:
    """Returns a short text that names a policy."""
    try:
        text = repr(policy)
    except Exception:
        # The text is for a message, so a class that cannot print itself is named instead.
        return type_name(policy)
    return text if len(text) <= _SHOWN else type_name(policy)


def preserved(policy: PreservationPolicy, checkpoints: Sequence[CheckpointInfo]) -> list[bool]:
    """Returns, for each checkpoint, whether a policy preserves it.

    NaN has no place in an order, so a policy that ranks by a metric may give a NaN the place of the best. So the policy is asked
    a second time without the checkpoints that have a NaN among their metrics, and what it preserves then is preserved too.

    Args:
      policy: the policy.
      checkpoints: the checkpoints, oldest first.

    Raises:
      Exception: what the policy raised, or TypeError or ValueError about its answer.
    """
    answer = _ask(policy, checkpoints)
    clean = [index for index, checkpoint in enumerate(checkpoints) if not _has_nan(checkpoint.metrics)]
    if 0 < len(clean) < len(checkpoints):
        for index, keeps in zip(clean, _ask(policy, [checkpoints[index] for index in clean]), strict=True):
            answer[index] = answer[index] or keeps
    return answer


def _ask(policy: PreservationPolicy, checkpoints: Sequence[CheckpointInfo]) -> list[bool]:
    answer = list(policy.should_preserve(list(checkpoints), context=policies.preservation_context()))
    if len(answer) != len(checkpoints):
        raise ValueError(f"should_preserve returned {len(answer)} values for {len(checkpoints)} checkpoints")
    return [_truth("should_preserve", value) for value in answer]


def _has_nan(metrics: Mapping[str, Any] | None) -> bool:
    return any(isinstance(value, float) and math.isnan(value) for value in (metrics or {}).values())


def best(checkpoints: Mapping[str, CheckpointInfo], metric: str, sign: int) -> str | None:
    """Returns the name of the checkpoint with the best value of a metric; None if none has it. NaN never wins.

    Args:
      checkpoints: the checkpoints by name. Of several best ones, the first is returned.
      metric: name of the metric.
      sign: 1 if the largest value is the best, -1 if the smallest is.
    """
    values = {name: (info.metrics or {}).get(metric) for name, info in checkpoints.items()}
    numbers = {
        name: sign * value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not (isinstance(value, float) and math.isnan(value))
    }
    return max(numbers, key=numbers.__getitem__, default=None)


def wants_save(
    policy: SaveDecisionPolicy, now: CheckpointInfo, previous: Sequence[CheckpointInfo], context: Any
) -> bool:
    """Returns whether a policy wants to save.

    Args:
      policy: the policy.
      now: the present moment.
      previous: the checkpoints, oldest first.
      context: see `jaxckpt.storage.policies.decision_context`.

    Raises:
      Exception: what the policy raised, or TypeError about its answer. A note names the policy.
    """
    try:
        return _truth("should_save", policy.should_save(now, list(previous), context=context))
    except Exception as error:
        error.add_note(f"(raised by save_decision_policy={described(policy)} at step {now.step})")
        raise


def _truth(method: str, value: object) -> bool:
    # A policy that returned something else, such as positions in the list, would be misunderstood.
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{method} must give True or False, got {value!r}")
    return bool(value)
