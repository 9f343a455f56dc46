"""Lines about what takes long: one every 10 s, with how far it is."""

import logging
import threading
import time
import weakref
from types import TracebackType
from typing import Self

from jaxckpt._lib.output import human_bytes, human_seconds
from jaxckpt._lib.transfer import Transfer
from jaxckpt._lib.uninterrupted import start
from jaxckpt.telemetry.events import LOGGER

# Tests lower it.
EVERY_SECS = 10.0


class GoingOn:
    """A context manager around work that may take long. While it goes on, a line of the log every 10 s tells how far it is.

    The lines have the level INFO. If the logger does not want them when the work begins, nothing is started.
    """

    def __init__(self, doing: str, transfer: Transfer | None = None) -> None:
        """Creates the context manager.

        Args:
          doing: what goes on, such as "saving run/ckpt-7".
          transfer: counts the bytes of the work; None if it has none.
        """
        self._doing = doing
        self._transfer = transfer
        self._began = 0.0
        # Held while the work goes on. Not an Event: see CONTRIBUTING.md and `jaxckpt.saving.background`.
        self._running = threading.Lock()

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._running.acquire()
        if LOGGER.isEnabledFor(logging.INFO):
            # The thread does not keep this object alive: an interrupt may drop it before `__exit__` is called.
            arguments = (weakref.ref(self), self._running, EVERY_SECS)
            try:
                start(threading.Thread(target=_tell, args=arguments, name="jaxckpt progress", daemon=True))
            except RuntimeError:
                # Python starts no threads any more, at the end of a program. The work goes on without the lines.
                LOGGER.info("%s: no lines about its progress, because no thread can be started any more", self._doing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.release()

    def tell(self) -> None:
        """Logs how far the work is."""
        transfer, took = self._transfer, human_seconds(time.monotonic() - self._began)
        if transfer is None or not transfer.total:
            LOGGER.info("%s has taken %s so far", self._doing, took)
            return
        # Chunks at the edge of an array are counted whole.
        done = min(transfer.done, transfer.total)
        LOGGER.info("%s: %s of %s after %s", self._doing, human_bytes(done), human_bytes(transfer.total), took)


def _tell(work: "weakref.ref[GoingOn]", running: threading.Lock, every: float) -> None:
    while not running.acquire(timeout=every):
        going_on = work()
        if going_on is None:
            return
        going_on.tell()
        del going_on
    running.release()
