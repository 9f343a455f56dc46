"""The notice that this job is about to be ended: SIGTERM to one of its processes.

In a job of several processes, JAX's preemption service takes the signal, and all processes learn of it at the same call (the *sync
point* of `jax.experimental.multihost_utils.reached_preemption_sync_point`). In a program without ``jax.distributed``, a signal handler
takes it.
"""

import signal
import threading
import time
import warnings
from types import FrameType
from typing import Any

from jax.experimental import multihost_utils

from jaxckpt.storage import compat


class PreemptionNotice:
    """Tells, at the same call on every process, that the job is about to be ended. A process has one, because signals belong to it.

    Attributes:
      at: when this process learned of it, by `time.monotonic`; None before.
    """

    def __init__(self) -> None:
        """Does not touch any signal yet."""
        self.at: float | None = None
        self._calls = 0
        self._signalled = False
        self._listens = False
        self._earlier: Any = signal.SIG_DFL

    def listen(self) -> None:
        """Begins to wait for SIGTERM. Idempotent.

        Raises:
          RuntimeError: JAX's preemption service is turned off, or this is not the main thread, which alone may handle signals.
        """
        if compat.coordination() is not None:
            self._check_service()
            return
        if self._listens:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "A PreemptionCheckpointHandler must be made on the main thread, which alone may handle signals."
            )
        self.at, self._signalled, self._listens = None, False, True
        # None: a handler that was not set from Python. It cannot be called or set again.
        self._earlier = signal.signal(signal.SIGTERM, self._take) or signal.SIG_DFL

    def stop(self) -> None:
        """Gives SIGTERM back to its earlier handler. If that is the default, a signal that `poll` has not returned ends the process now.

        In a job, JAX's preemption service keeps the signal. On another thread than the main one, nothing changes.
        """
        if not self._listens or threading.current_thread() is not threading.main_thread():
            return
        self._listens = False
        signal.signal(signal.SIGTERM, self._earlier)
        if self._signalled and self.at is None and self._earlier == signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)

    def _check_service(self) -> None:
        try:
            # A call without effect: it has the number of the last call.
            multihost_utils.reached_preemption_sync_point(self._calls)
        except RuntimeError as error:
            raise RuntimeError(
                "JAX's preemption service is turned off, so no process would hear of a SIGTERM to another one. Set "
                'jax.config.update("jax_enable_preemption_service", True) before jax.distributed.initialize().'
            ) from error
        if callable(signal.getsignal(signal.SIGTERM)):
            warnings.warn(
                "The program has a handler for SIGTERM of its own. If it was set after jax.distributed.initialize(), JAX's preemption "
                "service never sees the signal, and no checkpoint is saved: set it before.",
                RuntimeWarning,
                stacklevel=4,
            )

    def _take(self, number: int, frame: FrameType | None) -> None:
        """Handles the first signal. The next one has its default effect: it ends the process at once."""
        self._signalled = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if callable(self._earlier):
            self._earlier(number, frame)

    @property
    def reached(self) -> bool:
        """Whether `poll` has returned True."""
        return self.at is not None

    def poll(self) -> bool:
        """Returns whether the job is about to be ended. Once it has returned True, it always does.

        In a job of several processes, all processes must call it in the same order, and get the same answer.
        """
        if self.at is not None:
            return True
        self._calls += 1
        if compat.coordination() is None:
            found = self._signalled
        else:
            try:
                found = multihost_utils.reached_preemption_sync_point(self._calls)
            except RuntimeError:
                # The service is turned off. `listen` has refused that where it matters.
                return False
            if found and threading.current_thread() is threading.main_thread():
                # JAX's handler would swallow a second signal.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if found:
            self.at = time.monotonic()
        return found


NOTICE = PreemptionNotice()
