"""`CheckpointManager`: numbers, intervals and retention (TensorFlow: `tf.train.CheckpointManager`)."""

import copy
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

from jaxckpt._lib.arguments import StrPath, index, positive_int, positive_number, type_name
from jaxckpt.checkpoint import Checkpoint, saver_of
from jaxckpt.directory import paths
from jaxckpt.directory.ask import does_file_access, file_process
from jaxckpt.directory.hooks import ManagerHooks
from jaxckpt.directory.listing import Listing
from jaxckpt.directory.series import CheckpointSeries
from jaxckpt.directory.steps import SavedStep, SavedSteps, step_reader
from jaxckpt.options import CheckpointOptions
from jaxckpt.resuming import Candidates, restore_newest

_logger = logging.getLogger("jaxckpt")


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
    ) -> None:
        """Takes over a directory: finds its checkpoints, and removes the leftovers of saves that were killed.

        Args:
          checkpoint: the Checkpoint to save and restore.
          directory: the directory of the checkpoints. The first save creates it.
          max_to_keep: how many checkpoints to keep, besides preserved ones; None keeps all.
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

        Raises:
          TypeError: an argument has the wrong type.
          ValueError: an argument is out of range, `checkpoint_interval` is given without `step_counter`, `step_counter` can
            never change, or the device does not exist.
        """
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"checkpoint must be a jaxckpt.Checkpoint, got {type_name(checkpoint)}.")
        self._checkpoint = checkpoint
        self._saver = saver_of(checkpoint)
        self._directory = paths.checked_path(directory, "directory")
        self._name = paths.checked_name(checkpoint_name)
        self._checkpoint_interval = positive_int("checkpoint_interval", checkpoint_interval)
        if checkpoint_interval is not None and step_counter is None:
            raise ValueError("checkpoint_interval needs a step_counter that tells the current step.")
        self._current_step = step_reader(step_counter)
        self._has_step_counter = step_counter is not None
        if init_fn is not None and not callable(init_fn):
            raise TypeError(f"init_fn must be callable, got {type(init_fn).__name__}.")
        self._init_fn = init_fn
        self._steps = SavedSteps(
            None if last_checkpoint_step is None else index("last_checkpoint_step", last_checkpoint_step)
        )
        self._options = options
        self._last_device: Any = None
        self._warned = False
        self._series = CheckpointSeries(
            self._name,
            positive_int("max_to_keep", max_to_keep),
            positive_number("keep_checkpoint_every_n_hours", keep_checkpoint_every_n_hours),
        )
        self._listing = Listing(self._series, self._directory)
        file_process(options)
        self._start()

    def _start(self) -> None:
        if not does_file_access(self._options):
            return
        try:
            behind, foreign = self._series.start(self._listing.root())
        except OSError as error:
            # Not an error: a program that only reads may lack the right to write. A later call that has to write raises its own error.
            _logger.warning("Could not remove leftovers and register checkpoints in %s: %s", self._directory, error)
            return
        if behind:
            warnings.warn(
                f"This machine's clock is {behind:g} s behind the time at which a checkpoint in {self._directory} was last preserved. "
                "The manager has registered nothing. Once it saves, it will never delete the checkpoints that are there now.",
                stacklevel=3,
            )
        if foreign is not None:
            self._warned = True
            warnings.warn(str(foreign), stacklevel=3)

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
        return self._checkpoint_interval

    @property
    def last_checkpoint_step(self) -> int | None:
        """The step that counts as saved last. It is updated only if there is a `checkpoint_interval`."""
        return self._steps.last

    @property
    def checkpoints(self) -> list[str]:
        """Paths of the listed checkpoints, oldest first, without preserved ones and without those that other programs deleted.

        Raises:
          OSError: the directory cannot be read.
        """
        return self._listing.checkpoints(self._options_for_reading())

    def _options_for_reading(self) -> CheckpointOptions | None:
        """Returns the manager's options. If they do not name an IO process, the one of the last save is added."""
        device = None if self._options is None else self._options.experimental_io_device
        if device is not None or self._last_device is None:
            return self._options
        options = CheckpointOptions() if self._options is None else copy.copy(self._options)
        options.experimental_io_device = self._last_device
        return options

    @property
    def latest_checkpoint(self) -> str | None:
        """Path of the checkpoint that was saved last and still exists; None if there is none.

        If the directory holds no checkpoint of the manager's name, this is what `jaxckpt.latest_checkpoint` returns.

        Raises:
          OSError: the directory cannot be read.
        """
        return self._listing.latest(self._options_for_reading())

    def save(
        self,
        checkpoint_number: int | None = None,
        check_interval: bool = True,
        options: CheckpointOptions | None = None,
    ) -> str | None:
        """Saves a checkpoint, unless `checkpoint_interval` steps have not passed yet, and deletes old checkpoints.

        Args:
          checkpoint_number: the number of the checkpoint; a checkpoint that has it is replaced. None: the number is `save_counter`
            + 1 or, if a checkpoint has that number, the highest existing number + 1.
          check_interval: whether to respect `checkpoint_interval`. False saves earlier too, but never the same step twice.
          options: how to save; None for the manager's options.

        Returns:
          Path of the checkpoint; None if none was due.

        Raises:
          BaseException: as `Checkpoint.save`. A step whose save failed does not count as saved. An asynchronous save that fails
            later has used up its number.
        """
        # First of all: a call that is traced must be refused also when no checkpoint is due.
        self._saver.refuse_tracing("save")
        options = self._options if options is None else options
        file_process(options)
        number = None if checkpoint_number is None else index("checkpoint_number", checkpoint_number)
        if number is not None and number < 0:
            raise ValueError(f"checkpoint_number must not be negative, got {number}.")
        device = None if options is None else options.experimental_io_device
        step = None
        if self._checkpoint_interval is not None:
            step = self._steps.begin(self._current_step(), self._checkpoint_interval if check_interval else None)
            if step is None:
                return None
        hooks = ManagerHooks(self._series, self._steps, step)
        try:
            path = self._saver.save(
                os.path.join(self._directory, self._name),
                options,
                hooks,
                number=number,
                step=self._step_number(step),
            )
        except BaseException:
            if step is not None:
                self._steps.fail(step)
            if hooks.is_saved:
                self._last_device = device
            raise
        self._last_device = device
        return path

    def _step_number(self, step: SavedStep | None) -> int | None:
        """Returns the current step; None without a `step_counter`.

        Args:
          step: the step that was read for the interval; None if there is no interval.
        """
        if step is not None:
            return step.step
        return self._current_step() if self._has_step_counter else None

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
        options = self._options_for_reading() if options is None else options
        file_process(options)
        # The lock keeps other threads from saving now: their saves could delete the checkpoint that is about to be restored.
        with self._saver.lock:
            restored = restore_newest(
                Candidates(self._checkpoint, self._directory, options, self._listing.newest_first), skip_corrupt
            )
            if restored is None:
                self._require_nothing_else(options)
        if restored is not None and self._checkpoint_interval is not None:
            self._steps.restored(self._current_step())
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
