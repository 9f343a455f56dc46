"""Keeps lines of Orbax out of the log: what jaxckpt tells itself, in words about the program's paths and not about temporary ones.

Only the threads on which jaxckpt drives Orbax are quiet. A program's own calls of Orbax log as before.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator

from jaxckpt.storage import owner

_thread = threading.local()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops the lines up to INFO that Orbax logs on this thread inside the block."""
    install()
    before = getattr(_thread, "is_quiet", False)
    _thread.is_quiet = True
    try:
        yield
    finally:
        _thread.is_quiet = before


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
