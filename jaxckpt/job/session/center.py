"""The session of a call on the center: the process that does the file access."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from jaxckpt._lib.uninterrupted import start, uninterrupted
from jaxckpt.errors import ProcessError
from jaxckpt.job.protocol.frames import ProtocolError
from jaxckpt.job.protocol.grammar import answers_to
from jaxckpt.job.protocol.link import Link, close_gently
from jaxckpt.job.protocol.messages import Confirm, Decided, Done, Failed
from jaxckpt.job.protocol.parts import Answer as Answered
from jaxckpt.job.protocol.parts import Message, Request
from jaxckpt.job.session import failures
from jaxckpt.job.session.interrupts import Interrupts
from jaxckpt.job.session.serving import Finish, Serving
from jaxckpt.job.session.session import LINGER_SECS, Handlers, PeerHandlers, Result, Session
from jaxckpt.job.session.side_by_side import side_by_side

_LOST_BEATS = 2


class Center(Session):
    """The session on the process that does the file access.

    Attributes:
      timeout: most seconds of every wait.
    """

    def __init__(
        self, process: int, links: Mapping[int, Link], facts: Mapping[str, Any], timeout: float, what: str
    ) -> None:
        """Creates a session, and begins to send heartbeats. The session owns the connections.

        Args:
          process: index of this process.
          links: the connections to the peers, by process.
          facts: values that every process is told.
          timeout: most seconds of every wait.
          what: the call, for messages.
        """
        super().__init__(process, facts)
        self.several = True
        self.timeout = timeout
        self._what = what
        self._links = dict(links)
        self._interrupts = Interrupts()
        # The processes that have not answered yet: since when (time.monotonic), and what they were asked for.
        self._asked: dict[int, tuple[float, str]] = {}
        # The step that `serve` has begun.
        self._serving: Serving | None = None
        self._closed = threading.Event()
        self._adopted = False
        start(threading.Thread(target=self._beat, name="jaxckpt beat", daemon=True))

    def adopt(self) -> None:
        self._adopted = True

    @property
    def peers(self) -> list[int]:
        """Indices of the other processes."""
        return sorted(self._links)

    @property
    def local_peers(self) -> list[int]:
        """Indices of the peers that are on this host, judged by their addresses."""
        return sorted(process for process, link in self._links.items() if link.is_local)

    def _beat(self) -> None:
        """Sends heartbeats, so that peers that wait while files are written know that this process is alive."""
        unowned = 0
        while not self._closed.wait(max(0.05, min(5.0, self.timeout / 5))):
            # Beats are counted, not seconds: this process may have been suspended for a while.
            unowned += not self._adopted
            if unowned == _LOST_BEATS:
                self.close()
                return
            for link in self._links.values():
                with contextlib.suppress(OSError):
                    link.beat()

    # -- the center works, and asks ---------------------------------------------------------------------------------------------------

    def decide(self, work: Callable[[], Result], handlers: Handlers | None = None, *, asks: bool = False) -> Result:
        return self.protected(lambda: self._decide(work)) if asks else self._decide(work)

    def _decide(self, work: Callable[[], Result]) -> Result:
        try:
            result = work()
            # A result that does not fit into JSON, so that the others cannot be told, fails here.
            json.dumps(result)
        except BaseException as error:
            reason = self._interrupts.first or self._who_is_slow(error) or error
            self.tell(Failed(failures.describe(reason, self.process)), hurried=self._interrupts.first is not None)
            if reason is self._interrupts.first:
                raise reason from None
            if reason is not error:
                raise reason from error
            raise
        self.tell(Decided(result))
        return result

    def protected(self, work: Callable[[], Result]) -> Result:
        return self._interrupts.protect(work)

    def confirm(self) -> None:
        end = time.monotonic() + self.timeout
        stop = self._interrupts.check
        asked = contextlib.ExitStack()
        with asked:
            for process, link in sorted(self._links.items()):
                asked.enter_context(link.talking)
                with self.blaming(process, "the others were ready to commit"):
                    link.send(Confirm(), timeout=self.timeout)
            for process, link in sorted(self._links.items()):
                with self.blaming(process, "the others were ready to commit"):
                    answer = link.receive(Done, Failed, timeout=max(0.001, end - time.monotonic()), stop=stop)
                if isinstance(answer, Failed):
                    raise failures.rebuild(answer.failure)
        self._interrupts.insist()

    def check(self) -> None:
        lost = sorted(process for process, link in self._links.items() if not link.is_open())
        if lost:
            listed = ", ".join(map(str, lost))
            raise ProcessError(
                f"Process{'es' if len(lost) > 1 else ''} {listed} ended, or closed the connection, during {self._what}.",
                lost,
            )

    def ask(
        self, process: int, request: Request[Answered], doing: str, *, into: Sequence[np.ndarray] | None = None
    ) -> Answered:
        """Asks a peer that is in `decide`, and waits for the answer. Several threads may call this.

        Args:
          process: index of the peer.
          request: the request.
          doing: what the peer does to answer ("sending ..."), for messages.
          into: contiguous arrays that receive the bytes of the answer; None if it has no bytes.

        Raises:
          ProcessError: the peer failed, ended or did not answer in time.
        """
        link = self._links[process]
        with link.talking, self.blaming(process, doing):
            self._asked.setdefault(process, (time.monotonic(), doing))
            link.send(request, timeout=self.timeout)
            answer = link.receive(*answers_to(request), timeout=self.timeout, into=into, stop=self._interrupts.check)
            # Reached only without an error: a process that did not answer stays in the list, so that `_who_is_slow` can name it.
            self._asked.pop(process, None)
        if isinstance(answer, Failed):
            raise failures.rebuild(answer.failure)
        return cast(Answered, answer)

    def ask_all(
        self, request: Request[Answered], doing: str, processes: Sequence[int] | None = None
    ) -> dict[int, Answered]:
        """Sends the same request to several peers at once, and waits for the answers.

        Args:
          request: the request.
          doing: what the peers do to answer, for messages.
          processes: indices of the peers; None for all.

        Returns:
          Their answers, by process.

        Raises:
          ProcessError: as `ask`. If several peers failed, it is the error of the one with the lowest index.
        """
        answers: dict[int, Answered] = {}
        errors: list[tuple[int, BaseException]] = []

        def one(process: int) -> None:
            try:
                answers[process] = self.ask(process, request, doing)
            except BaseException as error:
                errors.append((process, error))

        side_by_side(one, self._links if processes is None else processes)
        if errors:
            raise min(errors, key=lambda found: found[0])[1]
        return answers

    @contextlib.contextmanager
    def blaming(self, process: int, doing: str) -> Iterator[None]:
        """Turns an OSError of the connection to a peer into a ProcessError that names the peer.

        Args:
          process: index of the peer.
          doing: what was going on; the message has it after "while".
        """
        try:
            yield
        except TimeoutError as error:
            raise ProcessError(
                f"Process {process} did not answer within {self.timeout:g} s (OrbaxSettings.timeout_secs) while {doing}, in {self._what}.",
                (process,),
            ) from error
        except ProtocolError as error:
            raise ProcessError(
                f"Process {process} did not follow jaxckpt's protocol while {doing}, in {self._what}: {error}.",
                (process,),
            ) from error
        except OSError as error:
            raise ProcessError(
                f"Process {process} ended, or closed the connection, while {doing}, in {self._what}: {error}.",
                (process,),
            ) from error

    def _who_is_slow(self, error: BaseException) -> ProcessError | None:
        """Returns an error that names the process that this one was waiting for, if a timeout of the work itself ended first."""
        if not isinstance(error, TimeoutError) or isinstance(error, ProcessError):
            return None
        now = time.monotonic()
        slow = {process: doing for process, (since, doing) in self._asked.items() if now - since > self.timeout / 2}
        if not slow:
            return None
        process = min(slow)
        return ProcessError(
            f"Process {process} did not answer in time while {slow[process]}, in {self._what}: {error}", (process,)
        )

    # -- every process works, and peers ask -------------------------------------------------------------------------------------------

    def serve(
        self,
        handlers: PeerHandlers,
        sent: Callable[[int], None] = lambda process: None,
        ended: Callable[[int, BaseException | None], None] = lambda process, error: None,
    ) -> Finish:
        """Begins to answer the requests of the peers, on one thread per peer, until each has voted.

        Args:
          handlers: functions that answer requests, by the class of the request. Their arguments are the peer's index and the request.
          sent: called with the peer's index when an answer has been sent, or could not be sent.
          ended: called with the peer's index, and its error or None, when the peer has voted or was lost. It must not raise.

        Returns:
          The method `vote`: a function that takes this process's own vote and waits for the others' votes.
        """
        # `vote` must know of it before it begins: after an interrupt the caller may not get what this method returns.
        self._serving = serving = Serving(self, self._links, self._interrupts, handlers, sent, ended)
        uninterrupted(serving.begin)
        return self.vote

    def vote(self, error: BaseException | None, fallback_error: BaseException | None = None) -> None:
        if self._serving is None:
            self.serve({})
        serving, self._serving = self._serving, None
        assert serving is not None
        serving.finish(error, fallback_error)

    # -- the outcome ------------------------------------------------------------------------------------------------------------------

    def tell(self, message: Message, *, hurried: bool = False) -> None:
        """Tells every peer the outcome. If a peer has ended by now, that is ignored: the outcome of the others does not change.

        Args:
          message: the outcome.
          hurried: whether to wait only a moment, instead of the timeout, for a peer that does not take the message.
        """
        uninterrupted(lambda: self._tell(message, LINGER_SECS if hurried else self.timeout))

    def _tell(self, message: Message, secs: float) -> None:
        waiting = {}
        for process, link in self._links.items():
            if link.takes_at_once():
                with contextlib.suppress(OSError):
                    link.send(message, timeout=secs)
            else:
                waiting[process] = link

        def one(process: int) -> None:
            with contextlib.suppress(OSError):
                waiting[process].send(message, timeout=secs)

        side_by_side(one, waiting, secs)

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        close_gently(self._links.values(), LINGER_SECS)
