"""One call that the processes of a job make together: who is connected to whom, and how all of them reach the same outcome.

The process that does the file access for the others is the *center*; the others are its *peers*. While the center works, a peer answers
what the center asks of it (the pieces of its arrays, say). Whatever goes wrong on one process reaches all of them through the center.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jaxckpt.job.protocol.wire import Header

Answer = tuple[Header, Any]  # a header, and arrays whose bytes follow, or None
Handler = Callable[[Header], Answer]
Result = TypeVar("Result")
LINGER_SECS = 1.0
CONFIRM = "still there?"


class Session:
    """The processes of one call, as this process sees them. This class is a job of one process: there is nobody to ask.

    Attributes:
      process: index of this process.
      is_center: whether this process does the file access of the call.
      several: whether there are other processes.
      facts: what the center told everyone when they met.
    """

    def __init__(self, process: int = 0, facts: Mapping[str, Any] | None = None) -> None:
        self.process = process
        self.is_center = True
        self.several = False
        self.facts: dict[str, Any] = dict(facts or {})

    def decide(self, work: Callable[[], Result], handlers: Mapping[str, Handler] | None = None) -> Result:
        """Has the center do `work`, and returns its result on every process.

        Args:
          work: called on the center only; what it returns has to fit into JSON where there are other processes.
          handlers: what a peer does for the center meanwhile, by the "t" of a message.

        Raises:
          BaseException: on the center what `work` raised, on the others a `ProcessError` of the same kind.
        """
        return work()

    def vote(
        self, error: BaseException | None, handlers: Mapping[str, Callable[[int, Header], Answer]] | None = None
    ) -> None:
        """Ends a step that every process does for itself: it has succeeded where it has succeeded everywhere.

        Args:
          error: what this process failed with, or None.
          handlers: what the center does for peers that are not so far yet: is given the peer and its request.

        Raises:
          BaseException: `error`, or a `ProcessError` for that of another process.
        """
        if error is not None:
            raise error

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

    def keep(self) -> None:
        """Says that somebody has the session and will close it. One that got lost, in an interrupt, keeps nobody waiting for long."""

    def __enter__(self) -> "Session":
        self.keep()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.close()


def patience(timeout: float) -> float:
    """Returns how much longer than `timeout` to wait for a process that itself waits so long for another, in order to name that one."""
    return max(2.0, min(30.0, timeout / 4))
