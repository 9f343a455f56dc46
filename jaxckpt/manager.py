"""`CheckpointManager`: numbers, intervals and retention (TensorFlow: `tf.train.CheckpointManager`)."""

import functools
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from jaxckpt import paths, state_file
from jaxckpt.arguments import index, positive_int, positive_number
from jaxckpt.checkpoint import Checkpoint
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.managed import ManagedDirectory
from jaxckpt.multihost.ask import ask, does_file_access
from jaxckpt.options import CheckpointOptions
from jaxckpt.saving import SaveHooks
from jaxckpt.steps import SavedStep, SavedSteps, step_reader
from jaxckpt.storage import CheckpointPath

_logger = logging.getLogger("jaxckpt")
_Result = TypeVar("_Result")


class CheckpointManager:
    """Saves numbered checkpoints into a directory and deletes old ones (TensorFlow: `tf.train.CheckpointManager`).

    What it manages is every ``<checkpoint_name>-<number>`` in the directory, whoever saved it: a plain
    `Checkpoint.save`, an earlier manager, or a program that was killed before it could register its last checkpoint.
    The state file ``checkpoint`` gives their order and is read again by every call. Other names in the directory are
    left alone.

    A preserved checkpoint (`keep_checkpoint_every_n_hours`) leaves the list and is never deleted, by this manager or a
    later one. Checkpoints are deleted only after the new one is committed and its callbacks have run; one that cannot
    be deleted stays listed (a warning is logged) and is tried again after the next save.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: str | os.PathLike[str],
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
          step_counter: the current step: a function without arguments, or anything that `int()` takes (a jax scalar, an
            NNX Variable).
          checkpoint_interval: `save` writes nothing before this many steps have passed since the last save. Needs
            `step_counter`.
          init_fn: called by `restore_or_initialize` when there is nothing to restore.
          last_checkpoint_step: the step that counts as saved last; None if none does.
          options: what `save` and `restore_or_initialize` use when they are given none.

        Raises:
          TypeError: an argument of the wrong type.
          ValueError: an argument out of range, `checkpoint_interval` without `step_counter`, or a device that does not
            exist.
        """
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"checkpoint must be a jaxckpt.Checkpoint, got {type(checkpoint).__name__}.")
        self._checkpoint = checkpoint
        self._directory = paths.checked_path(directory, "directory")
        self._name = _checked_name(checkpoint_name)
        self._checkpoint_interval = positive_int("checkpoint_interval", checkpoint_interval)
        if checkpoint_interval is not None and step_counter is None:
            raise ValueError("checkpoint_interval needs a step_counter that tells the current step.")
        self._current_step = step_reader(step_counter)
        if init_fn is not None and not callable(init_fn):
            raise TypeError(f"init_fn must be callable, got {type(init_fn).__name__}.")
        self._init_fn = init_fn
        self._steps = SavedSteps(
            None if last_checkpoint_step is None else index("last_checkpoint_step", last_checkpoint_step)
        )
        self._options = options
        self._managed = ManagedDirectory(
            self._name,
            positive_int("max_to_keep", max_to_keep),
            positive_number("keep_checkpoint_every_n_hours", keep_checkpoint_every_n_hours),
        )
        state_file.resolve(options)
        self._start()

    def _start(self) -> None:
        if not does_file_access(self._options):
            return
        try:
            behind = self._managed.start(self._root())
        except OSError as error:
            # Whoever only reads need not be able to write. A call that needs what failed says so.
            _logger.warning("Could not put %s in order: %s", self._directory, error)
            return
        if behind:
            warnings.warn(
                f"The clock is {behind:g} s behind the time at which a checkpoint was last preserved "
                f"in {self._directory}; what is there now will not be deleted.",
                stacklevel=3,
            )

    def _root(self) -> str:
        return paths.absolute(self._directory)

    @property
    def checkpoint(self) -> Checkpoint:
        """What the manager saves and restores."""
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
        """Paths of the managed checkpoints, oldest first; without preserved ones and what others have deleted.

        Raises:
          OSError: the directory cannot be read.
        """
        names = self._ask("CheckpointManager.checkpoints", lambda: self._managed.listed(self._root()))
        return [os.path.join(self._directory, name) for name in names]

    def _ask(self, action: str, work: Callable[[], _Result]) -> _Result:
        return ask(action, self._directory, self._options, work)

    @property
    def latest_checkpoint(self) -> str | None:
        """Path of the checkpoint that was saved last and still exists; None if there is none.

        Where the directory holds nothing under the manager's name, it is that of `jaxckpt.latest_checkpoint`.

        Raises:
          OSError: the directory cannot be read.
        """
        from jaxckpt import storage

        def latest() -> str | None:
            candidates = (os.path.join(self._directory, name) for name in self._managed.newest_first(self._root()))
            return next((path for path in candidates if storage.is_checkpoint(path)), None)

        return self._ask("CheckpointManager.latest_checkpoint", latest)

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
        options = self._options if options is None else options
        state_file.resolve(options)
        number = None if checkpoint_number is None else index("checkpoint_number", checkpoint_number)
        if number is not None and number < 0:
            raise ValueError(f"checkpoint_number must not be negative, got {number}.")
        step = None
        if self._checkpoint_interval is not None:
            step = self._steps.begin(self._current_step(), self._checkpoint_interval if check_interval else None)
            if step is None:
                return None
        hooks = _Hooks(self._managed, self._steps, step)
        try:
            return self._checkpoint._save(
                os.path.join(self._directory, self._name), options, number=number, hooks=hooks
            )
        except BaseException:
            if step is not None:
                self._steps.fail(step)
            raise

    def restore_or_initialize(
        self, options: CheckpointOptions | None = None, *, skip_corrupt: bool = False
    ) -> str | None:
        """Restores the latest checkpoint; if there is none, calls `init_fn`. Waits for a save in flight first.

        After a restore the current step counts as saved.

        Args:
          options: how; by default those of the manager.
          skip_corrupt: if the latest checkpoint is damaged, warn and take the newest one that verifies, preserved ones
            included. Nothing is initialized over damaged checkpoints: if none verifies, the error of the latest one is
            raised.

        Returns:
          Path of the checkpoint that was restored; None if there was none.

        Raises:
          CorruptCheckpointError: the latest checkpoint is damaged (with `skip_corrupt`: all are).
          OSError: the directory cannot be read.
          As `Checkpoint.restore`, and what a save in flight raised.
        """
        options = self._options if options is None else options
        state_file.resolve(options)
        # No save of another thread may start, and delete what is about to be restored, while the latest one is looked up.
        with self._checkpoint._lock:
            restored = self._restore_newest(options, skip_corrupt)
        if restored is None and self._init_fn is not None:
            self._init_fn()
        return restored

    def _restore_newest(self, options: CheckpointOptions | None, skip_corrupt: bool) -> str | None:
        def together(work: Callable[[], _Result], before: Callable[[], None] = lambda: None) -> _Result:
            return ask("restore_or_initialize", self._directory, options, work, before=before, always=True)

        damage: CorruptCheckpointError | None = None
        for name in together(lambda: list(self._managed.newest_first(self._root())), self._checkpoint.sync):
            path = os.path.join(self._directory, name)
            verify = damage is not None
            try:
                together(functools.partial(_require_sound, path, verify=verify))
                self._checkpoint.restore(path, options)
            except CorruptCheckpointError as error:
                if not skip_corrupt:
                    raise
                damage = damage or error
                warnings.warn(f"Skipping the damaged checkpoint {path}: {error}", stacklevel=3)
                continue
            if self._checkpoint_interval is not None:
                self._steps.restored(self._current_step())
            return path
        if damage is not None:
            raise damage
        return None

    def sync(self) -> None:
        """Waits for the save in flight and raises its error, as `Checkpoint.sync`."""
        self._checkpoint.sync()


class _Hooks(SaveHooks):
    """One save of a manager.

    Nothing here waits for the Checkpoint, whose lock another thread may hold while it waits for this save.
    """

    def __init__(self, managed: ManagedDirectory, steps: SavedSteps, step: SavedStep | None) -> None:
        self._managed = managed
        self._steps = steps
        self._step = step

    def committed(self, path: CheckpointPath) -> None:
        self._managed.register(path)

    def saved(self) -> None:
        if self._step is not None:
            self._steps.commit(self._step)

    def finished(self, path: CheckpointPath) -> None:
        self._managed.retain(path.directory)

    def failed(self, error: BaseException) -> None:
        if self._step is not None:
            self._steps.fail(self._step)


def _require_sound(path: str, *, verify: bool) -> None:
    from jaxckpt import storage

    if not storage.is_checkpoint(path):
        raise CorruptCheckpointError(
            f"{path} is listed as a checkpoint, but what marks it as one is missing. "
            "Remove it to go back to an older one, or pass skip_corrupt=True."
        )
    if verify:
        report = storage.verify(path)
        if not report.ok:
            raise CorruptCheckpointError(str(report))


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"checkpoint_name must be a str, got {type(name).__name__}.")
    if not name or "\0" in name or os.path.basename(name) != name:
        raise ValueError(f"checkpoint_name must be the name of a file, without a directory, got {name!r}.")
    return name
