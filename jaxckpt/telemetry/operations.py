"""Tells about restores and deletions: a line of the log and events for each."""

import contextlib
import time
from collections.abc import Iterator

from jaxckpt._lib.transfer import Transfer
from jaxckpt.telemetry import events, text
from jaxckpt.telemetry.progress import GoingOn


@contextlib.contextmanager
def restore(action: str, path: str) -> Iterator[Transfer]:
    """Surrounds a restore. Yields what counts its bytes. An error is not reported here: the caller gets it.

    Args:
      action: the call: "restore" or "read".
      path: path of the checkpoint.
    """
    began = time.monotonic()
    transfer = Transfer()
    with GoingOn(f"restoring {path}" if action == "restore" else f"reading {path}", transfer):
        yield transfer
    took = time.monotonic() - began
    done = "restored" if action == "restore" else "read"
    events.LOGGER.info("%s %s: %s in %s", done, path, text.size(transfer.total), text.seconds(took))
    events.duration(events.RESTORE_SECS, took, "sync")
    events.scalar(events.RESTORE_BYTES, transfer.total, "sync")


@contextlib.contextmanager
def deletion(path: str, nbytes: int | None) -> Iterator[None]:
    """Surrounds the deletion of a checkpoint. An error is not reported here: the caller handles it.

    Args:
      path: path of the checkpoint.
      nbytes: size of its arrays; None if it is unknown.
    """
    began = time.monotonic()
    size = "" if nbytes is None else f" ({text.size(nbytes)})"
    with GoingOn(f"deleting {path}{size}"):
        yield
    took = time.monotonic() - began
    events.LOGGER.info("deleted %s%s in %s", path, size, text.seconds(took))
    events.duration(events.DELETE_SECS, took, events.mode_here())
