"""Tells about restores and deletions: a line of the log and events for each.

Their errors are not reported here: the caller gets them. The context managers are classes, because a generator with
contextlib.contextmanager sets attributes of exceptions, which some exception classes refuse.
"""

import time
from types import TracebackType

from jaxckpt._lib.output import human_bytes, human_seconds
from jaxckpt._lib.transfer import Transfer
from jaxckpt.telemetry import events
from jaxckpt.telemetry.progress import GoingOn


class restore:  # noqa: N801
    """Surrounds a restore, and returns what counts its bytes."""

    def __init__(self, action: str, path: str) -> None:
        """Makes the context manager.

        Args:
          action: the call: "restore" or "read".
          path: path of the checkpoint.
        """
        self._path = path
        self._doing, self._done = ("restoring", "restored") if action == "restore" else ("reading", "read")
        self._transfer = Transfer()
        self._began = time.monotonic()
        self._going_on = GoingOn(f"{self._doing} {path}", self._transfer)

    def __enter__(self) -> Transfer:
        self._going_on.__enter__()
        return self._transfer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._going_on.__exit__(kind, error, trace)
        if error is not None:
            return
        took, nbytes = time.monotonic() - self._began, self._transfer.total
        events.LOGGER.info("%s %s: %s in %s", self._done, self._path, human_bytes(nbytes), human_seconds(took))
        events.duration(events.RESTORE_SECS, took, "sync")
        events.scalar(events.RESTORE_BYTES, nbytes, "sync")


class deletion:  # noqa: N801
    """Surrounds the deletion of a checkpoint."""

    def __init__(self, path: str, nbytes: int | None) -> None:
        """Makes the context manager.

        Args:
          path: path of the checkpoint.
          nbytes: size of its arrays; None if it is unknown.
        """
        self._what = path if nbytes is None else f"{path} ({human_bytes(nbytes)})"
        self._began = time.monotonic()
        self._going_on = GoingOn(f"deleting {self._what}")

    def __enter__(self) -> None:
        self._going_on.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._going_on.__exit__(kind, error, trace)
        if error is not None:
            return
        took = time.monotonic() - self._began
        events.LOGGER.info("deleted %s in %s", self._what, human_seconds(took))
        events.duration(events.DELETE_SECS, took, events.mode_here())
