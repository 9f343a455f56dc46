"""Keeps lines of Orbax out of the log: what jaxckpt tells itself, in words about the program's paths and not about temporary ones.

Only the threads on which jaxckpt drives Orbax are quiet. A program's own calls of Orbax log as before.
"""

import functools
import logging
import threading

from jaxckpt.storage import owner

_thread = threading.local()


# Not a generator with contextlib.contextmanager: that sets attributes of exceptions, which some exception classes refuse.
class quiet:  # noqa: N801
    """Drops the lines up to INFO that Orbax logs inside the block, on the thread that enters it."""

    def __enter__(self) -> None:
        install()
        self._before = getattr(_thread, "is_quiet", False)
        _thread.is_quiet = True

    def __exit__(self, *error: object) -> None:
        _thread.is_quiet = self._before


@functools.cache
def install() -> None:
    """Filters Orbax's log, which is that of absl, from now on."""
    logging.getLogger("absl").addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    if record.levelno <= logging.INFO:
        # A thread that Orbax starts may be unknown to us, but temporary directories of this name are ours.
        return not getattr(_thread, "is_quiet", False) and owner.MARK not in record.getMessage()
    # The traceback of a failed save: the caller gets the error anyway.
    return "Failed to run" not in str(record.msg) or "Commit operations" not in str(record.msg)
