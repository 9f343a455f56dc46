"""The center's part of a step that every process does for itself: it answers requests of its peers until each of them has voted."""

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from jaxckpt._lib.uninterrupted import start
from jaxckpt.errors import ProcessError
from jaxckpt.job.protocol.grammar import SAYS, Phase, Side
from jaxckpt.job.protocol.link import Link
from jaxckpt.job.protocol.messages import Decided, Failed, Vote
from jaxckpt.job.protocol.parts import Message
from jaxckpt.job.session import failures
from jaxckpt.job.session.interrupts import Interrupts
from jaxckpt.job.session.session import Answer, PeerHandlers, meaningless

if TYPE_CHECKING:
    from jaxckpt.job.session.center import Center

_SLICE_SECS = 0.1


class Finish(Protocol):
    """A function that ends the step that `Center.serve` has begun."""

    def __call__(self, error: BaseException | None, fallback_error: BaseException | None = None) -> None:
        """Ends the step; arguments and errors are those of `Session.vote`.

        Args:
          error: the error with which the step failed on this process, or None.
          fallback_error: raised only if no process reported an error of its own.
        """


class Serving:
    """Answers the requests of the peers. Each peer has a thread of its own.

    `begin` starts the threads. Each peer sends requests and then its vote. `finish` takes the vote of this process, and tells the peers
    the outcome.
    """

    def __init__(
        self,
        center: "Center",
        links: Mapping[int, Link],
        interrupts: Interrupts,
        handlers: PeerHandlers,
        sent: Callable[[int], None],
        ended: Callable[[int, BaseException | None], None],
    ) -> None:
        """Creates the object. `begin` starts the threads.

        Args:
          center: the session.
          links: the connections of the session, by process.
          interrupts: the interrupts of the call.
          handlers: functions that answer requests, by the class of the request. Their arguments are the peer's index and the request.
          sent: called with the peer's index when an answer has been sent, or could not be sent.
          ended: called with the peer's index, and its error or None, when the peer has voted or was lost.
        """
        self._center = center
        self._links = links
        self._interrupts = interrupts
        self._handlers = handlers
        self._sent = sent
        self._ended = ended
        self._votes: dict[int, BaseException | None] = {}
        # The errors so far, of any process, oldest first.
        self._errors: list[BaseException] = []
        self._has_voted = {process: threading.Event() for process in links}

    def begin(self) -> None:
        """Starts the threads.

        Raises:
          RuntimeError: the system cannot start a thread.
        """
        for process in self._links:
            name = f"jaxckpt process {process}"
            start(threading.Thread(target=self._serve, args=(process,), name=name, daemon=True))

    def finish(self, error: BaseException | None, fallback_error: BaseException | None = None) -> None:
        """Waits for the votes of all peers, and tells them the outcome. After an interrupt it does not wait: the step has failed.

        Args:
          error: the error with which the step failed on this process, or None.
          fallback_error: raised only if no process reported an error of its own.

        Raises:
          BaseException: as `Session.vote`.
        """
        if error is not None:
            self._errors.append(error)
        self._interrupts.protect(lambda: self._finish(error, fallback_error))

    def _finish(self, error: BaseException | None, fallback_error: BaseException | None) -> None:
        interrupt = error if error is not None and not isinstance(error, Exception) else None
        for event in self._has_voted.values():
            # This ends, because every wait of the peer's thread is bounded.
            while (interrupt or self._interrupts.first) is None and not event.wait(_SLICE_SECS):
                pass
        interrupt = interrupt or self._interrupts.first
        failure = interrupt or self._failure(error) or fallback_error
        if failure is None:
            self._center.tell(Decided(None))
            return
        self._center.tell(Failed(failures.describe(failure, self._center.process)), hurried=interrupt is not None)
        raise failure

    def _failure(self, error: BaseException | None) -> BaseException | None:
        """Returns the first failure: the others may be consequences of it.

        Args:
          error: the error of this process, or None.
        """
        if error is not None:
            return error
        if any(vote is not None for vote in self._votes.values()):
            return self._errors[0]
        try:
            self._center.check()
        except ProcessError as lost:
            return lost
        return None

    def _serve(self, process: int) -> None:
        try:
            vote = self._serve_until_vote(process)
        except BaseException as error:
            vote = error
        self._votes[process] = vote
        if vote is not None:
            self._errors.append(vote)
        self._ended(process, vote)
        self._has_voted[process].set()

    def _serve_until_vote(self, process: int) -> BaseException | None:
        link, center = self._links[process], self._center
        while True:
            with center.blaming(process, "the others waited for its part"):
                request: Message = link.receive(*SAYS[Phase.EACH][Side.DIALER], timeout=center.timeout)
            if isinstance(request, Vote):
                return None if request.failure is None else failures.rebuild(request.failure)
            message, arrays = self._answer(process, request)
            try:
                with center.blaming(process, "the answer to its request was sent"):
                    link.send(message, arrays or (), timeout=center.timeout)
            finally:
                arrays = None
                self._sent(process)

    def _answer(self, process: int, request: Message) -> Answer:
        try:
            # The step has failed already, so the peer need not read the rest.
            if self._errors:
                raise self._errors[0]
            handler = self._handlers.get(type(request))
            if handler is None:
                raise ProcessError(meaningless(request, process, self._center.process), (process,))
            return handler(process, request)
        except BaseException as error:
            # Report the first error: this one may be a consequence of it.
            reason = self._errors[0] if self._errors else error
            return Failed(failures.describe(reason, self._center.process)), None
