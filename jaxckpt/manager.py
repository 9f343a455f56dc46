"""`CheckpointManager`: numbers, intervals and retention (TensorFlow: `tf.train.CheckpointManager`)."""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxckpt._lib.arguments import StrPath, index, positive_int, positive_number, type_name
from jaxckpt.checkpoint import Checkpoint, saver_of
from jaxckpt.directory import paths
from jaxckpt.directory.answers import ManagerAnswers
from jaxckpt.directory.ask import FileAccess, does_file_access, file_process
from jaxckpt.directory.hooks import ManagerHooks
from jaxckpt.directory.listing import Listing
from jaxckpt.directory.metrics import checked_metrics
from jaxckpt.directory.policies import PreservationPolicy, SaveDecisionPolicy, check_preservation_policy
from jaxckpt.directory.schedule import SaveSchedule
from jaxckpt.directory.series import CheckpointSeries
from jaxckpt.options import CheckpointOptions
from jaxckpt.resuming import Candidates, restore_newest
from jaxckpt.storage import SaveFacts


class CheckpointManager:
    """Saves numbered checkpoints into a directory and deletes old ones (TensorFlow: `tf.train.CheckpointManager`).

    The *state file* ``checkpoint`` in the directory lists the checkpoints, oldest first. The manager manages the listed checkpoints
    that are called ``<checkpoint_name>-<number>``, whichever program saved them (a plain `Checkpoint.save`, an earlier manager). It
    also takes over checkpoints that a program committed before it was killed and did not register. Every call reads the state file
    again, so editing it has an effect. The manager does not touch other names in the directory, nor checkpoints that were taken out
    of the list.

    A preserved checkpoint (see `keep_checkpoint_every_n_hours`) leaves the list, and neither this manager nor a later one deletes it.
    Old checkpoints are deleted only after the new one is committed and its callbacks have run. If a checkpoint cannot be deleted, a
    warning is logged, it stays in the list, and the manager tries again after the next save.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: StrPath,
        max_to_keep: int | None,
        keep_checkpoint_every_n_hours: float | None = None,
        checkpoint_name: str = "ckpt",
        step_counter: Any = None,
        checkpoint_interval: int | None = None,
        init_fn: Callable[[], object] | None = None,
        last_checkpoint_step: int | None = None,
        *,
        options: CheckpointOptions | None = None,
        preservation_policy: PreservationPolicy | None = None,
        save_decision_policy: SaveDecisionPolicy | None = None,
        numbers: Literal["saves", "step"] = "saves",
    ) -> None:
        """Takes over a directory: finds its checkpoints, and removes the leftovers of saves that were killed.

        Args:
          checkpoint: the Checkpoint to save and restore.
          directory: the directory of the checkpoints. The first save creates it.
          max_to_keep: how many checkpoints to keep, besides preserved ones; None keeps all, or leaves it to `preservation_policy`.
          keep_checkpoint_every_n_hours: hours. A checkpoint that would be deleted is preserved if it was saved at least this long
            after the last preserved one (or after the first manager of the directory started). None preserves no checkpoint.
          checkpoint_name: checkpoints are called ``<checkpoint_name>-<number>``.
          step_counter: the current step: a function without arguments (``lambda: checkpoint.step``), or an object with
            `__int__` or `__index__` that the program changes in place (an NNX Variable). A number or a jax.Array is
            refused, because it can never change.
          checkpoint_interval: least number of steps between two saves; before that, `save` writes nothing. Needs
            `step_counter`.
          init_fn: called by `restore_or_initialize` when there is nothing to restore.
          last_checkpoint_step: the step that counts as saved last; None if no step has been saved.
          options: the options of `save` and `restore_or_initialize` calls that pass none.
          preservation_policy: one of Orbax's (`ocp.checkpoint_managers.BestN`, `EveryNSteps`, ...), or an object with their method
            `should_preserve`. A checkpoint is kept if it or `max_to_keep` keeps it. It is asked after each save.
          save_decision_policy: one of Orbax's (`FixedIntervalPolicy`, `SpecificStepsPolicy`, ...), or an object with their method
            `should_save`, instead of `checkpoint_interval`. Needs `step_counter`.
          numbers: "saves" counts the saves, as TensorFlow does. "step" makes the current step the number of a checkpoint; needs
            `step_counter`.

        Raises:
          TypeError: an argument has the wrong type, or a policy lacks the method of its protocol.
          ValueError: an argument is out of range, `step_counter` is missing where it is needed, or can never change, or the
            device does not exist.
        """
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"checkpoint must be a jaxckpt.Checkpoint, got {type_name(checkpoint)}.")
        self._checkpoint = checkpoint
        self._saver = saver_of(checkpoint)
        self._directory = paths.checked_path(directory, "directory")
        self._name = paths.checked_name(checkpoint_name)
        self._schedule = SaveSchedule(
            step_counter, checkpoint_interval, save_decision_policy, numbers, last_checkpoint_step
        )
        check_preservation_policy(preservation_policy)
        if init_fn is not None and not callable(init_fn):
            raise TypeError(f"init_fn must be callable, got {type(init_fn).__name__}.")
        self._init_fn = init_fn
        self._access = FileAccess(options)
        self._warned = False
        self._series = CheckpointSeries(
            self._name,
            positive_int("max_to_keep", max_to_keep),
            positive_number("keep_checkpoint_every_n_hours", keep_checkpoint_every_n_hours),
            preservation_policy,
        )
        self._listing = Listing(self._series, self._directory)
        file_process(options)
        self._start()

    def _start(self) -> None:
        if does_file_access(self._access.options):
            behind, foreign = self._listing.start()
            self._warned = foreign is not None
            for warning in filter(None, (behind, foreign)):
                warnings.warn(warning, stacklevel=3)

    @property
    def checkpoint(self) -> Checkpoint:
        """The Checkpoint that the manager saves and restores."""
        return self._checkpoint

    @property
    def directory(self) -> str:
        """The directory of the checkpoints, as it was given."""
        return self._directory

    @property
    def checkpoint_interval(self) -> int | None:
        """Least number of steps between two saves."""
        return self._schedule.interval

    @property
    def last_checkpoint_step(self) -> int | None:
        """The step that counts as saved last. Updated only with `checkpoint_interval`, `save_decision_policy` or ``numbers="step"``."""
        return self._schedule.last_step

    @property
    def checkpoints(self) -> list[str]:
        """Paths of the listed checkpoints, oldest first, without preserved ones and without those that other programs deleted.

        Raises:
          OSError: the directory cannot be read.
        """
        return self._listing.checkpoints(self._access.options)

    @property
    def latest_checkpoint(self) -> str | None:
        """Path of the checkpoint that was saved last and still exists; None if there is none.

        If the directory holds no checkpoint of the manager's name, this is what `jaxckpt.latest_checkpoint` returns.

        Raises:
          OSError: the directory cannot be read.
        """
        return self._listing.latest(self._access.options)

    def best_checkpoint(self, metric: str, mode: Literal["min", "max"] = "min") -> str | None:
        """Returns the path of the committed checkpoint with the best value of a metric (see `save`).

        Preserved checkpoints count too. NaN never wins. Of several best ones, the newest is returned.

        Args:
          metric: name of the metric.
          mode: whether the smallest ("min") or the largest ("max") value is the best.

        Returns:
          Path of the checkpoint; None if no checkpoint has the metric.

        Raises:
          TypeError: `metric` is not text.
          ValueError: `mode` is neither "min" nor "max".
          OSError: the directory cannot be read.
        """
        return self._listing.best(self._access.options, metric, mode)

    def save(
        self,
        checkpoint_number: int | None = None,
        check_interval: bool = True,
        options: CheckpointOptions | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Saves a checkpoint, unless the interval or the policy says that none is due, and deletes old checkpoints.

        With `checkpoint_interval`, `save_decision_policy` or ``numbers="step"``, no step is saved twice, and none while the step is
        behind the last saved one; a warning says so, once.

        Args:
          checkpoint_number: the number of the checkpoint; a checkpoint that has it is replaced. None: the current step with
            ``numbers="step"``; otherwise `save_counter` + 1 or, if a checkpoint has that number, the highest existing number + 1.
          check_interval: whether to respect `checkpoint_interval` and `save_decision_policy`. False saves earlier too, but never the
            same step twice.
          options: how to save; None for the manager's options.
          metrics: numbers by name, such as ``{"loss": 0.3}``. They are stored with the checkpoint, in a job those of the process that
            does the file access.

        Returns:
          Path of the checkpoint; None if none was due.

        Raises:
          TypeError: a metric is not a number.
          BaseException: as `Checkpoint.save`, and what a policy raised. A step whose save failed does not count as saved. An
            asynchronous save that fails later has used up its number.
        """
        # First of all: a call that is traced must be refused also when no checkpoint is due.
        self._saver.refuse_tracing("save")
        options = self._access.given if options is None else options
        file_process(options)
        number = None if checkpoint_number is None else index("checkpoint_number", checkpoint_number)
        if number is not None and number < 0:
            raise ValueError(f"checkpoint_number must not be negative, got {number}.")
        values = checked_metrics(metrics)
        answers = ManagerAnswers(self._listing, self._directory, options, lambda: self._saver.is_saving)
        due = self._schedule.begin(values, answers, check=check_interval, numbered=number is not None)
        if due is None:
            return None
        hooks = ManagerHooks(self._series, self._schedule, due)
        try:
            path = self._saver.save(
                os.path.join(self._directory, self._name),
                options,
                hooks,
                number=due.number if number is None else number,
                facts=SaveFacts(due.step, values()),
            )
        except BaseException:
            self._schedule.fail(due)
            if hooks.is_saved:
                self._access.used(options)
            raise
        self._access.used(options)
        return path

    def restore_or_initialize(
        self, options: CheckpointOptions | None = None, *, skip_corrupt: bool = False
    ) -> str | None:
        """Restores the latest checkpoint; if there is none, calls `init_fn`. Waits for the save in flight first.

        After a restore the current step counts as saved. If another program deletes the checkpoint during the restore, the newest one
        that is left is restored.

        Args:
          options: how to restore; None for the manager's options.
          skip_corrupt: whether to go on if the latest checkpoint is damaged: warn, and restore the newest other checkpoint that
            verifies, preserved ones included. If none verifies, the error of the latest one is raised: `init_fn` is never called
            where damaged checkpoints are.

        Returns:
          Path of the checkpoint that was restored; None if there was none. Checkpoints of another program (Orbax, Flax) in
          the directory are not restored; a warning says how to continue from them.

        Raises:
          CheckpointError: the directory holds TensorFlow's checkpoints, and not one of this manager.
          FileNotFoundError: all checkpoints were deleted while they were looked up or read.
          CorruptCheckpointError: the latest checkpoint is damaged (with `skip_corrupt`: all are damaged).
          OSError: the directory cannot be read.
          BaseException: as `Checkpoint.restore`, and the error of a save in flight.
        """
        self._saver.refuse_tracing("restore_or_initialize")
        options = self._access.options if options is None else options
        file_process(options)
        # The lock keeps other threads from saving now: their saves could delete the checkpoint that is about to be restored.
        with self._saver.lock:
            restored = restore_newest(
                Candidates(self._checkpoint, self._directory, options, self._listing.newest_first), skip_corrupt
            )
            if restored is None:
                self._require_nothing_else(options)
        if restored is not None:
            self._schedule.restored()
        if restored is None and self._init_fn is not None:
            self._init_fn()
        return restored

    def _require_nothing_else(self, options: CheckpointOptions | None) -> None:
        """Raises if the directory must not be initialized, and warns of another program's checkpoints, once.

        Args:
          options: they name the process that does the file access.
        """
        found = self._listing.require_nothing_else(options)
        if found is not None and not self._warned:
            self._warned = True
            warnings.warn(found, stacklevel=3)

    def sync(self) -> None:
        """Waits for the save in flight and raises its error, as `Checkpoint.sync` does."""
        self._checkpoint.sync()


def schedule_of(manager: CheckpointManager) -> SaveSchedule:
    """Returns what decides when a manager saves. `PreemptionCheckpointHandler` uses it."""
    return manager._schedule


def options_of(manager: CheckpointManager) -> CheckpointOptions | None:
    """Returns the options of a manager's calls that pass none, with the device of its last save."""
    return manager._access.options
