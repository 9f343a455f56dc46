"""Keeps the cyclic garbage collector still while thousands of small objects are made at once."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_was_enabled = False


@contextmanager
def quiet_gc() -> Iterator[None]:
    """Pauses the collector in the block (or function): what a save or restore makes is no garbage, and to look through it costs more
    than to make it."""
    global _inside, _was_enabled
    with _lock:
        _inside += 1
        if _inside == 1:
            _was_enabled = gc.isenabled()
            gc.disable()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _was_enabled:
                gc.enable()
