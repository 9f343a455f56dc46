"""One call that the processes of a job make together: who is connected to whom, and how all of them reach the same outcome.

The process that does the file access for the others is the *center*; the others are its *peers*. While the center works, a peer answers
what the center asks of it (the pieces of its arrays, say). An error of one process reaches all of them through the center.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxckpt.job.protocol.parts import Message

# A message, and the arrays whose bytes follow, or None.
Answer = tuple[Message, Sequence[np.ndarray] | None]
# What to do for the center, or for a peer (its index), by the class of a request.
Handlers = Mapping[type[Message], Callable[[Any], Answer]]
PeerHandlers = Mapping[type[Message], Callable[[int, Any], Answer]]
Result = TypeVar("Result")
LINGER_SECS = 1.0


class Session:
    """The processes of one call, as this process sees them. This class is a job of one process: there is nobody to ask.

    Attributes:
      process: index of this process.
      is_center: whether this process does the file access of the call.
      several: whether there are other processes.
      facts: what the center told everyone when they met.
    """

    def __init__(self, process: int = 0, facts: Mapping[str, Any] | None = None) -> None:
        """Makes a session.

        Args:
          process: index of this process.
          facts: what the center told everyone when they met.
        """
        self.process = process
        self.is_center = True
        self.several = False
        self.facts: dict[str, Any] = dict(facts or {})

    def decide(self, work: Callable[[], Result], handlers: Handlers | None = None, *, asks: bool = False) -> Result:
        """Has the center do `work`, and returns its result on every process.

        Args:
          work: called on the center only; its result has to fit into JSON where there are other processes.
          handlers: what a peer does for the center meanwhile, by the class of a request.
          asks: whether `work` asks the peers. Then an interrupt does not come in the midst of it, but gives it up.

        Raises:
          BaseException: on the center what `work` raised, on the others a `ProcessError` of the same kind.
        """
        return work()

    def vote(self, error: BaseException | None, fallback_error: BaseException | None = None) -> None:
        """Ends a step that every process does for itself: it has succeeded where it has succeeded everywhere.

        Args:
          error: what this process failed with, or None.
          fallback_error: raised only if no process reported an error of its own.

        Raises:
          BaseException: `error`, or a `ProcessError` for that of another process.
        """
        if error is not None:
            raise error
        if fallback_error is not None:
            raise fallback_error

    def protected(self, work: Callable[[], Result]) -> Result:
        """Does `work`, which talks to the other processes, where an interrupt gives it up between two messages.

        Args:
          work: bounded; it runs on another thread if this is the main thread.

        Raises:
          BaseException: the interrupt, or what `work` raised.
        """
        return work()

    def confirm(self) -> None:
        """Makes sure, on the center in the midst of `decide`, that every peer is still there and waits for the outcome.

        Before a step that cannot be taken back: a peer that has been lost, or has given up, must not learn of it from the disk.

        Raises:
          ProcessError: names the peers that are not.
        """

    def check(self) -> None:
        """Makes sure, on the center, that no connection has been lost, as far as that is known; asks nobody. Raises as `confirm`."""

    def close(self) -> None:
        """Ends the call. Idempotent."""

    def adopt(self) -> None:
        """Marks the session as owned; the owner calls close().

        If an interrupt drops an unowned session, its heartbeat stops after two beats, so that peers don't hang.
        """

    def __enter__(self) -> "Session":
        self.adopt()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.close()


def meaningless(request: Message, asking: int, asked: int) -> str:
    """Returns the text of the error for a request that this step of the call has no handler for."""
    return f"Process {asking} asked process {asked} for {type(request).__name__}, which has no meaning in this step of the call."


def patience(timeout: float) -> float:
    """Returns how much longer to wait for a process that itself waits for another, in order to name that one.

    Args:
      timeout: seconds that the process waits for the other.
    """
    return max(2.0, min(30.0, timeout / 4))
