"""Listener and caller: only processes of the job get in, and they do not wait for strangers."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from waiting import wait_until

from jaxckpt.job.protocol import handshake
from jaxckpt.job.protocol.frames import WireError
from jaxckpt.job.protocol.handshake import Listener, dial
from jaxckpt.job.protocol.link import Link
from jaxckpt.job.protocol.meeting_messages import Hello, Proof, Welcome
from jaxckpt.job.protocol.messages import Vote
from jaxckpt.job.protocol.parts import Address


def soon() -> float:
    return time.monotonic() + 20


def for_a_moment(secs: float) -> Callable[[], float]:
    end = time.monotonic() + secs
    return lambda: end - time.monotonic()


def dials(address: Address, processes: list[int]) -> dict[int, Link]:
    links: dict[int, Link] = {}

    def one(process: int) -> None:
        links[process] = dial(address, process, 0, soon())

    threads = [threading.Thread(target=one, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return links


@pytest.fixture
def listener() -> Any:
    listener = Listener("127.0.0.1", [1, 2, 3])
    yield listener
    listener.close()


def close(*links: Any) -> None:
    for link in links:
        link.close()


def test_all_come(listener: Listener) -> None:
    there = dials(listener.address, [1, 2, 3])
    here, missing = listener.wait(lambda: 20)
    assert sorted(here) == [1, 2, 3]
    assert not missing
    listener.stop()
    listener.hand_out()
    # The connections that were handed out stay.
    listener.close()
    for process, link in here.items():
        assert link.process == process
        link.send(Welcome(str(process)), timeout=20)
        assert there[process].receive(Welcome, timeout=20) == Welcome(str(process))
    close(*here.values(), *there.values())


def test_who_is_missing(listener: Listener) -> None:
    there = dials(listener.address, [1, 3])
    # A process that dials is ready a moment before the listener has noted it.
    wait_until(lambda: len(listener._links) == 2)
    here, missing = listener.wait(for_a_moment(0.05))
    assert sorted(here) == [1, 3]
    assert missing == {2}
    close(*here.values(), *there.values())


def test_strangers_do_not_delay_the_job(listener: Listener) -> None:
    address = (listener.address.host, listener.address.port)
    strangers = [socket.create_connection(address, timeout=20) for _ in range(300)]
    there = dials(listener.address, [1, 2, 3])
    here, missing = listener.wait(lambda: 20)
    assert not missing
    listener.close()
    # All strangers are closed, and have got only a challenge.
    for stranger in strangers:
        stranger.settimeout(20)
        content = b""
        try:
            while more := stranger.recv(1000):
                content += more
        except ConnectionResetError:
            pass
        assert len(content) < 100
        stranger.close()
    close(*here.values(), *there.values())


def test_a_wrong_token(listener: Listener) -> None:
    wrong = Address(listener.address.host, listener.address.port, "ab" * 32)
    with pytest.raises(WireError):
        dial(wrong, 1, 0, soon())
    here, missing = listener.wait(for_a_moment(0.05))
    assert not here
    assert missing == {1, 2, 3}


def test_a_process_that_is_not_expected(listener: Listener) -> None:
    with pytest.raises(WireError):
        dial(listener.address, 7, 0, soon())


def test_a_process_that_comes_again_replaces_itself(listener: Listener) -> None:
    first = dial(listener.address, 1, 0, soon())
    again = dial(listener.address, 1, 0, soon())
    with pytest.raises(WireError):
        first.receive(Vote, timeout=20)
    others = dials(listener.address, [2, 3])
    here, _ = listener.wait(lambda: 20)
    here[1].send(Vote(None), timeout=20)
    assert again.receive(Vote, timeout=20) == Vote(None)
    close(first, again, *others.values(), *here.values())


def test_of_two_connections_of_a_process_the_newer_one_counts(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener notes each on a thread of its own: that of the older one may come last."""
    shake_hands, newer_is_noted = Listener._shake_hands, threading.Event()
    older: list[Link] = []

    def shaken(self: Listener, link: Link) -> None:
        older[:] = older or [link]
        shake_hands(self, link)
        assert link not in older or newer_is_noted.wait(60)

    monkeypatch.setattr(Listener, "_shake_hands", shaken)
    first = dial(listener.address, 1, 0, soon())
    again = dial(listener.address, 1, 0, soon())
    wait_until(lambda: 1 in listener._links)
    newer_is_noted.set()
    with pytest.raises(WireError):
        first.receive(Vote, timeout=20)
    others = dials(listener.address, [2, 3])
    here, _ = listener.wait(lambda: 20)
    here[1].send(Vote(None), timeout=20)
    assert again.receive(Vote, timeout=20) == Vote(None)
    close(first, again, *others.values(), *here.values())


class _PausingCondition:
    """A condition. Each handshake pauses when it has let go of it, as if the system ran other threads first."""

    def __init__(self, condition: threading.Condition) -> None:
        self._condition = condition
        self.go_on = threading.Event()

    def __enter__(self) -> None:
        self._condition.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._condition.__exit__(*error)
        if threading.current_thread().name == "jaxckpt handshake":
            assert self.go_on.wait(60)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._condition, name)


def test_who_has_come_is_not_closed_by_the_end_of_the_wait(listener: Listener) -> None:
    pausing = _PausingCondition(listener._changed)
    listener._changed = pausing  # type: ignore[assignment]
    there = dials(listener.address, [1, 2, 3])
    here, _ = listener.wait(lambda: 20)
    listener.stop()
    listener.hand_out()
    pausing.go_on.set()
    for process, link in here.items():
        link.send(Vote(None), timeout=20)
        assert there[process].receive(Vote, timeout=20) == Vote(None)
    close(*here.values(), *there.values())


@pytest.mark.parametrize("waited", [False, True])
def test_who_is_not_handed_out_is_closed(waited: bool) -> None:
    listener = Listener("127.0.0.1", [1])
    link = dial(listener.address, 1, 0, soon())
    if waited:
        listener.wait(lambda: 20)
    # This is what a KeyboardInterrupt does, in wait() or behind it.
    listener.close()
    with pytest.raises(WireError):
        link.receive(Vote, timeout=20)
    link.close()


def test_who_comes_after_the_end_of_the_wait_is_told() -> None:
    listener = Listener("127.0.0.1", [1, 2])
    listener.wait(lambda: 0)
    with pytest.raises(OSError):  # noqa: PT011  Closed before or after the handshake.
        dial(listener.address, 1, 0, soon()).receive(Vote, timeout=20)
    listener.close()
    listener.close()
    with pytest.raises(OSError):  # noqa: PT011  Refused or reset.
        dial(listener.address, 1, 0, soon())


def test_a_recorded_handshake_is_worth_nothing(listener: Listener) -> None:
    """A relay records what process 1 says; said again, it opens nothing."""
    recorded: list[bytes] = []
    relay = socket.create_server(("127.0.0.1", 0))

    def forward() -> None:
        inside, _ = relay.accept()
        outside = socket.create_connection((listener.address.host, listener.address.port), timeout=20)
        inside.settimeout(20)
        inside.sendall(outside.recv(4096))
        recorded.append(inside.recv(4096))
        outside.sendall(recorded[0])
        inside.sendall(outside.recv(4096))
        inside.close()
        outside.close()

    thread = threading.Thread(target=forward)
    thread.start()
    host, port = relay.getsockname()
    dial(Address(host, port, listener.address.token), 1, 0, soon()).close()
    thread.join(20)
    relay.close()
    with socket.create_connection((listener.address.host, listener.address.port), timeout=20) as stranger:
        assert b"Hello" in stranger.recv(4096)
        stranger.sendall(recorded[0])
        assert stranger.recv(4096) == b""


def test_a_listener_that_does_not_know_the_token_is_found_out() -> None:
    impostor = Listener("127.0.0.1", [1])
    impostor.address, real = Address(impostor.address.host, impostor.address.port, "cd" * 32), impostor.address
    with pytest.raises(WireError):
        dial(real, 1, 0, soon())
    impostor.close()


def test_a_listener_that_says_what_it_heard_is_found_out() -> None:
    mirror = socket.create_server(("127.0.0.1", 0))

    def reflect() -> None:
        connection, _ = mirror.accept()
        with connection, Listener_link(connection) as link:
            link.send(Hello("00"), timeout=20)
            proof = link.receive(Proof, timeout=20)
            link.send(Welcome(proof.mac), timeout=20)

    thread = threading.Thread(target=reflect)
    thread.start()
    host, port = mirror.getsockname()
    with pytest.raises(WireError, match="does not belong"):
        dial(Address(host, port, "ab" * 32), 1, 0, soon())
    thread.join(20)
    mirror.close()


class Listener_link(Link):  # noqa: N801
    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, 0)

    def __enter__(self) -> "Listener_link":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::", "*", "0", "::ffff:0.0.0.0"])
def test_every_interface_is_refused(wildcard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(handshake.BIND_VARIABLE, wildcard)
    with pytest.raises(OSError, match="every interface|Cannot listen"):
        Listener(handshake.interface_towards("127.0.0.1:1"), [1])


def test_an_address_that_is_not_of_this_host() -> None:
    with pytest.raises(OSError, match=handshake.BIND_VARIABLE) as caught:
        Listener("192.0.2.1", [1])
    assert caught.value.errno


def test_a_listener_for_which_there_is_no_thread_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[socket.socket] = []
    create = socket.create_server

    def recorded(*args: Any, **kwargs: Any) -> socket.socket:
        bound.append(create(*args, **kwargs))
        return bound[-1]

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(socket, "create_server", recorded)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        Listener("127.0.0.1", [1])
    assert [each.fileno() for each in bound] == [-1]


def test_a_wait_ends_when_it_is_cut_short() -> None:
    listener = Listener("127.0.0.1", [1])
    left = [1000.0]
    cut = threading.Timer(0.05, lambda: left.__setitem__(0, 0.0))
    cut.start()
    assert listener.wait(lambda: left[0]) == ({}, {1})
    listener.close()


@pytest.mark.parametrize("nonce", ["\ud800", "\u00e9"])
def test_texts_that_are_no_text(nonce: str) -> None:
    """Half of a character, and one that is not ASCII, in the place of a number: refused as everything else is."""
    mirror = socket.create_server(("127.0.0.1", 0))

    def welcome() -> None:
        connection, _ = mirror.accept()
        with connection, Listener_link(connection) as link:
            link.send(Hello(nonce), timeout=20)
            link.receive(Proof, timeout=20)
            link.send(Welcome(nonce), timeout=20)

    thread = threading.Thread(target=welcome)
    thread.start()
    host, port = mirror.getsockname()
    with pytest.raises(WireError, match="does not belong"):
        dial(Address(host, port, "ab" * 32), 1, 0, soon())
    thread.join(20)
    mirror.close()


@pytest.mark.parametrize(
    ("coordinator", "expected"), [(None, "127.0.0.1"), ("127.0.0.1:80", "127.0.0.1"), ("0.0.0.0:80", "127.0.0.1")]
)
def test_the_interface_that_leads_to_the_coordinator(
    coordinator: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(handshake.BIND_VARIABLE, raising=False)
    assert handshake.interface_towards(coordinator) == expected


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"host": "a", "port": "x", "token": ""}', b"null"])
def test_what_is_no_address(content: bytes) -> None:
    with pytest.raises(WireError, match="not an address"):
        handshake.from_bytes(content)


def test_an_address_round_trips() -> None:
    address = Address("127.0.0.1", 1234, "ab")
    assert handshake.from_bytes(handshake.to_bytes(address)) == address
