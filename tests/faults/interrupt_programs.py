"""What the processes of a job run whose peers hang while the user presses Ctrl-C."""

import os
import signal
import threading
import time
from unittest import mock

import fault_programs
import jax

import jaxckpt
from jaxckpt import testing
from jaxckpt.job.session import peer

SECS = 60


def hang(prefix: str, io: int, action: str, place: str) -> fault_programs.Outcome:
    """Makes a call in which process 1 stops (SIGSTOP) and process 0, the IO process, is interrupted twice.

    Args:
      prefix: what is written or restored.
      io: the IO process, 0.
      action: "write" or "restore".
      place: the method of `Peer` in which process 1 stops.
    """
    checkpoint = jaxckpt.Checkpoint(**fault_programs.tree(2))
    settings = fault_programs.options(io, SECS)
    work = {
        "write": lambda: checkpoint.write(prefix, settings),
        "restore": lambda: checkpoint.restore(prefix, settings),
    }
    if jax.process_index() == 1:
        original = getattr(peer.Peer, place)

        def stop(*args: object, **kwargs: object) -> object:
            os.kill(os.getpid(), signal.SIGSTOP)
            return original(*args, **kwargs)

        with mock.patch.object(peer.Peer, place, stop):
            return fault_programs.outcome(work[action])
    second: list[float] = []

    def press() -> None:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.5)
        second.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    found: fault_programs.Outcome | None = None
    try:
        thread.start()
        found = fault_programs.outcome(work[action])
        ended = time.monotonic()
        thread.join()
    except KeyboardInterrupt:
        # The call had ended before the second one.
        thread.join()
    assert found is not None
    found["after second"] = ended - second[0] if second and second[0] < ended else None
    testing.signal("ended")
    return found


def prepare(prefix: str) -> None:
    """Writes what is restored."""
    jaxckpt.Checkpoint(**fault_programs.tree(1)).write(prefix, fault_programs.options(0, SECS))


def check(prefix: str) -> float:
    """Restores what was written, and returns its version."""
    checkpoint = jaxckpt.Checkpoint(**fault_programs.tree(-1))
    checkpoint.restore(prefix, fault_programs.options(0, SECS)).assert_consumed()
    return float(checkpoint.step)
