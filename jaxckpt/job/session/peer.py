"""The session of a call on a process that another one does the file access for."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.job.protocol.wire import Header, Link, Message
from jaxckpt.job.session import failures
from jaxckpt.job.session.session import CONFIRM, LINGER_SECS, Answer, Handler, Result, Session, patience

_UNDER_WAY = 2


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

    @property
    def center_is_local(self) -> bool:
        """Whether the center is, by its address, on this host."""
        return self._link.is_local

    def decide(self, work: Callable[[], Result], handlers: Mapping[str, Handler] | None = None) -> Result:
        while True:
            header = self._receive("waiting for its outcome").header
            match header.get("t"):
                case "decided":
                    result: Result = header["result"]
                    return result
                case "failed":
                    self._raise(header["failure"])
                case request if request == CONFIRM:
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
                header = self._link.receive(LINGER_SECS, max_payload=0).header
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

    def requests(
        self,
        asked: Iterable[tuple[Header, Sequence[np.ndarray] | None]],
        doing: str,
        *,
        under_way: int = _UNDER_WAY,
    ) -> Iterator[Message]:
        """Asks the center one thing after the other, and yields the answers. What is asked next is on its way meanwhile.

        Args:
          asked: requests, small ones if there are several, and arrays that the bytes of the answer are put into.
          doing: what for, for messages.
          under_way: how many requests there are at a time whose answers have not been taken.

        Raises:
          ProcessError: as `request`.
        """
        waiting: deque[Sequence[np.ndarray] | None] = deque()
        with self._link.talking:
            for header, into in asked:
                with self._blaming(doing):
                    self._link.send(header, timeout=self._timeout)
                waiting.append(into)
                if len(waiting) == under_way:
                    yield self._next_answer(waiting, doing)
            while waiting:
                yield self._next_answer(waiting, doing)

    def _next_answer(self, waiting: deque[Sequence[np.ndarray] | None], doing: str) -> Message:
        message = self._receive(doing, waiting.popleft())
        if message.header.get("t") != "failed":
            return message
        while waiting:  # What comes next must not be taken for the answer to what is asked next.
            self._receive(doing, waiting.popleft())
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
        own = self._own_error
        if own is None:
            raise failures.rebuild(failure)
        if not isinstance(own, Exception) or self.process in (failure["process"], *failure["processes"]):
            raise own
        # All processes raise the same; and this one may have failed because another one had.
        error = failures.rebuild(failure)
        error.add_note(f"Besides, on this process: {type(own).__name__}: {own}")
        raise error

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
