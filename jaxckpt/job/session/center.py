"""The session of a call on the process that does the file access."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxckpt._lib.uninterrupted import start, uninterrupted
from jaxckpt.errors import ProcessError
from jaxckpt.job.protocol.wire import Header, Link, Message, close_gently
from jaxckpt.job.session import failures
from jaxckpt.job.session.session import CONFIRM, LINGER_SECS, Answer, Handler, Result, Session

_LOST_BEATS = 2


class Finish(Protocol):
    """Ends what `Center.collect` has begun."""

    def __call__(self, error: BaseException | None, doubt: BaseException | None = None) -> None:
        """Args: this process's own error; one to raise if nobody has a better one. Raises as `Session.vote`."""


class Center(Session):
    """The session on the process that does the file access."""

    def __init__(
        self, process: int, links: Mapping[int, Link], facts: Mapping[str, Any], timeout: float, what: str
    ) -> None:
        """Args: connections by process; what everyone knows; the bound in seconds for every wait; the call, in words."""
        super().__init__(process, facts)
        self.several = True
        self.timeout = timeout
        self._what = what
        self._links = dict(links)
        self._asked: dict[int, tuple[float, str]] = {}  # whose answer is waited for, since when, doing what
        self._finish: Finish | None = None  # of what `collect` has begun
        self._closed = threading.Event()
        self._kept = False
        self._beating = threading.Thread(target=self._beat, name="jaxckpt beat", daemon=True)
        start(self._beating)

    def keep(self) -> None:
        self._kept = True

    @property
    def peers(self) -> list[int]:
        """Indices of the other processes."""
        return sorted(self._links)

    @property
    def local_peers(self) -> list[int]:
        """Indices of those that are, by their addresses, on this host."""
        return sorted(process for process, link in self._links.items() if link.is_local)

    def _beat(self) -> None:
        """Tells peers, who wait while files are written, that they do not wait for a dead process."""
        unkept = 0
        while not self._closed.wait(max(0.05, min(5.0, self.timeout / 5))):
            # Not by the clock: this process may have been stopped for a while.
            unkept += not self._kept
            if unkept == _LOST_BEATS:
                self.close()
                return
            for link in self._links.values():
                with contextlib.suppress(OSError):
                    link.beat()

    def decide(self, work: Callable[[], Result], handlers: Mapping[str, Handler] | None = None) -> Result:
        try:
            result = work()
            json.dumps(result)  # What the others cannot be told fails here too.
        except BaseException as error:
            slow = self._who_is_slow(error)
            self._tell({"t": "failed", "failure": failures.describe(slow or error, self.process)})
            if slow is not None:
                raise slow from error
            raise
        self._tell({"t": "decided", "result": result})
        return result

    def confirm(self) -> None:
        end = time.monotonic() + self.timeout
        asked = contextlib.ExitStack()
        with asked:
            for process, link in sorted(self._links.items()):
                asked.enter_context(link.talking)
                with self.blaming(process, "the others were about to finish"):
                    link.send({"t": CONFIRM}, timeout=self.timeout)
            for process, link in sorted(self._links.items()):
                with self.blaming(process, "the others were about to finish"):
                    link.receive(max(0.001, end - time.monotonic()), max_payload=0)

    def check(self) -> None:
        lost = sorted(process for process, link in self._links.items() if not link.is_open())
        if lost:
            listed = ", ".join(map(str, lost))
            raise ProcessError(
                f"Process{'es' if len(lost) > 1 else ''} {listed} ended, or closed the connection, in {self._what}.",
                lost,
            )

    def ask(self, process: int, header: Header, doing: str, *, into: Sequence[np.ndarray] | None = None) -> Message:
        """Asks a peer that is in `decide`, and waits for the answer. Safe from several threads.

        Args:
          process: which peer.
          header: the request; "t" names the handler.
          doing: what it is asked for, for messages.
          into: arrays that the bytes of its answer are put into; without them it may not answer with any.

        Raises:
          ProcessError: the peer failed, ended or did not answer in time.
        """
        link = self._links[process]
        with link.talking, self.blaming(process, doing):
            self._asked.setdefault(process, (time.monotonic(), doing))
            link.send(header, timeout=self.timeout)
            message = link.receive(self.timeout, max_payload=0, into=into)
            self._asked.pop(process, None)  # Not after an error: that one stays who was waited for, whoever asks next.
        if message.header.get("t") == "failed":
            raise failures.rebuild(message.header["failure"])
        return message

    def ask_all(self, header: Header, doing: str, processes: Sequence[int] | None = None) -> dict[int, Header]:
        """Asks every peer, or some of them, the same, at once; returns their answers. Raises as `ask`, for the first that failed."""
        answers: dict[int, Header] = {}
        errors: list[tuple[int, BaseException]] = []

        def one(process: int) -> None:
            try:
                answers[process] = self.ask(process, header, doing).header
            except BaseException as error:
                errors.append((process, error))

        _side_by_side(one, self._links if processes is None else processes)
        if errors:
            raise min(errors, key=lambda found: found[0])[1]
        return answers

    @contextlib.contextmanager
    def blaming(self, process: int, doing: str) -> Any:
        """Turns an OSError of dealing with a peer into a ProcessError that names it, and what it was doing."""
        try:
            yield
        except TimeoutError as error:
            raise ProcessError(
                f"Process {process} did not answer within {self.timeout:g} s (OrbaxSettings.timeout_secs) while {doing}, in {self._what}.",
                (process,),
            ) from error
        except OSError as error:
            raise ProcessError(
                f"Process {process} ended, or closed the connection, while {doing}, in {self._what}: {error}.",
                (process,),
            ) from error

    def _who_is_slow(self, error: BaseException) -> ProcessError | None:
        """Names the process that was waited for, where a bound of the work's own, which began earlier, is reached first."""
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

    def vote(
        self, error: BaseException | None, handlers: Mapping[str, Callable[[int, Header], Answer]] | None = None
    ) -> None:
        # An interrupt may have come when `collect` had begun, before anybody had its result. A second one would wait for what
        # the threads of the first one take.
        (self._finish or self.collect(handlers or {}))(error)

    def collect(
        self,
        handlers: Mapping[str, Callable[[int, Header], Answer]],
        sent: Callable[[int], None] = lambda process: None,
    ) -> Finish:
        """Begins to answer the peers' requests, on threads of their own, until each has voted.

        Args:
          handlers: what to do, by the "t" of a request: given the peer and its request.
          sent: called with the peer when an answer has been sent, or could not be.

        Returns:
          What to call with this process's own vote; it waits for the others', and raises as `vote` does. If an interrupt keeps it
          from the caller, `vote` is the one to call.
        """
        votes: dict[int, BaseException | None] = {}
        given_up: list[BaseException] = []
        # The thread that serves a process holds its lock from then on.
        unserved = {process: threading.Lock() for process in self._links}
        served = {process: threading.Event() for process in self._links}

        def one(process: int) -> None:
            if not unserved[process].acquire(blocking=False):
                return
            try:
                votes[process] = self._serve_until_vote(process, handlers, sent, given_up)
            except BaseException as error:
                votes[process] = error
            if votes[process] is not None:
                given_up.append(votes[process])  # type: ignore[arg-type]
            served[process].set()

        def wait() -> None:
            if not started:  # Nobody knows which of them were, when an interrupt came.
                _start(one, self._links)
            for event in served.values():
                event.wait()  # Bounded: each wait of its thread is.

        def finish(error: BaseException | None, doubt: BaseException | None = None) -> None:
            if error is not None:
                given_up.append(error)
            try:
                uninterrupted(wait, given_up.append)
            except BaseException as interrupt:
                error = error or interrupt
            self._finish = None
            failed = {process: vote for process, vote in votes.items() if vote is not None}
            # What failed first; the others may have failed because of it.
            first = error if error is not None else given_up[0] if failed else None
            if first is None:
                try:
                    self.check()
                except ProcessError as lost:
                    first = lost
            if first is None:
                first = doubt
            if first is None:
                self._tell({"t": "decided", "result": None})
                return
            failed_header = {"t": "failed", "failure": failures.describe(first, self.process)}
            if all(event.is_set() for event in served.values()):
                self._tell(failed_header)
            else:
                # A second interrupt ended the wait: the process that was waited for must not keep this one now.
                self._tell_soon(failed_header)
            raise first

        started = False
        self._finish = finish
        _start(one, self._links)
        started = True
        return finish

    def _serve_until_vote(
        self,
        process: int,
        handlers: Mapping[str, Callable[[int, Header], Answer]],
        sent: Callable[[int], None],
        given_up: Sequence[BaseException],
    ) -> BaseException | None:
        link = self._links[process]
        while True:
            with self.blaming(process, "the others waited for its part"):
                header = link.receive(self.timeout, max_payload=0).header
            if header.get("t") == "vote":
                failure = header.get("failure")
                return None if failure is None else failures.rebuild(failure)
            try:
                if given_up:  # Nothing will come of it; the peer need not read the rest.
                    raise given_up[0]
                answer, payload = handlers[str(header.get("t"))](process, header)
            except BaseException as error:
                # What this process has given up because of is the reason, also for what fails because it has given up.
                reason = given_up[0] if given_up else error
                answer, payload = {"t": "failed", "failure": failures.describe(reason, self.process)}, None
            try:
                with self.blaming(process, "it was sent what it had asked for"):
                    link.send(answer, payload, timeout=self.timeout)
            finally:
                payload = None
                sent(process)

    def _tell(self, header: Header) -> None:
        """Tells every peer. One that has gone by now has its own reasons, and changes nothing for the others."""
        uninterrupted(lambda: self._tell_all(header))

    def _tell_soon(self, header: Header) -> None:
        """Tells every peer, and waits only for those who listen."""
        telling = _start(lambda process: self._tell_all(header), [self.process])
        telling[0].join(LINGER_SECS)

    def _tell_all(self, header: Header) -> None:
        waiting = {}
        for process, link in self._links.items():
            if link.takes_at_once():
                with contextlib.suppress(OSError):
                    link.send(header, timeout=self.timeout)
            else:
                waiting[process] = link

        def one(process: int) -> None:
            with contextlib.suppress(OSError):
                waiting[process].send(header, timeout=self.timeout)

        _side_by_side(one, waiting)

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        close_gently(list(self._links.values()), LINGER_SECS)


def _start(one: Callable[[int], None], processes: Iterable[int]) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=one, args=(process,), name=f"jaxckpt process {process}", daemon=True)
        for process in processes
    ]
    for thread in threads:
        start(thread)
    return threads


def _side_by_side(one: Callable[[int], None], processes: Iterable[int]) -> None:
    for thread in _start(one, processes):
        thread.join()
