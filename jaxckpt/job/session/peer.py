"""The session of a call on a peer: a process for which the center does the file access."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from jaxckpt._lib.uninterrupted import uninterrupted
from jaxckpt.errors import ProcessError
from jaxckpt.job.protocol.frames import ProtocolError
from jaxckpt.job.protocol.grammar import SAYS, Phase, Side, answers_to
from jaxckpt.job.protocol.link import Link, Said
from jaxckpt.job.protocol.messages import Confirm, Decided, Done, Failed, Vote
from jaxckpt.job.protocol.parts import Answer as Answered
from jaxckpt.job.protocol.parts import Failure, Message, Request
from jaxckpt.job.session import failures
from jaxckpt.job.session.interrupts import Interrupts
from jaxckpt.job.session.session import LINGER_SECS, Answer, Handlers, Result, Session, meaningless, patience

_UNDER_WAY = 2
_Into = Sequence[np.ndarray] | None


class Peer(Session):
    """The session on a process for which the center does the file access."""

    def __init__(self, process: int, link: Link, facts: Mapping[str, Any], timeout: float, what: str) -> None:
        """Creates a session. It owns the connection.

        Args:
          process: index of this process.
          link: the connection to the center.
          facts: values that the center told every process.
          timeout: most seconds of every wait.
          what: the call, for messages.
        """
        super().__init__(process, facts)
        self.several = True
        self.is_center = False
        self._link = link
        self._what = what
        self._interrupts = Interrupts()
        self._own_error: BaseException | None = None
        # Wait longer than the center does, so that it can tell this process which third process does not answer.
        self._timeout = timeout
        self._patience = timeout + patience(timeout)

    @property
    def center(self) -> int:
        """Index of the center."""
        return self._link.process

    @property
    def center_is_local(self) -> bool:
        """Whether the center is on this host, judged by its address."""
        return self._link.is_local

    def protected(self, work: Callable[[], Result]) -> Result:
        return self._interrupts.protect(work)

    # -- the center works, and asks ---------------------------------------------------------------------------------------------------

    def decide(self, work: Callable[[], Result], handlers: Handlers | None = None, *, asks: bool = False) -> Result:
        result: Result = self.protected(lambda: self._answer_until_decided(handlers or {}))
        return result

    def _answer_until_decided(self, handlers: Handlers) -> Any:
        while True:
            message: Message = self._hear(*SAYS[Phase.WORK][Side.LISTENER], doing="waiting for its outcome")
            if isinstance(message, Decided):
                return message.result
            if isinstance(message, Failed):
                self._raise(message.failure)
            self._answer(message, handlers)

    def _answer(self, request: Message, handlers: Handlers) -> None:
        answer, arrays = self._answer_to(request, handlers)
        with self._blaming("sending it what it had asked for"):
            try:
                # A failure is reported to the center even after the call has been given up here.
                stop = None if isinstance(answer, Failed) else self._interrupts.check
                self._link.send(answer, arrays or (), timeout=self._timeout, stop=stop)
            except TimeoutError:
                raise
            except OSError:
                # The center has closed the connection. Its last message tells why.
                message = self._link.receive(*SAYS[Phase.WORK][Side.LISTENER], timeout=LINGER_SECS)
                if isinstance(message, Failed):
                    self._raise(message.failure)
                raise

    def _answer_to(self, request: Message, handlers: Handlers) -> Answer:
        if isinstance(request, Confirm):
            return Done(), None
        try:
            handler = handlers.get(type(request))
            if handler is None:
                raise ProcessError(meaningless(request, self.center, self.process), (self.center,))
            return handler(request)
        except BaseException as error:
            self._own_error = reason = self._interrupts.first or error
            return Failed(failures.describe(reason, self.process)), None

    # -- every process works, and asks the center -------------------------------------------------------------------------------------

    def request(self, request: Request[Answered], doing: str) -> Answered:
        """Asks the center, which has called `serve`, and waits for the answer.

        Args:
          request: the request.
          doing: what this process does with the answer ("reading ..."), for messages.

        Raises:
          ProcessError: the center failed (then this is the same kind of error), ended, or did not answer in time.
        """

        def ask() -> Answered:
            (answer,) = self.requests([(request, None)], doing)
            return cast(Answered, answer)

        return self.protected(ask)

    def requests(
        self, asked: Iterable[tuple[Request[Any], _Into]], doing: str, *, under_way: int = _UNDER_WAY
    ) -> Iterator[Message]:
        """Sends requests to the center one after the other, and yields the answers. The next request is sent before an answer is yielded.

        The caller takes all answers inside `protected`.

        Args:
          asked: small requests; each with the contiguous arrays that receive the bytes of its answer, or None.
          doing: what this process does with the answers ("reading ..."), for messages.
          under_way: most requests at a time whose answers have not been received.

        Raises:
          ProcessError: as `request`.
        """
        waiting: deque[tuple[Request[Any], _Into]] = deque()
        with self._link.talking:
            for request, into in asked:
                with self._blaming(doing):
                    self._link.send(request, timeout=self._timeout, stop=self._interrupts.check)
                waiting.append((request, into))
                if len(waiting) == under_way:
                    yield self._next_answer(waiting, doing)
            while waiting:
                yield self._next_answer(waiting, doing)

    def _next_answer(self, waiting: deque[tuple[Request[Any], _Into]], doing: str) -> Message:
        request, into = waiting.popleft()
        answer: Message = self._hear(*answers_to(request), doing=doing, into=into)
        if not isinstance(answer, Failed):
            return answer
        # Receive the answers that are still under way, so that none of them is taken for the answer to a later request. They may not
        # come any more, because the center may have been interrupted.
        with contextlib.suppress(ProcessError):
            while waiting:
                request, into = waiting.popleft()
                self._hear(*answers_to(request), doing=doing, into=into)
        raise failures.rebuild(answer.failure)

    def vote(self, error: BaseException | None, fallback_error: BaseException | None = None) -> None:
        self._own_error = error
        self.protected(lambda: self._vote(error))

    def _vote(self, error: BaseException | None) -> None:
        failure = None if error is None else failures.describe(error, self.process)
        with self._blaming("telling it whether this process succeeded"):
            self._link.send(Vote(failure), timeout=self._timeout)
        outcome: Message = self._hear(*SAYS[Phase.EACH][Side.LISTENER], doing="waiting for the outcome on the others")
        if isinstance(outcome, Failed):
            self._raise(outcome.failure)
        # Not expected: the center does not decide for success if a peer has failed.
        if error is not None:
            raise error

    # -- both -------------------------------------------------------------------------------------------------------------------------

    def _raise(self, failure: Failure) -> None:
        own = self._own_error
        if own is None:
            raise failures.rebuild(failure)
        if not isinstance(own, Exception) or self.process in (failure.process, *failure.processes):
            raise own
        # Every process raises the same error. This process may have failed only because the other one had.
        error = failures.rebuild(failure)
        error.add_note(f"On this process: {type(own).__name__}: {own}")
        raise error

    def _hear(self, *expected: type[Said], doing: str, into: _Into = None) -> Said:
        with self._blaming(doing):
            return self._link.receive(*expected, timeout=self._patience, into=into, stop=self._interrupts.check)

    @contextlib.contextmanager
    def _blaming(self, doing: str) -> Iterator[None]:
        try:
            yield
        except ProcessError:
            raise
        except OSError as error:
            # The center does not answer any more. If this process has an error of its own, that is the one to report.
            if self._own_error is not None:
                raise self._own_error from None
            raise ProcessError(self._blame(error, doing), (self.center,)) from error

    def _blame(self, error: OSError, doing: str) -> str:
        who, context = f"Process {self.center}, which does the file access,", f"{doing}, in {self._what}"
        if isinstance(error, TimeoutError):
            return f"{who} gave no sign of life within {self._timeout:g} s (OrbaxSettings.timeout_secs) while this process was {context}."
        if isinstance(error, ProtocolError):
            return f"{who} did not follow jaxckpt's protocol while this process was {context}: {error}."
        return f"{who} ended or closed the connection while this process was {context}: {error}."

    def close(self) -> None:
        uninterrupted(self._link.close)
