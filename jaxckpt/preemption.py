"""`PreemptionCheckpointHandler`: saves when the job is about to be ended, and ends it.

TensorFlow: `tf.distribute.experimental.PreemptionCheckpointHandler` and `TerminationConfig`.
"""

import copy
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from jaxckpt._lib.arguments import positive_number, type_name
from jaxckpt.job.preemption import NOTICE
from jaxckpt.manager import CheckpointManager, options_of, schedule_of
from jaxckpt.options import CheckpointOptions

_logger = logging.getLogger("jaxckpt")
# What a shell reports for a process that SIGTERM ended (128 + 15). SLURM and Kubernetes take it for a failure, and start the job again.
EXIT_CODE = 143


@dataclass(frozen=True, kw_only=True)
class TerminationConfig:
    """How a job ends that is preempted (TensorFlow: `tf.distribute.experimental.TerminationConfig`).

    Attributes:
      exit_fn: called without arguments on every process, once the checkpoint is saved; None for ``sys.exit(143)``. If it returns, the
        program goes on, and later calls of the handler do nothing.
      grace_period: how many seconds pass between SIGTERM and the end of the job by force; None if unknown. The save happens at the
        next step in any case: the handler only warns if the last save took longer than this.

    Raises:
      TypeError: a field has the wrong type.
      ValueError: `grace_period` is not positive.
    """

    exit_fn: Callable[[], object] | None = None
    grace_period: float | None = None

    def __post_init__(self) -> None:
        if self.exit_fn is not None and not callable(self.exit_fn):
            raise TypeError(f"exit_fn must be callable, got {type_name(self.exit_fn)}.")
        positive_number("grace_period", self.grace_period)


class PreemptionCheckpointHandler:
    """Saves the current step when the job is about to be ended, and ends it.

    TensorFlow: `tf.distribute.experimental.PreemptionCheckpointHandler`.

    >>> with jaxckpt.PreemptionCheckpointHandler(manager) as handler:
    ...     for batch in batches:
    ...         train_step(batch)
    ...         manager.save()
    ...         handler.save_checkpoint_if_preempted()

    Schedulers (SLURM, Kubernetes, cloud providers) send SIGTERM to a process some time before they kill it. In a job of several
    processes, JAX's preemption service tells all processes of it, and lets them save the same step. In a program without
    ``jax.distributed``, the handler handles the signal, and calls the handler that was set before, too. A second SIGTERM ends the
    process at once.

    Make it after ``jax.distributed.initialize()``, on the main thread. `close`, or the end of the ``with`` block, gives the signal back:
    SIGTERM ends the program again as it did before. A signal that came after the last step takes effect then.
    """

    def __init__(self, manager: CheckpointManager, termination_config: TerminationConfig | None = None) -> None:
        """Begins to wait for SIGTERM.

        Args:
          manager: saves the checkpoint. It needs its own `options` if they name a device (`experimental_io_device`).
          termination_config: how the job ends; None for the defaults.

        Raises:
          TypeError: an argument has the wrong type.
          RuntimeError: JAX's preemption service is turned off in a job, or this is not the main thread.
        """
        if not isinstance(manager, CheckpointManager):
            raise TypeError(f"manager must be a jaxckpt.CheckpointManager, got {type_name(manager)}.")
        if termination_config is not None and not isinstance(termination_config, TerminationConfig):
            raise TypeError(
                f"termination_config must be a jaxckpt.TerminationConfig, got {type_name(termination_config)}."
            )
        self._manager = manager
        self._schedule = schedule_of(manager)
        self._config = termination_config or TerminationConfig()
        self._has_warned = False
        self._has_ended = False
        NOTICE.listen()

    def save_checkpoint_if_preempted(self) -> None:
        """Saves and ends the program if the job is about to be ended; otherwise returns at once.

        Call it once a step, on every process. It finishes the save in flight, saves the current step synchronously, unless that step is
        saved already, and calls `exit_fn`. Neither an interval nor a policy of the manager matters. Before the first step, it
        saves the initial values.

        Raises:
          SystemExit: the job was preempted, and there is no `exit_fn`.
          BaseException: as `CheckpointManager.save`. Then `exit_fn` is not called.
        """
        self._warn_of_slow_saves()
        if self._has_ended or not NOTICE.poll():
            return
        self._save()
        self._has_ended = True
        if self._config.exit_fn is None:
            sys.exit(EXIT_CODE)
        self._config.exit_fn()

    def _warn_of_slow_saves(self) -> None:
        """Warns, once and as soon as it is known, that a save takes longer than there is time."""
        took, grace = self._schedule.last_save_secs, self._config.grace_period
        if self._has_warned or took is None or grace is None or took <= grace:
            return
        self._has_warned = True
        warnings.warn(
            f"The last save took {took:.1f} s, longer than the grace_period of {grace:g} s: after SIGTERM, the checkpoint will probably "
            "not be complete in time, and the job goes on from the one before. Save more often, or ask the scheduler for more time.",
            RuntimeWarning,
            stacklevel=3,
        )

    def _save(self) -> None:
        _logger.warning("SIGTERM: saving the current step, then ending the program.")
        try:
            self._manager.sync()
        except Exception as error:
            # This error would otherwise be raised by the save below, which would then not be written.
            warnings.warn(
                f"The save before failed ({type(error).__name__}: {error}). The current step is saved now.",
                RuntimeWarning,
                stacklevel=3,
            )
        if self._schedule.is_saved():
            return
        options = copy.copy(options_of(self._manager)) or CheckpointOptions()
        options.enable_async = False
        self._manager.save(check_interval=False, options=options)

    def close(self) -> None:
        """Gives SIGTERM back to the handler that it had. A signal that came after the last step takes effect now. Idempotent."""
        if not self._has_ended:
            NOTICE.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
