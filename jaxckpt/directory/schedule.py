"""Decides whether a manager saves at a step, and under which number."""

import datetime
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jaxckpt._lib.arguments import index, positive_int
from jaxckpt.directory import policies
from jaxckpt.directory.policies import CheckpointInfo, SaveDecisionPolicy
from jaxckpt.directory.steps import SavedStep, SavedSteps, step_reader
from jaxckpt.storage.policies import is_orbax

NUMBERS = ("saves", "step")


@dataclass(frozen=True)
class Due:
    """A save that is due.

    Attributes:
      step: the current step; None without a step counter.
      number: the number of the checkpoint; None for the next free one.
      saved: counts as saved, unless the save fails; None if the schedule does not look at steps.
      info: what policies are told about the checkpoint.
    """

    step: int | None
    number: int | None
    saved: SavedStep | None
    info: CheckpointInfo


class Answers(Protocol):
    """What a schedule has to ask. In a job, every process gets the same answers, and calls this in the same order."""

    def saved(self) -> tuple[list[CheckpointInfo], list[int]]:
        """Returns the manager's listed checkpoints, oldest first, and the numbers of all that are on disk."""
        ...

    def wants_save(self, policy: SaveDecisionPolicy, now: CheckpointInfo, previous: list[CheckpointInfo]) -> bool:
        """Returns whether a policy wants to save. Raises what the policy raises."""
        ...


class SaveSchedule:
    """Decides when a manager saves: by an interval of steps or by a policy, and never the same step twice.

    Safe for several threads. Never waits for a save.

    Attributes:
      interval: smallest number of steps between two saves; None if there is none.
      watches_steps: whether the same step is never saved twice.
      last_save_secs: how many seconds the last save took until its checkpoint was committed; None before the first one.
    """

    def __init__(
        self,
        step_counter: Any,
        interval: int | None,
        policy: SaveDecisionPolicy | None,
        numbers: Literal["saves", "step"],
        last_step: int | None,
    ) -> None:
        """Checks the arguments, which are those of `CheckpointManager`.

        Raises:
          TypeError: an argument has the wrong type.
          ValueError: an argument is out of range, `step_counter` is missing or can never change, or both interval and policy are given.
        """
        self.interval = positive_int("checkpoint_interval", interval)
        policies.check_save_decision_policy(policy)
        if numbers not in NUMBERS:
            raise ValueError(f'numbers must be "saves" or "step", got {numbers!r}.')
        self._by_step = numbers == "step"
        self._policy = policy
        if interval is not None and policy is not None:
            raise ValueError("Give checkpoint_interval or save_decision_policy, not both: each decides when to save.")
        wanting = [
            name
            for name, given in {
                "checkpoint_interval": interval is not None,
                "save_decision_policy": policy is not None,
                'numbers="step"': self._by_step,
            }.items()
            if given
        ]
        if wanting and step_counter is None:
            raise ValueError(
                f"{wanting[0]} needs a step_counter that tells the current step, such as lambda: checkpoint.step."
            )
        self._current_step = None if step_counter is None else step_reader(step_counter)
        self.last_save_secs: float | None = None
        self.watches_steps = bool(wanting)
        self._steps = SavedSteps(None if last_step is None else index("last_checkpoint_step", last_step))
        self._lock = threading.Lock()
        # The checkpoints that policies are told about; None until they are needed. Those after a restored step do not count.
        self._history: list[CheckpointInfo] | None = None
        # The numbers that were on disk when the history was read.
        self._taken: frozenset[int] = frozenset()
        self._restored: int | None = None
        self._has_warned = self._has_warned_of_earlier_run = False

    @property
    def last_step(self) -> int | None:
        """The step that counts as saved last; None if none does."""
        return self._steps.last

    def is_saved(self) -> bool:
        """Whether the current step counts as saved. False without a step counter."""
        return self._current_step is not None and self._steps.last == self._current_step()

    def begin(
        self,
        metrics: Callable[[], Mapping[str, float] | None],
        answers: Answers,
        *,
        check: bool,
        numbered: bool,
    ) -> Due | None:
        """Decides whether to save now. Counts the step as saved if so.

        Args:
          metrics: returns the metrics of the save. Called only if they are needed, because it may wait for a device.
          answers: answers what cannot be known here.
          check: whether to ask the interval or the policy. If not, every step is due that has not been saved last.
          numbered: whether the caller chooses the number, so that the checkpoint of that number may be replaced.

        Returns:
          The save; None if none is due.

        Raises:
          BaseException: what the step counter, the policy or `answers` raised.
        """
        step = None if self._current_step is None else self._current_step()
        moment = datetime.datetime.now(datetime.UTC)
        if not self.watches_steps:
            return Due(step, None, None, CheckpointInfo(step or 0, moment, metrics()))
        assert step is not None
        if self._by_step and step < 0:
            raise ValueError(f'With numbers="step" the current step must not be negative, got {step}.')
        history = self._loaded(answers) if self._policy is not None or self._by_step else []
        last = self._steps.last
        if check:
            if self._policy is not None:
                # Orbax's own policies do not look at metrics.
                shown = None if is_orbax(self._policy) else metrics()
                if not answers.wants_save(self._policy, CheckpointInfo(step, moment, shown), history):
                    return None
            if last is not None and step < last:
                self._warn(f"the step went back from {last}, which was saved, to {step}", "")
                return None
        if last == step and self.interval is None:
            self._warn(f"step {step} is saved already", "")
            return None
        if self._by_step and not numbered and step != last and step in self._taken:
            self._warn(
                f"there is a checkpoint of step {step} already, of an earlier run",
                f" save(checkpoint_number={step}) replaces it.",
            )
            return None
        interval = self.interval if check else None
        if interval is not None and last is not None and step < last + interval:
            # Not due: so that nothing waits for the metrics.
            return None
        if last is None and self._restored is None and any(info.step > step for info in history):
            self._warn_of_earlier_run(step, max(info.step for info in history))
        now = CheckpointInfo(step, moment, metrics())
        saved = self._steps.begin(step, interval)
        if saved is None:
            return None
        due = Due(step, step if self._by_step else None, saved, now)
        with self._lock:
            if self._history is not None:
                self._history.append(now)
        return due

    def _loaded(self, answers: Answers) -> list[CheckpointInfo]:
        if self._history is None:
            found, numbers = answers.saved()
            if self._restored is not None:
                # Later ones could not be restored, and their steps are trained again.
                found = [info for info in found if info.step <= self._restored]
                numbers = [number for number in numbers if number <= self._restored]
            with self._lock:
                self._history, self._taken = found, frozenset(numbers)
        with self._lock:
            return list(self._history)

    def _warn(self, what: str, more: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"Nothing was saved: {what}. After a deliberate return to an older checkpoint, call restore_or_initialize() of a new "
            f"manager, or save(check_interval=False).{more} This is said once.",
            UserWarning,
            stacklevel=4,
        )

    def _warn_of_earlier_run(self, step: int, newest: int) -> None:
        if self._has_warned_of_earlier_run:
            return
        self._has_warned_of_earlier_run = True
        warnings.warn(
            f"The current step is {step}, but the directory has a checkpoint of step {newest}, of an earlier run that this manager has "
            "not restored. It counts as older than those that are saved now, so max_to_keep and the policy may delete it. To go on from "
            "it, call restore_or_initialize() before the first save; to begin anew, take another directory. This is said once.",
            UserWarning,
            stacklevel=4,
        )

    def commit(self, due: Due, seconds: float) -> None:
        """Notes that a save has succeeded.

        Args:
          due: the save.
          seconds: how long it took until the checkpoint was committed.
        """
        self.last_save_secs = seconds
        if due.saved is not None:
            self._steps.commit(due.saved)

    def fail(self, due: Due) -> None:
        """Notes that a save has failed, so that its step does not count as saved. No effect after `commit`."""
        if due.saved is None:
            return
        self._steps.fail(due.saved)
        with self._lock:
            if not due.saved.is_saved and self._history is not None:
                self._history = [info for info in self._history if info is not due.info]

    def restored(self) -> None:
        """Notes that a checkpoint was restored: the current step counts as saved."""
        if not self.watches_steps:
            return
        assert self._current_step is not None
        step = self._current_step()
        self._steps.restored(step)
        with self._lock:
            self._history, self._restored = None, step
