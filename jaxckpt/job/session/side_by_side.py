"""Calls a function for several processes at once: one that does not answer must not keep the others waiting."""

import threading
import time
from collections.abc import Callable, Iterable

from jaxckpt._lib.uninterrupted import start


def side_by_side(one: Callable[[int], None], processes: Iterable[int], secs: float | None = None) -> None:
    """Calls a function for each process, on a thread of its own, and waits for the threads.

    Args:
      one: takes the index of a process. It must not raise.
      processes: indices of the processes.
      secs: how long to wait for the threads at most, in seconds; None for as long as it takes.
    """
    threads = [
        threading.Thread(target=one, args=(process,), name=f"jaxckpt process {process}", daemon=True)
        for process in processes
    ]
    for thread in threads:
        start(thread)
    end = None if secs is None else time.monotonic() + secs
    for thread in threads:
        thread.join(None if end is None else max(0.0, end - time.monotonic()))
