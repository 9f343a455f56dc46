"""Center and peers over socket pairs: one outcome for all, the right process named, and no wait without a bound."""

import _thread
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

from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import shared
from jaxckpt.job.protocol.wire import Link
from jaxckpt.job.session import center as center_module
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.session import Session
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings

SECS = 0.6


@contextlib.contextmanager
def together(peers: int = 2, secs: float = 20, *, kept: bool = True) -> Iterator[tuple[Center, list[Peer]]]:
    ends = [socket.socketpair() for _ in range(peers)]
    others = [Peer(index + 1, Link(two, 0), {}, secs, "save('x')") for index, (_, two) in enumerate(ends)]
    center = Center(0, {index + 1: Link(one, index + 1) for index, (one, _) in enumerate(ends)}, {}, secs, "save('x')")
    if kept:
        center.keep()
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
    def handler(header: Any) -> Any:
        raise KeyError("gone")

    with together() as (center, peers):
        good = {"get": lambda header: ({"t": "ok"}, None)}
        one = Thread(lambda: peers[0].decide(no, good))
        two = Thread(lambda: peers[1].decide(no, {"get": handler}))
        with pytest.raises(KeyError) as caught:
            center.decide(lambda: center.ask_all({"t": "get"}, "giving"))
        assert caught.value.processes == (2,)  # type: ignore[attr-defined]
        assert type(two.error()) is KeyError
        found = one.error()
        assert isinstance(found, KeyError)
        assert found.processes == (2,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FileNotFoundError(errno.ENOENT, "gone", "/x")])
def test_an_error_of_a_peer_after_the_center_has_given_up(error: BaseException) -> None:
    """It may have come about because of that: all raise the same. An interrupt of its own stays one."""

    def handler(header: Any) -> Any:
        raise error

    def work() -> None:
        with pytest.raises(ProcessError):
            center.ask_all({"t": "get"}, "giving")
        raise PermissionError(errno.EACCES, "no", "/x")

    with together() as (center, peers):
        one = Thread(lambda: peers[0].decide(no, {"get": handler}))
        two = Thread(lambda: peers[1].decide(no, {"get": lambda header: ({"t": "ok"}, None)}))
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

    def part(header: Any) -> Any:
        running.append(1)
        parts.append(1)
        time.sleep(0.3)
        running.pop()
        return {"t": "written"}, None

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

    monkeypatch.setattr(shared.storage, "write_jointly", lambda new, snapshot, settings, process, begin, end: begin())
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    (tmp_path / "new").mkdir()
    handlers = {"look": lambda header: ({"t": "seen", "seen": True}, None), "write": part}
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
        one = Thread(lambda: peers[0].decide(no, {"get": lambda header: ({"t": "ok"}, None)}))
        asking: list[Thread] = []

        def work() -> None:
            asking.extend(Thread(lambda: center.ask(2, {"t": "get"}, "giving")) for _ in range(20))
            for thread in asking:
                thread.join(30)
            raise asking[0].error()

        began = time.monotonic()
        with pytest.raises(ProcessError, match="Process 2 did not answer within 0.6 s"):
            center.decide(work)
        assert time.monotonic() - began < 20 * SECS / 2  # One time out, not twenty in turn.
        assert {thread.error().processes for thread in asking} == {(2,)}  # type: ignore[attr-defined]
        assert one.error().processes == (2,)  # type: ignore[attr-defined]


def test_who_was_waited_for_is_named_where_another_bound_is_reached_first() -> None:
    with together(2, 20) as (center, peers):
        one = Thread(lambda: peers[0].decide(no, {"get": lambda header: ({"t": "ok"}, None)}))

        def work() -> None:
            center.ask(1, {"t": "get"}, "giving")
            Thread(lambda: center.ask(2, {"t": "get"}, "giving"))
            deadline = time.monotonic() + 20
            while 2 not in center._asked and time.monotonic() < deadline:
                time.sleep(0.01)
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

        def handler(header: Any) -> Any:
            with pytest.raises(PermissionError):
                center.decide(work)
            center.close()
            return {"t": "ok"}, np.zeros(1 << 22, np.uint8)

        thread = Thread(lambda: peers[0].decide(no, {"get": handler}))
        center._links[1].send({"t": "get"}, timeout=5)
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

        def read(process: int, header: Any) -> Any:
            served.append(process)
            return {"t": "data"}, np.full(4, process, np.uint8)

        def reading(peer: Peer) -> None:
            error: BaseException | None = None
            try:
                found = np.zeros(4, np.uint8)
                list(peer.requests([({"t": "read"}, [found])], "reading"))
                assert (found == peer.process).all()
                failed.wait(20)
                list(peer.requests([({"t": "read"}, [found])] * 3, "reading"))
            except BaseException as raised:
                error = raised
            peer.vote(error)

        finish = center.collect({"read": read})
        threads = [Thread(lambda peer=peer: reading(peer)) for peer in peers]
        deadline = time.monotonic() + 20
        while len(served) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        mine = KeyboardInterrupt()
        ending = Thread(lambda: finish(mine))
        time.sleep(0.2)
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


def test_an_interrupt_while_the_center_tells_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the rest of a message, or for one that does not come."""
    send = Link.send
    told: list[Link] = []

    def slow(self: Link, header: Any, payload: Any = None, *, timeout: float) -> None:
        told.append(self)
        _thread.interrupt_main()
        time.sleep(0.05)
        send(self, header, payload, timeout=timeout)

    with together(2) as (center, peers):
        threads = [Thread(lambda peer=peer: peer.decide(no)) for peer in peers]
        monkeypatch.setattr(Link, "send", slow)
        with pytest.raises(KeyboardInterrupt):
            center.decide(lambda: "all is well")
        assert [thread.value() for thread in threads] == ["all is well"] * 2
        assert len(told) == 2


def test_a_session_that_nobody_has_is_closed() -> None:
    """An interrupt came between making it and giving it to the caller; what was raised keeps it alive."""
    with together(1, secs=1, kept=False) as (_, peers):
        began = time.monotonic()
        with pytest.raises(ProcessError, match="closed the connection"):
            peers[0].decide(no)
        assert time.monotonic() - began < 1


def test_threads_end_with_the_session() -> None:
    before = threading.active_count()
    for _ in range(20):
        with together(2):
            pass
    deadline = time.monotonic() + 20
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("begun", [0, 1, 2])
def test_an_interrupt_while_the_center_begins_to_serve(begun: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever threads have been started by then serve on, and nobody starts others that wait for the same messages."""
    start = center_module._start

    def interrupted(one: Callable[[int], None], processes: Any) -> Any:
        monkeypatch.setattr(center_module, "_start", start)
        start(one, list(processes)[:begun])
        time.sleep(0.05)
        raise KeyboardInterrupt

    def restore(peer: Peer) -> None:
        error = None
        try:
            peer.request({"t": "leaves"}, "reading")
        except ProcessError as raised:
            error = raised
        peer.vote(error)

    handlers = {"leaves": lambda process, header: ({"t": "leaves"}, None)}
    began = time.monotonic()
    with together(2) as (center, peers):
        threads = [Thread(lambda peer=peer: restore(peer)) for peer in peers]
        monkeypatch.setattr(center_module, "_start", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            center.collect(handlers)
        with pytest.raises(KeyboardInterrupt):
            center.vote(caught.value)
        for thread in threads:
            assert "KeyboardInterrupt" in str(thread.error())
    assert time.monotonic() - began < 10  # The bound of a wait is 20 s.
