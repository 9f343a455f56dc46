"""The session of a call that the processes of a job make together: all of them reach the same outcome.

The process that does the file access for the others is the *center*; the others are its *peers*. Each peer is connected to the center.
While the center works, a peer answers the requests of the center (for pieces of its arrays, for example). If one process fails, it tells
the center, and the center tells the others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxckpt.job.protocol.parts import Message

# A message and the arrays whose bytes follow it; None if it has no bytes.
Answer = tuple[Message, Sequence[np.ndarray] | None]
# The functions that answer requests, by the class of the request: of the center, and of a peer (with the index of the peer).
Handlers = Mapping[type[Message], Callable[[Any], Answer]]
PeerHandlers = Mapping[type[Message], Callable[[int, Any], Answer]]
Result = TypeVar("Result")
# How long a process that has failed, or is closing, still waits for another one to read or to say something.
LINGER_SECS = 1.0


class Session:
    """This process's view of one call. This base class is for a job of one process, which has no other process to talk to.

    Attributes:
      process: index of this process.
      is_center: whether this process does the file access of the call.
      several: whether there are other processes.
      facts: values that the center told every process when they met, such as the path of the checkpoint.
    """

    def __init__(self, process: int = 0, facts: Mapping[str, Any] | None = None) -> None:
        """Creates a session.

        Args:
          process: index of this process.
          facts: values that the center told every process when they met.
        """
        self.process = process
        self.is_center = True
        self.several = False
        self.facts: dict[str, Any] = dict(facts or {})

    def decide(self, work: Callable[[], Result], handlers: Handlers | None = None, *, asks: bool = False) -> Result:
        """Runs `work` on the center, and returns its result on every process.

        Args:
          work: called on the center only. If there are other processes, its result must fit into JSON.
          handlers: functions with which a peer answers the center's requests meanwhile, by the class of the request.
          asks: whether `work` asks the peers. Then an interrupt does not stop it in the middle of a message: `work` is given up between
            two messages.

        Raises:
          BaseException: on the center the error of `work`, on the others a `ProcessError` of the same kind.
        """
        return work()

    def vote(self, error: BaseException | None, fallback_error: BaseException | None = None) -> None:
        """Ends a step that every process does for itself. The step succeeds only if it has succeeded on every process.

        Args:
          error: the error with which the step failed on this process, or None.
          fallback_error: raised only if no process reported an error of its own.

        Raises:
          BaseException: `error`, or a `ProcessError` for the error of another process.
        """
        if error is not None:
            raise error
        if fallback_error is not None:
            raise fallback_error

    def protected(self, work: Callable[[], Result]) -> Result:
        """Runs `work`, which talks to the other processes, so that an interrupt stops it only between two messages.

        Args:
          work: must end in bounded time. It runs on another thread if this is the main thread.

        Raises:
          BaseException: the interrupt, or the error of `work`.
        """
        return work()

    def confirm(self) -> None:
        """Makes sure that every peer is still connected and waits for the outcome. The center calls it inside `decide`.

        It comes before a step that cannot be undone (the commit): otherwise a peer that was lost, or has given up, would raise an error
        although the checkpoint is saved.

        Raises:
          ProcessError: a peer has ended or given up. The message names it.
        """

    def check(self) -> None:
        """Makes sure, on the center, that no connection is known to be lost. Does not ask the peers. Raises as `confirm`."""

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
    """Returns the text of the error for a request that cannot be answered in this step of the call.

    Args:
      request: the request.
      asking: index of the process that sent it.
      asked: index of the process that received it.
    """
    return f"Process {asking} asked process {asked} for {type(request).__name__}, which has no meaning in this step of the call."


def patience(timeout: float) -> float:
    """Returns how many seconds longer than `timeout` to wait for a process that itself waits for a third process.

    With this extra time, that process can report which third process is late.

    Args:
      timeout: most seconds that the process waits for the third process.
    """
    return max(2.0, min(30.0, timeout / 4))
