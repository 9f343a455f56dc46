"""Pauses the cyclic garbage collector while thousands of small objects are made at once."""

import gc
import threading
from contextlib import ContextDecorator
from typing import Any, Self

_lock = threading.Lock()
_inside = 0
_was_enabled = False


# In lower case, because it is used like a function.
class quiet_gc(ContextDecorator):  # noqa: N801
    """Pauses the collector in the block (or function).

    The objects that a save or a restore makes are not garbage, and scanning them costs more than making them. This is a class and not a
    generator with `contextlib.contextmanager`, because the latter sets attributes of exceptions, which some exceptions refuse.
    """

    def __enter__(self) -> Self:
        global _inside, _was_enabled
        with _lock:
            _inside += 1
            if _inside == 1:
                _was_enabled = gc.isenabled()
                gc.disable()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        global _inside
        with _lock:
            _inside -= 1
            if _inside == 0 and _was_enabled:
                gc.enable()
