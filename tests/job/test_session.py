"""Center and peers over socket pairs: one outcome for all, the right process named, and no wait without a bound."""

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import interrupt, wait_until

from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import shared
from jaxckpt.job.protocol.link import Link
from jaxckpt.job.protocol.messages import (
    AskBoxes,
    AskMemory,
    AskPieces,
    AskStored,
    AskTexts,
    Decided,
    Done,
    Leaves,
    Look,
    Memory,
    Pieces,
    Seen,
    Texts,
    WritePart,
)
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.session import Handlers, PeerHandlers, Session
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings

# Of what ends by its timeout. The others, which answer at once, have as long on a busy machine.
SECS = 2.0


@contextlib.contextmanager
def together(peers: int = 2, secs: float = 20, *, adopted: bool = True) -> Iterator[tuple[Center, list[Peer]]]:
    ends = [socket.socketpair() for _ in range(peers)]
    others = [Peer(index + 1, Link(two, 0), {}, secs, "save('x')") for index, (_, two) in enumerate(ends)]
    center = Center(0, {index + 1: Link(one, index + 1) for index, (one, _) in enumerate(ends)}, {}, secs, "save('x')")
    if adopted:
        center.adopt()
    try:
        yield center, others
    finally:
        for other in others:
            other.close()
        center.close()


class Thread(threading.Thread):
    """A thread whose result can be had."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._error: BaseException | None = None
        self._value: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error

    def value(self) -> Any:
        self.join(30)
        assert not self.is_alive()
        return self._value

    def error(self) -> BaseException:
        self.join(30)
        assert not self.is_alive()
        assert self._error is not None, self._value
        return self._error


OFFER = Memory(None)


def offer(request: Any) -> Any:
    return OFFER, None


def no() -> Any:
    raise AssertionError("the work is the center's")


def test_all_get_the_result_of_the_center() -> None:
    with together(3) as (center, peers):
        threads = [Thread(lambda peer=peer: peer.decide(no)) for peer in peers]
        assert center.decide(lambda: {"a": [1, "x"]}) == {"a": [1, "x"]}
        assert [thread.value() for thread in threads] == [{"a": [1, "x"]}] * 3


def test_all_get_the_error_of_the_center() -> None:
    def work() -> None:
        raise PermissionError(errno.EACCES, "no", "/x")

    with together() as (center, peers):
        threads = [Thread(lambda peer=peer: peer.decide(no)) for peer in peers]
        with pytest.raises(PermissionError):
            center.decide(work)
        for thread in threads:
            found = thread.error()
            assert isinstance(found, PermissionError)
            assert isinstance(found, ProcessError)
            assert found.processes == (0,)


def test_a_result_that_does_not_fit_into_json_fails_everywhere() -> None:
    with together() as (center, peers):
        threads = [Thread(lambda peer=peer: peer.decide(no)) for peer in peers]
        with pytest.raises(TypeError):
            center.decide(lambda: object())
        for thread in threads:
            assert isinstance(thread.error(), TypeError)


def test_an_error_of_a_peer_is_its_own_and_the_others_name_it() -> None:
    def handler(request: Any) -> Any:
        raise KeyError("gone")

    with together() as (center, peers):
        one = Thread(lambda: peers[0].decide(no, {AskMemory: offer}))
        two = Thread(lambda: peers[1].decide(no, {AskMemory: handler}))
        with pytest.raises(KeyError) as caught:
            center.decide(lambda: center.ask_all(AskMemory(), "giving"))
        assert caught.value.processes == (2,)  # type: ignore[attr-defined]
        assert type(two.error()) is KeyError
        found = one.error()
        assert isinstance(found, KeyError)
        assert found.processes == (2,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FileNotFoundError(errno.ENOENT, "gone", "/x")])
def test_an_error_of_a_peer_after_the_center_has_given_up(error: BaseException) -> None:
    """It may have come about because of that: all raise the same. An interrupt of its own stays one."""

    def handler(request: Any) -> Any:
        raise error

    def work() -> None:
        with pytest.raises(ProcessError):
            center.ask_all(AskMemory(), "giving")
        raise PermissionError(errno.EACCES, "no", "/x")

    with together() as (center, peers):
        one = Thread(lambda: peers[0].decide(no, {AskMemory: handler}))
        two = Thread(lambda: peers[1].decide(no, {AskMemory: offer}))
        with pytest.raises(PermissionError):
            center.decide(work)
        assert isinstance(two.error(), PermissionError)
        found = one.error()
        if isinstance(error, KeyboardInterrupt):
            assert found is error
        else:
            assert isinstance(found, PermissionError)
            assert isinstance(found, ProcessError)
            assert found.processes == (0,)
            assert "FileNotFoundError" in found.__notes__[0]


@pytest.mark.parametrize("started", [False, True])
def test_an_interrupt_while_the_peers_are_asked_for_their_parts(
    started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is not taken away while they write, nor do they begin afterwards."""
    running: list[int] = []
    parts: list[int] = []
    asking: list[threading.Thread] = []

    def part(request: Any) -> Any:
        running.append(1)
        parts.append(1)
        time.sleep(0.3)
        running.pop()
        return Done(), None

    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        if self.name != "jaxckpt parts":
            start(self)
            return
        asking.append(self)
        if started:
            start(self)
            while not running:
                time.sleep(0.01)
        raise KeyboardInterrupt

    def work() -> None:
        try:
            shared.write(center, str(tmp_path / "new" / "item"), Snapshot(()), WriteSettings())
        finally:
            assert not running
            if not started:
                start(asking[0])
                asking[0].join()

    monkeypatch.setattr(
        shared.storage, "write_jointly", lambda new, snapshot, settings, process, token, begin, end: begin()
    )
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    (tmp_path / "new").mkdir()
    handlers: Handlers = {Look: lambda request: (Seen(True), None), WritePart: part}
    with together() as (center, peers):
        threads = [Thread(lambda peer=peer: peer.decide(no, handlers)) for peer in peers]
        with pytest.raises(KeyboardInterrupt):
            center.decide(work)
        for thread in threads:
            assert "KeyboardInterrupt" in str(thread.error())
        assert len(parts) == (2 if started else 0)


def test_a_peer_that_is_gone_is_named() -> None:
    with together() as (center, peers):
        one = Thread(lambda: peers[0].decide(no))
        peers[1].close()
        with pytest.raises(ProcessError, match="Process 2 ended"):
            center.decide(center.confirm)
        assert one.error().processes == (2,)  # type: ignore[attr-defined]


def test_a_peer_that_is_silent_is_named_and_asked_only_once() -> None:
    with together(2, SECS) as (center, peers):
        one = Thread(lambda: peers[0].decide(no, {AskMemory: offer}))
        asking: list[Thread] = []

        def work() -> None:
            asking.extend(Thread(lambda: center.ask(2, AskMemory(), "giving")) for _ in range(20))
            for thread in asking:
                thread.join(30)
            raise asking[0].error()

        began = time.monotonic()
        with pytest.raises(ProcessError, match=f"Process 2 did not answer within {SECS:g} s"):
            center.decide(work)
        # It is one timeout, not twenty in turn.
        assert time.monotonic() - began < 20 * SECS / 2
        assert {thread.error().processes for thread in asking} == {(2,)}  # type: ignore[attr-defined]
        assert one.error().processes == (2,)  # type: ignore[attr-defined]


def test_who_was_waited_for_is_named_where_another_bound_is_reached_first() -> None:
    with together(2, 20) as (center, peers):
        one = Thread(lambda: peers[0].decide(no, {AskMemory: offer}))

        def work() -> None:
            center.ask(1, AskMemory(), "giving")
            Thread(lambda: center.ask(2, AskMemory(), "giving"))
            wait_until(lambda: 2 in center._asked)
            center.timeout = 0.1
            time.sleep(0.2)
            raise TimeoutError("writing took longer than the timeout")

        with pytest.raises(ProcessError, match="Process 2 did not answer.*writing took longer") as caught:
            center.decide(work)
        assert caught.value.processes == (2,)
        assert one.error().processes == (2,)  # type: ignore[attr-defined]


def test_confirm_names_who_is_silent() -> None:
    with together(2, SECS) as (center, peers):
        one = Thread(lambda: peers[0].decide(no))
        with pytest.raises(ProcessError, match="Process 2 did not answer"):
            center.decide(center.confirm)
        assert one.error().processes == (2,)  # type: ignore[attr-defined]
        # It goes on, and finds out why.
        found = Thread(lambda: peers[1].decide(no)).error()
        assert isinstance(found, ProcessError)


def test_confirm_and_check_of_peers_that_are_there() -> None:
    with together() as (center, peers):
        threads = [Thread(lambda peer=peer: peer.decide(no)) for peer in peers]
        center.decide(center.confirm)
        for thread in threads:
            thread.value()
        center.check()
        peers[0].close()
        with pytest.raises(ProcessError, match="Process 1 ended"):
            center.check()
    Session().confirm()
    Session().check()


def test_a_center_that_is_silent_is_named() -> None:
    one, two = socket.socketpair()
    peer = Peer(1, Link(two, 0), {}, 0.1, "save('x')")
    with pytest.raises(ProcessError, match="Process 0.*no sign of life") as caught:
        peer.decide(no)
    assert caught.value.processes == (0,)
    peer.close()
    one.close()


def test_a_center_that_is_busy_is_not_taken_for_a_silent_one() -> None:
    with together(1, 0.5) as (center, peers):
        thread = Thread(lambda: peers[0].decide(no))
        center.decide(lambda: time.sleep(4))
        assert thread.value() is None


def test_a_center_that_ends_is_named() -> None:
    with together(1) as (center, peers):
        thread = Thread(lambda: peers[0].decide(no))
        center.close()
        with pytest.raises(ProcessError, match="Process 0"):
            raise thread.error()


def test_the_last_message_is_not_destroyed_by_the_end_of_the_connection() -> None:
    """A peer that is late reads why the call failed, although the center has closed, and the peer has sent something meanwhile."""
    with together(1, 5) as (center, peers):

        def work() -> None:
            raise PermissionError(13, "no", "x")

        def handler(request: Any) -> Any:
            with pytest.raises(PermissionError):
                center.decide(work)
            center.close()
            return Pieces(), [np.zeros(1 << 22, np.uint8)]

        thread = Thread(lambda: peers[0].decide(no, {AskPieces: handler}))
        center._links[1].send(AskPieces(()), timeout=5)
        assert isinstance(thread.error(), PermissionError)


def test_a_vote_succeeds_where_all_succeed() -> None:
    with together(3) as (center, peers):
        threads = [Thread(lambda peer=peer: peer.vote(None)) for peer in peers]
        center.vote(None)
        for thread in threads:
            assert thread.value() is None


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_vote_fails_where_one_fails(failing: int) -> None:
    with together() as (center, peers):
        mine = ValueError("mine")
        sessions: list[Session] = [center, *peers]
        threads = [
            Thread(lambda each=each, index=index: each.vote(mine if index == failing else None))
            for index, each in enumerate(sessions)
        ]
        for index, thread in enumerate(threads):
            found = thread.error()
            assert isinstance(found, ValueError)
            if index == failing:
                assert found is mine
            else:
                assert found.processes == (failing,)  # type: ignore[attr-defined]


def test_peers_are_served_until_they_vote_and_not_after_a_failure() -> None:
    with together() as (center, peers):
        served: list[int] = []
        failed = threading.Event()

        def read(process: int, request: Any) -> Any:
            served.append(process)
            return Pieces(), [np.full(4, process, np.uint8)]

        def reading(peer: Peer) -> None:
            error: BaseException | None = None
            try:
                found = np.zeros(4, np.uint8)
                list(peer.requests([(AskBoxes(()), [found])], "reading"))
                assert (found == peer.process).all()
                failed.wait(40)
                list(peer.requests([(AskBoxes(()), [found])] * 3, "reading"))
            except BaseException as raised:
                error = raised
            peer.vote(error)

        finish = center.serve({AskBoxes: read})
        threads = [Thread(lambda peer=peer: reading(peer)) for peer in peers]
        wait_until(lambda: len(served) == 2)
        serving = center._serving
        assert serving is not None
        mine = OSError(errno.EIO, "mine")
        ending = Thread(lambda: finish(mine))
        wait_until(lambda: serving._errors)
        failed.set()
        assert ending.error() is mine
        for thread in threads:
            assert thread.error().processes == (0,)  # type: ignore[attr-defined]
        assert sorted(served) == [1, 2]


def test_a_peer_that_is_lost_in_a_vote_fails_it_everywhere() -> None:
    with together() as (center, peers):
        one = Thread(lambda: peers[0].vote(None))
        peers[1].close()
        with pytest.raises(ProcessError, match="Process 2"):
            center.vote(None)
        assert one.error().processes == (2,)  # type: ignore[attr-defined]


def test_a_message_that_makes_no_sense_names_the_process_and_the_message() -> None:
    with together(2) as (center, peers):
        one = Thread(lambda: peers[0].decide(no, {AskMemory: offer}))
        two = Thread(lambda: peers[1].decide(no, {AskMemory: lambda request: (Texts({}), None)}))
        with pytest.raises(
            ProcessError, match="Process 2 did not follow jaxckpt's protocol.*process 2 sent Texts instead of"
        ) as caught:
            center.decide(lambda: center.ask_all(AskMemory(), "giving"))
        assert caught.value.processes == (2,)
        for thread in (one, two):
            assert thread.error().processes == (2,)  # type: ignore[attr-defined]


def test_a_request_that_has_no_meaning_here_names_both() -> None:
    with together(1) as (center, peers):
        thread = Thread(lambda: peers[0].decide(no, {AskMemory: offer}))
        with pytest.raises(ProcessError, match="Process 0 asked process 1 for WritePart, which has no meaning"):
            center.decide(lambda: center.ask(1, WritePart("x", ""), "writing"))
        assert "WritePart" in str(thread.error())
    with together(1) as (center, peers):
        center.serve({})
        with pytest.raises(ProcessError, match="Process 1 asked process 0 for AskStored, which has no meaning"):
            peers[0].request(AskStored(0), "reading")


def test_a_session_without_an_owner_is_closed() -> None:
    """An interrupt came between making it and giving it to the caller; what was raised keeps it alive."""
    with together(1, secs=1, adopted=False) as (_, peers), pytest.raises(ProcessError, match="closed the connection"):
        peers[0].decide(no)


def test_threads_end_with_the_session() -> None:
    before = threading.active_count()
    for _ in range(20):
        with together(2):
            pass
    wait_until(lambda: threading.active_count() <= before)


# -- interrupts of the main thread, on which these tests run ----------------------------------------------------------------------------


class Interrupting:
    """Interrupts the main thread when a thread comes by, and goes on when the main thread has seen it.

    Attributes:
      passed: how often a thread has come by.
    """

    def __init__(self, session: Center | Peer | None = None) -> None:
        """Does nothing yet.

        Args:
          session: gives its work up because of the interrupt, or notes it; None where no session hears of it, and the thread goes on a
            little later, whether the main thread has seen it or not.
        """
        self._session = session
        self.passed = 0

    def __call__(self) -> None:
        self.passed += 1
        if self.passed > 1:
            return
        assert threading.current_thread() is not threading.main_thread(), "the main thread must not handle messages"
        interrupt()
        if self._session is None:
            time.sleep(0.2)
        else:
            wait_until(self._is_seen, "the interrupt")

    def _is_seen(self) -> bool:
        assert self._session is not None
        found = self._session._interrupts
        return found.first is not None and (found._given_up.is_set() or not found._can_be_given_up)


def test_an_interrupt_while_the_center_tells_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session does not wait for the rest of a message, or for one that does not come."""
    send, interrupting = Link.send, Interrupting()

    def slow(self: Link, message: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(message, Decided):
            interrupting()
        send(self, message, *args, **kwargs)

    with together(2) as (center, peers):
        threads = [Thread(lambda peer=peer: peer.decide(no)) for peer in peers]
        monkeypatch.setattr(Link, "send", slow)
        with pytest.raises(KeyboardInterrupt):
            center.decide(lambda: "all is well")
        assert [thread.value() for thread in threads] == ["all is well"] * 2
        assert interrupting.passed == 2


def test_an_interrupt_while_the_center_waits_for_an_answer() -> None:
    """It is over at once, the others hear why, and no message is torn."""
    over = threading.Event()
    was_over: list[bool] = []

    def never(request: Any) -> Any:
        interrupting()
        was_over.append(over.wait(40))
        return OFFER, None

    with together(2, 60) as (center, peers):
        interrupting = Interrupting(center)
        one = Thread(lambda: peers[0].decide(no, {AskMemory: offer}))
        two = Thread(lambda: peers[1].decide(no, {AskMemory: never}))
        with pytest.raises(KeyboardInterrupt):
            center.decide(lambda: center.ask_all(AskMemory(), "giving"), asks=True)
        over.set()
        for thread in (one, two):
            assert "Process 0 failed: KeyboardInterrupt" in str(thread.error())
        assert was_over == [True]


def test_an_interrupt_after_all_have_confirmed_gives_nothing_up() -> None:
    committed: list[bool] = []

    def commit() -> str:
        center.confirm()
        interrupting()
        center.ask_all(AskMemory(), "giving")
        committed.append(True)
        return "done"

    with together(2) as (center, peers):
        interrupting = Interrupting(center)
        threads = [Thread(lambda peer=peer: peer.decide(no, {AskMemory: offer})) for peer in peers]
        with pytest.raises(KeyboardInterrupt):
            center.decide(commit, asks=True)
        assert committed
        assert [thread.value() for thread in threads] == ["done"] * 2


def test_an_interrupt_before_all_have_confirmed_commits_nothing() -> None:
    passed: list[str] = []

    def commit() -> None:
        interrupting()
        passed.append("interrupted")
        center.confirm()
        passed.append("confirmed")

    with together(2) as (center, peers):
        interrupting = Interrupting(center)
        threads = [Thread(lambda peer=peer: peer.decide(no)) for peer in peers]
        with pytest.raises(KeyboardInterrupt):
            center.decide(commit, asks=True)
        assert passed == ["interrupted"]
        for thread in threads:
            assert "Process 0 failed: KeyboardInterrupt" in str(thread.error())


@pytest.mark.parametrize("doing", ["waits", "answers", "votes", "reads"])
def test_an_interrupt_of_a_peer(doing: str) -> None:
    """It ends, although the center goes on, and the center names the process."""
    (one, two) = socket.socketpair()
    peer, center = Peer(1, Link(two, 0), {}, 60, "save('x')"), Center(0, {1: Link(one, 1)}, {}, 60, "save('x')")
    interrupting = Interrupting(peer)
    center.adopt()

    def handler(request: Any) -> Any:
        interrupting()
        return OFFER, None

    def again(step: Callable[[], Any]) -> None:
        # The peer may have received one request more before it looked whether it is given up.
        for _ in range(1000):
            step()
            time.sleep(0.01)

    def confirm() -> None:
        center.confirm()
        interrupting()
        again(center.confirm)

    def vote() -> None:
        center.serve({})
        assert center._serving is not None
        assert center._serving._has_voted[1].wait(40)
        interrupting()
        wait_until(lambda: not center._links[1].is_open(), "the end of the peer")
        center.vote(None)

    def read() -> None:
        def slow(process: int, request: Any) -> Any:
            interrupting()
            return Leaves((), (), (), (), None, {}, 0), None

        center.serve({AskStored: slow})(None)

    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "waits": (lambda: center.decide(confirm), lambda: peer.decide(no)),
        "answers": (
            lambda: center.decide(lambda: again(lambda: center.ask(1, AskMemory(), "giving"))),
            lambda: peer.decide(no, {AskMemory: handler}),
        ),
        "votes": (vote, lambda: peer.vote(None)),
        "reads": (read, lambda: peer.request(AskStored(0), "reading")),
    }
    of_center, of_peer = calls[doing]
    thread = Thread(of_center)
    with pytest.raises(KeyboardInterrupt):
        of_peer()
    peer.close()
    assert thread.error().processes == (1,)  # type: ignore[attr-defined]
    center.close()


@pytest.mark.parametrize("first", [False, True])
def test_an_interrupt_of_the_center_while_others_read(first: bool) -> None:
    """It does not wait for the peers, not even for one that hangs; whatever a peer does, it hears why."""
    over = threading.Event()
    was_over: list[bool] = []

    def restore(peer: Peer) -> None:
        error: BaseException | None = None
        if peer.process == 2:
            was_over.append(over.wait(40))
        try:
            list(peer.requests([(AskTexts(()), None)] * 3, "reading"))
        except ProcessError as raised:
            error = raised
        peer.vote(error)

    def interrupt_the_vote() -> None:
        wait_until(lambda: center._serving is None, "the vote of the center")
        interrupt()

    handlers: PeerHandlers = {AskTexts: lambda process, request: (Texts({}), None)}
    with together(2, 60) as (center, peers):
        threads = [Thread(lambda peer=peer: restore(peer)) for peer in peers]
        finish = center.serve(handlers)
        mine = KeyboardInterrupt() if first else None
        interrupting = None if first else Thread(interrupt_the_vote)
        with pytest.raises(KeyboardInterrupt) as caught:
            finish(mine)
        assert mine is None or caught.value is mine
        over.set()
        for thread in threads:
            assert "Process 0 failed: KeyboardInterrupt" in str(thread.error())
        assert was_over == [True]
        if interrupting is not None:
            interrupting.value()


def test_an_interrupt_while_the_center_begins_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads are started, and the vote ends what they do, although the caller has not got what `serve` returns."""
    start, interrupting = threading.Thread.start, Interrupting()

    def interrupted(self: threading.Thread) -> None:
        if self.name.startswith("jaxckpt process"):
            interrupting()
        start(self)

    def restore(peer: Peer) -> None:
        error = None
        try:
            peer.request(AskTexts(()), "reading")
        except ProcessError as raised:
            error = raised
        peer.vote(error)

    handlers: PeerHandlers = {AskTexts: lambda process, request: (Texts({}), None)}
    with together(2) as (center, peers):
        threads = [Thread(lambda peer=peer: restore(peer)) for peer in peers]
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            center.serve(handlers)
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            center.vote(caught.value)
        for thread in threads:
            assert "KeyboardInterrupt" in str(thread.error())


def test_a_second_interrupt_ends_a_wait_that_the_first_does_not() -> None:
    release = threading.Event()

    def work() -> bool:
        interrupt()
        wait_until(lambda: center._interrupts.first is not None, "the first interrupt")
        interrupt()
        return release.wait(40)

    with together(1, 60) as (center, peers):
        thread = Thread(lambda: peers[0].decide(no))
        with pytest.raises(KeyboardInterrupt):
            center.decide(work, asks=True)
        release.set()
        # The work, which does not look whether it is given up, has been done.
        assert thread.value() is True


def test_work_without_questions_is_done_by_the_caller() -> None:
    """Write callbacks run on the caller's thread, and Ctrl-C reaches them."""
    found: list[threading.Thread] = []

    def work() -> None:
        found.append(threading.current_thread())
        raise KeyboardInterrupt

    with together(1) as (center, peers):
        thread = Thread(lambda: peers[0].decide(no))
        with pytest.raises(KeyboardInterrupt):
            center.decide(work)
        assert found == [threading.main_thread()]
        assert "Process 0 failed: KeyboardInterrupt" in str(thread.error())
