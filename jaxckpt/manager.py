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

    It manages the checkpoints ``<checkpoint_name>-<number>`` that the state file ``checkpoint`` lists, whichever program saved them
    (a plain `Checkpoint.save`, an earlier manager), and what a program that was killed committed after them and could not
    register any more. The state file gives their order and is read again by every call; one that was edited is obeyed.
    Other names in the directory, and what was taken out of the list, are left alone.

    A preserved checkpoint (`keep_checkpoint_every_n_hours`) leaves the list and is never deleted, by this manager or a
    later one. Checkpoints are deleted only after the new one is committed and its callbacks have run; one that cannot
    be deleted stays listed (a warning is logged) and is tried again after the next save.
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
        """Takes over the management of a directory: finds what is there, and removes the leftovers of killed saves.

        Args:
          checkpoint: what to save and restore.
          directory: where; made by the first save.
          max_to_keep: how many checkpoints to keep, besides preserved ones; None keeps all.
          keep_checkpoint_every_n_hours: a checkpoint that is due for deletion is preserved instead if it was saved at
            least this long after the last preserved one (or after the first manager of the directory started). None
            preserves none.
          checkpoint_name: checkpoints are called ``<checkpoint_name>-<number>``.
          step_counter: the current step: a function without arguments (``lambda: checkpoint.step``), or an object with
            `__int__` or `__index__` that the program changes in place (an NNX Variable). A number or jax.Array can
            never change, so it is refused.
          checkpoint_interval: `save` writes nothing before this many steps have passed since the last save. Needs
            `step_counter`.
          init_fn: called by `restore_or_initialize` when there is nothing to restore.
          last_checkpoint_step: the step that counts as saved last; None if none does.
          options: what `save` and `restore_or_initialize` use when they are given none.

        Raises:
          TypeError: an argument of the wrong type.
          ValueError: an argument out of range, `checkpoint_interval` without `step_counter`, a `step_counter` that can
            never change, or a device that does not exist.
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
            # A program that only reads need not be able to write. A call that needs what failed says so.
            _logger.warning("Could not put %s in order: %s", self._directory, error)
            return
        if behind:
            warnings.warn(
                f"The clock is {behind:g} s behind the time at which a checkpoint was last preserved "
                f"in {self._directory}. Nothing was registered; once this manager saves, what is there now is kept for ever.",
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
        """Where the checkpoints are, as it was given."""
        return self._directory

    @property
    def checkpoint_interval(self) -> int | None:
        """Least number of steps between two saves."""
        return self._checkpoint_interval

    @property
    def last_checkpoint_step(self) -> int | None:
        """The step that counts as saved last; followed only with `checkpoint_interval`."""
        return self._steps.last

    @property
    def checkpoints(self) -> list[str]:
        """Paths of the listed checkpoints, oldest first; without preserved ones and those that other programs deleted.

        Raises:
          OSError: the directory cannot be read.
        """
        return self._listing.checkpoints(self._options_for_reading())

    def _options_for_reading(self) -> CheckpointOptions | None:
        """The manager's options; if they name no IO process, with that of the last save."""
        device = None if self._options is None else self._options.experimental_io_device
        if device is not None or self._last_device is None:
            return self._options
        options = CheckpointOptions() if self._options is None else copy.copy(self._options)
        options.experimental_io_device = self._last_device
        return options

    @property
    def latest_checkpoint(self) -> str | None:
        """Path of the checkpoint that was saved last and still exists; None if there is none.

        Where the directory holds nothing under the manager's name, it is that of `jaxckpt.latest_checkpoint`.

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
        """Saves a checkpoint, unless it is too early for one, and deletes old ones.

        Args:
          checkpoint_number: an existing checkpoint of that number is replaced. By default the number is `save_counter`
            + 1, or the one after the highest that exists if that one is taken.
          check_interval: False saves also before `checkpoint_interval` steps have passed, but never the same step
            twice.
          options: how; by default those of the manager.

        Returns:
          Path of the checkpoint; None if none was due.

        Raises:
          As `Checkpoint.save`. A step whose save failed does not count as saved. An asynchronous save that fails later has used
            up its number.
        """
        # Before a step is asked for: where none is due, tracing would go on in silence.
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
        """The current step, also where there is no interval for which it was read; None without a counter."""
        if step is not None:
            return step.step
        return self._current_step() if self._has_step_counter else None

    def restore_or_initialize(
        self, options: CheckpointOptions | None = None, *, skip_corrupt: bool = False
    ) -> str | None:
        """Restores the latest checkpoint; if there is none, calls `init_fn`. Waits for a save in flight first.

        After a restore the current step counts as saved. If another program deletes the checkpoint meanwhile, the newest that
        is there then is restored.

        Args:
          options: how; by default those of the manager.
          skip_corrupt: if the latest checkpoint cannot be restored because it is damaged, warn and take the newest other one
            that verifies, preserved ones included. Nothing is initialized over damaged checkpoints: if none verifies, the
            error of the latest one is raised.

        Returns:
          Path of the checkpoint that was restored; None if there was none. Checkpoints of another program (Orbax, Flax) in
          the directory are not restored; a warning says how to go on from them.

        Raises:
          CheckpointError: the directory holds TensorFlow's checkpoints, and none of this manager.
          FileNotFoundError: all checkpoints were deleted while they were looked up or read.
          CorruptCheckpointError: the latest checkpoint is damaged (with `skip_corrupt`: all are).
          OSError: the directory cannot be read.
          As `Checkpoint.restore`, and what a save in flight raised.
        """
        self._saver.refuse_tracing("restore_or_initialize")
        options = self._options_for_reading() if options is None else options
        file_process(options)
        # No save of another thread may start, and delete what is about to be restored, while the latest one is looked up.
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
        """Nothing was restored: raises if it must not be initialized, and warns of another program's checkpoints, once."""
        found = self._listing.require_nothing_else(options)
        if found is not None and not self._warned:
            self._warned = True
            warnings.warn(found, stacklevel=3)

    def sync(self) -> None:
        """Waits for the save in flight and raises its error, as `Checkpoint.sync`."""
        self._checkpoint.sync()
