"""What the processes of a job run whose peers hang while the user presses Ctrl-C."""

import os
import signal
import threading
from unittest import mock

import fault_programs
import jax

import jaxckpt
from jaxckpt import testing
from jaxckpt.job.session import peer

SECS = 120
# A first interrupt that does not end the call within so many seconds is followed by a second one.
AGAIN_SECS = 1.5


def hang(prefix: str, io: int, action: str, place: str) -> fault_programs.Outcome:
    """Makes a call in which process 1 stops (SIGSTOP), and process 0, the IO process, is interrupted when the test releases "interrupt".

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
    inside, over = threading.Event(), threading.Event()

    def raise_inside(*_: object) -> None:
        if inside.is_set():
            raise KeyboardInterrupt

    def press() -> None:
        testing.pause("interrupt")
        os.kill(os.getpid(), signal.SIGINT)
        if not over.wait(AGAIN_SECS):
            os.kill(os.getpid(), signal.SIGINT)

    def call() -> object:
        try:
            inside.set()
            return work[action]()
        finally:
            inside.clear()

    before = signal.signal(signal.SIGINT, raise_inside)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        found = fault_programs.outcome(call)
        over.set()
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
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
