"""One call that the processes of a job make together: who is connected to whom, and how all of them reach the same outcome.

The process that does the file access for the others is the *center*; the others are its *peers*. While the center works, a peer answers
what the center asks of it (the pieces of its arrays, say). Whatever goes wrong on one process reaches all of them through the center.
"""

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.multihost import failures
from jaxckpt.multihost.wire import Header, Link, Message, close_gently

Answer = tuple[Header, Any]  # a header, and arrays whose bytes follow, or None
Handler = Callable[[Header], Answer]
_Result = TypeVar("_Result")
_LINGER_SECS = 1.0
_CONFIRM = "still there?"
_AHEAD = 1  # requests that are sent before the answer to the one before has come


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

    def decide(self, work: Callable[[], _Result], handlers: Mapping[str, Handler] | None = None) -> _Result:
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

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.close()


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
        self._closed = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="jaxckpt beat", daemon=True)
        self._beating.start()

    @property
    def peers(self) -> list[int]:
        """Indices of the other processes."""
        return sorted(self._links)

    def _beat(self) -> None:
        """Tells peers, who wait while files are written, that they do not wait for a dead process."""
        while not self._closed.wait(max(0.05, min(5.0, self.timeout / 5))):
            for link in self._links.values():
                with contextlib.suppress(OSError):
                    link.beat()

    def decide(self, work: Callable[[], _Result], handlers: Mapping[str, Handler] | None = None) -> _Result:
        try:
            result = work()
            json.dumps(result)  # What the others cannot be told fails here too.
        except BaseException as error:
            self._tell({"t": "failed", "failure": failures.describe(error, self.process)})
            raise
        self._tell({"t": "decided", "result": result})
        return result

    def confirm(self) -> None:
        end = time.monotonic() + self.timeout
        asked = contextlib.ExitStack()
        with asked:
            for process, link in sorted(self._links.items()):
                asked.enter_context(link.talking)
                with self._blaming(process, "the others were about to finish"):
                    link.send({"t": _CONFIRM}, timeout=self.timeout)
            for process, link in sorted(self._links.items()):
                with self._blaming(process, "the others were about to finish"):
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
        with link.talking, self._blaming(process, doing):
            link.send(header, timeout=self.timeout)
            message = link.receive(self.timeout, max_payload=0, into=into)
        if message.header.get("t") == "failed":
            raise failures.rebuild(message.header["failure"])
        return message

    def ask_all(self, header: Header, doing: str) -> dict[int, Header]:
        """Asks every peer the same, at once, and returns their answers. Raises as `ask`, for the first that failed."""
        answers: dict[int, Header] = {}
        errors: list[tuple[int, BaseException]] = []

        def one(process: int) -> None:
            try:
                answers[process] = self.ask(process, header, doing).header
            except BaseException as error:
                errors.append((process, error))

        _side_by_side(one, self._links)
        if errors:
            raise min(errors, key=lambda found: found[0])[1]
        return answers

    @contextlib.contextmanager
    def _blaming(self, process: int, doing: str) -> Any:
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

    def vote(
        self, error: BaseException | None, handlers: Mapping[str, Callable[[int, Header], Answer]] | None = None
    ) -> None:
        self.collect(handlers or {})(error)

    def collect(
        self,
        handlers: Mapping[str, Callable[[int, Header], Answer]],
        sent: Callable[[int], None] = lambda process: None,
    ) -> Callable[[BaseException | None], None]:
        """Begins to answer the peers' requests, on threads of their own, until each has voted.

        Args:
          handlers: what to do, by the "t" of a request: given the peer and its request.
          sent: called with the peer when an answer has been sent, or could not be.

        Returns:
          What to call with this process's own vote; it waits for the others', and raises as `vote` does.
        """
        votes: dict[int, BaseException | None] = {}
        given_up: list[BaseException] = []

        def one(process: int) -> None:
            try:
                votes[process] = self._serve_until_vote(process, handlers, sent, given_up)
            except BaseException as error:
                votes[process] = error
            if votes[process] is not None:
                given_up.append(votes[process])  # type: ignore[arg-type]

        threads = _start(one, self._links)

        def finish(error: BaseException | None) -> None:
            if error is not None:
                given_up.append(error)
            for thread in threads:
                thread.join()  # Bounded: each of its waits is.
            failed = {process: vote for process, vote in votes.items() if vote is not None}
            # What failed first; the others may have failed because of it.
            first = error if error is not None else given_up[0] if failed else None
            if first is None:
                try:
                    self.check()
                except ProcessError as lost:
                    first = lost
            if first is None:
                self._tell({"t": "decided", "result": None})
                return
            self._tell({"t": "failed", "failure": failures.describe(first, self.process)})
            raise first

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
            with self._blaming(process, "the others waited for its part"):
                header = link.receive(self.timeout, max_payload=0).header
            if header.get("t") == "vote":
                failure = header.get("failure")
                return None if failure is None else failures.rebuild(failure)
            try:
                if given_up:  # Nothing will come of it; the peer need not read the rest.
                    raise given_up[0]
                answer, payload = handlers[str(header.get("t"))](process, header)
            except BaseException as error:
                answer, payload = {"t": "failed", "failure": failures.describe(error, self.process)}, None
            try:
                with self._blaming(process, "it was sent what it had asked for"):
                    link.send(answer, payload, timeout=self.timeout)
            finally:
                payload = None
                sent(process)

    def _tell(self, header: Header) -> None:
        """Tells every peer. One that has gone by now has its own reasons, and changes nothing for the others."""

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
        close_gently(list(self._links.values()), _LINGER_SECS)


class Peer(Session):
    """The session on a process that another one does the file access for."""

    def __init__(self, process: int, link: Link, facts: Mapping[str, Any], timeout: float, what: str) -> None:
        """Args: the connection to the center; the others as for `Center`."""
        super().__init__(process, facts)
        self.several = True
        self.is_center = False
        self._link = link
        self._what = what
        self._own_error: BaseException | None = None
        # The center notices, and names, a process that does not answer; it must be given the time to say so.
        self._timeout = timeout
        self._patience = timeout + patience(timeout)

    @property
    def center(self) -> int:
        """Index of the center."""
        return self._link.process

    def decide(self, work: Callable[[], _Result], handlers: Mapping[str, Handler] | None = None) -> _Result:
        while True:
            header = self._receive("waiting for its outcome").header
            match header.get("t"):
                case "decided":
                    result: _Result = header["result"]
                    return result
                case "failed":
                    self._raise(header["failure"])
                case request if request == _CONFIRM:
                    self._answer(lambda header: ({"t": "here"}, None), header)
                case request:
                    self._answer((handlers or {}).get(str(request)), header)

    def _answer(self, handler: Handler | None, header: Header) -> None:
        try:
            if handler is None:
                raise ProcessError(f"process {self.center} asked for {header.get('t')!r}, which has no meaning here")
            answer, payload = handler(header)
        except BaseException as error:
            self._own_error = error
            answer, payload = {"t": "failed", "failure": failures.describe(error, self.process)}, None
        with self._blaming("sending it what it had asked for"):
            try:
                self._link.send(answer, payload, timeout=self._timeout)
            except TimeoutError:
                raise
            except OSError:
                # It has closed the connection. What it said before tells why.
                header = self._link.receive(_LINGER_SECS, max_payload=0).header
                if header.get("t") == "failed":
                    self._raise(header["failure"])
                raise

    def request(self, header: Header, doing: str) -> Message:
        """Asks the center, which is in `collect`, and waits for the answer.

        Raises:
          ProcessError: the center failed (the same kind of error as there), ended, or did not answer in time.
        """
        (answer,) = self.requests([(header, None)], doing)
        return answer

    def requests(self, asked: Iterable[tuple[Header, Sequence[np.ndarray] | None]], doing: str) -> Iterator[Message]:
        """Asks the center one thing after the other, and yields the answers. What is asked next is on its way meanwhile.

        Args:
          asked: requests, small ones if there are several, and arrays that the bytes of the answer are put into.
          doing: what for, for messages.

        Raises:
          ProcessError: as `request`.
        """
        under_way: deque[Sequence[np.ndarray] | None] = deque()
        with self._link.talking:
            for header, into in asked:
                with self._blaming(doing):
                    self._link.send(header, timeout=self._timeout)
                under_way.append(into)
                if len(under_way) > _AHEAD:
                    yield self._next_answer(under_way, doing)
            while under_way:
                yield self._next_answer(under_way, doing)

    def _next_answer(self, under_way: deque[Sequence[np.ndarray] | None], doing: str) -> Message:
        message = self._receive(doing, under_way.popleft())
        if message.header.get("t") != "failed":
            return message
        while under_way:  # What comes next must not be taken for the answer to what is asked next.
            self._receive(doing, under_way.popleft())
        raise failures.rebuild(message.header["failure"])

    def vote(
        self, error: BaseException | None, handlers: Mapping[str, Callable[[int, Header], Answer]] | None = None
    ) -> None:
        self._own_error = error
        failure = None if error is None else failures.describe(error, self.process)
        with self._blaming("telling it how this process fared"):
            self._link.send({"t": "vote", "failure": failure}, timeout=self._timeout)
        header = self._receive("waiting for how the others fared").header
        if header.get("t") == "failed":
            self._raise(header["failure"])
        if error is not None:  # Cannot be: the center would not have agreed.
            raise error

    def _raise(self, failure: failures.Failure) -> None:
        if self._own_error is not None:
            raise self._own_error
        raise failures.rebuild(failure)

    def _receive(self, doing: str, into: Sequence[np.ndarray] | None = None) -> Message:
        with self._blaming(doing):
            return self._link.receive(self._patience, max_payload=0, into=into)

    @contextlib.contextmanager
    def _blaming(self, doing: str) -> Any:
        try:
            yield
        except ProcessError:
            raise
        except OSError as error:
            if self._own_error is not None:  # Nobody answers it any more; it is what this process has to report.
                raise self._own_error from None
            if not isinstance(error, TimeoutError):
                raise ProcessError(
                    f"Process {self.center}, which does the file access, ended or closed the connection while this process was "
                    f"{doing}, in {self._what}: {error}.",
                    (self.center,),
                ) from error
            raise ProcessError(
                f"Process {self.center}, which does the file access, gave no sign of life within {self._timeout:g} s "
                f"(OrbaxSettings.timeout_secs) while this process was {doing}, in {self._what}.",
                (self.center,),
            ) from error

    def close(self) -> None:
        self._link.close()


def patience(timeout: float) -> float:
    """Returns how much longer than `timeout` to wait for a process that itself waits so long for another, in order to name that one."""
    return max(2.0, min(30.0, timeout / 4))


def _start(one: Callable[[int], None], processes: Mapping[int, Any]) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=one, args=(process,), name=f"jaxckpt process {process}", daemon=True)
        for process in processes
    ]
    for thread in threads:
        thread.start()
    return threads


def _side_by_side(one: Callable[[int], None], processes: Mapping[int, Any]) -> None:
    for thread in _start(one, processes):
        thread.join()
