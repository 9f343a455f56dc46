"""A connection: what is sent arrives, what does not belong there names who sent it, and no wait is longer than its bound."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import google_crc32c
import numpy as np
import pytest

from jaxckpt.job.protocol.frames import ProtocolError, WireError
from jaxckpt.job.protocol.link import Link
from jaxckpt.job.protocol.messages import AskTexts, Decided, Done, Failed, Filled, Pieces, Vote


@contextlib.contextmanager
def pair() -> Iterator[tuple[Link, Link]]:
    one, two = socket.socketpair()
    links = Link(one, 1), Link(two, 2)
    try:
        yield links
    finally:
        for link in links:
            link.close()


@contextlib.contextmanager
def raw() -> Iterator[tuple[socket.socket, Link]]:
    one, two = socket.socketpair()
    link = Link(two, 2)
    try:
        yield one, link
    finally:
        one.close()
        link.close()


def test_what_is_sent_arrives_between_beats() -> None:
    said = [AskTexts(("a",) * count) for count in (0, 1, 500, 5000)]
    with pair() as (one, two):

        def send() -> None:
            for message in said:
                one.send(message, timeout=20)
                one.beat()
                one.send(Pieces(), [np.arange(7, dtype=np.uint8)], timeout=20)
                one.beat()

        thread = threading.Thread(target=send)
        thread.start()
        for message in said:
            assert two.receive(AskTexts, timeout=20) == message
            found = np.zeros(7, np.uint8)
            assert two.receive(Pieces, timeout=20, into=[found]) == Pieces()
            assert found.tolist() == list(range(7))
        thread.join(20)


def test_payloads_larger_than_the_buffers_of_the_socket() -> None:
    arrays = [np.arange(1_000_000, dtype=np.int32), np.empty(0), np.full((3, 1000), 3, np.float32)]
    found = np.zeros(sum(array.nbytes for array in arrays), np.uint8)
    with pair() as (one, two):
        thread = threading.Thread(target=one.send, args=(Pieces(), arrays), kwargs={"timeout": 20})
        thread.start()
        two.receive(Pieces, timeout=20, into=[found])
        thread.join(20)
        assert found.tobytes() == b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


@pytest.mark.parametrize(("process", "who"), [(2, "process 2"), (-1, "a stranger")])
def test_what_is_no_message_names_who_sent_it(process: int, who: str) -> None:
    for content, what in (
        (b"nonsense", "bytes that are not a message"),
        (b'{"t":"Filled","nbytes":null}', "an ill-formed Filled: its 'nbytes'"),
        (b'{"t":"Filled","nbytes":1}', "Filled instead of Done or Failed"),
    ):
        with raw() as (sender, link):
            link.process = process
            sender.sendall(struct.pack("!I", len(content)) + content)
            with pytest.raises(ProtocolError, match=f"^{who} sent {what}"):
                link.receive(Done, Failed, timeout=20)
            with pytest.raises(WireError, match="an earlier message"):
                link.receive(Done, timeout=20)


def test_a_huge_length_is_refused_before_memory_is_taken() -> None:
    with raw() as (sender, link):
        sender.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(WireError, match="4294967295"):
            link.receive(Done, timeout=20)


def test_a_late_answer_is_not_taken_for_the_next_one() -> None:
    with pair() as (one, two):
        with pytest.raises(TimeoutError):
            one.receive(Done, timeout=0.01)
        two.send(Done(), timeout=20)
        with pytest.raises(TimeoutError):
            one.receive(Done, timeout=20)
        # The other direction is whole.
        one.send(Vote(None), timeout=20)
        assert two.receive(Vote, timeout=20) == Vote(None)


def test_half_a_message_is_not_continued_by_another() -> None:
    with pair() as (one, two):
        with pytest.raises(TimeoutError):
            one.send(Pieces(), [np.zeros(1 << 24, np.uint8)], timeout=0.05)
        with pytest.raises(TimeoutError):
            one.send(Done(), timeout=20)
        one.beat()
        one.close()
        with pytest.raises(WireError, match="closed"):
            two.receive(Pieces, timeout=20, into=[np.zeros(1 << 24, np.uint8)])


def test_a_wait_is_given_up_when_it_is_told_to() -> None:
    class GivenUpError(Exception):
        pass

    for waiting in ("send", "receive"):
        with pair() as (one, two):
            told = threading.Event()

            def stop(told: threading.Event = told) -> None:
                if told.is_set():
                    raise GivenUpError

            timer = threading.Timer(0.05, told.set)
            timer.start()
            with pytest.raises(GivenUpError):
                if waiting == "send":
                    one.send(Pieces(), [np.zeros(1 << 24, np.uint8)], timeout=60, stop=stop)
                else:
                    one.receive(Done, timeout=60, stop=stop)
            two.send(Done(), timeout=20)
            with pytest.raises(WireError, match="GivenUpError"):
                if waiting == "send":
                    one.send(Done(), timeout=20)
                else:
                    one.receive(Done, timeout=20)


def test_beats_keep_a_wait_alive_and_end_with_it() -> None:
    with pair() as (one, two):
        stop = threading.Event()

        def beat() -> None:
            # For longer than the wait would last without them; one comes much sooner, also on a busy machine.
            end = time.monotonic() + 1.7
            while time.monotonic() < end:
                time.sleep(0.05)
                one.beat()
            one.send(Decided("at last"), timeout=20)
            stop.set()

        thread = threading.Thread(target=beat)
        thread.start()
        assert two.receive(Decided, timeout=1.5) == Decided("at last")
        thread.join(20)
        with pytest.raises(TimeoutError):
            two.receive(Decided, timeout=0.01)


def test_a_beat_does_not_wait_for_a_side_that_takes_nothing() -> None:
    with pair() as (one, _):
        for _ in range(100_000):
            one.beat()
        assert not one.takes_at_once()


def test_an_end_bounds_a_side_that_trickles() -> None:
    with raw() as (sender, link):
        stop = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                sender.sendall(struct.pack("!I", 1000))
                while not stop.wait(0.01):
                    sender.sendall(b" ")

        thread = threading.Thread(target=trickle)
        thread.start()
        with pytest.raises(TimeoutError):
            link.receive(Done, timeout=20, end=time.monotonic() + 0.2)
        stop.set()
        thread.join(20)


def test_the_times_of_two_threads_are_their_own() -> None:
    with pair() as (one, two):
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(two.receive(Filled, timeout=20)))
        thread.start()
        for _ in range(50):
            two.send(Done(), timeout=0.001)
        time.sleep(0.1)
        one.send(Filled(1), timeout=20)
        thread.join(20)
        assert found == [Filled(1)]


def test_closing_wakes_who_waits_and_frees_the_descriptor_afterwards() -> None:
    one, two = socket.socketpair()
    link = Link(one, 1)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            link.receive(Done, timeout=20)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    link.close()
    link.close()
    for thread in threads:
        thread.join(20)
    assert isinstance(errors[0], WireError)
    assert one.fileno() == -1
    with pytest.raises(WireError, match="this side"):
        link.send(Done(), timeout=1)
    two.close()


def test_whether_the_other_side_is_there() -> None:
    with pair() as (one, two):
        assert one.is_open()
        two.send(Done(), timeout=1)
        assert one.is_open()
        two.close()
        assert not one.is_open()
        one.close()
        assert not one.is_open()


def test_what_does_not_fit_into_json_leaves_the_connection_whole() -> None:
    with pair() as (one, two):
        with pytest.raises(TypeError):
            one.send(Decided(object()), timeout=1)
        one.send(Done(), timeout=1)
        assert two.receive(Done, timeout=1) == Done()


def test_bytes_are_checksummed_between_hosts_only() -> None:
    payload = b"\0\1\2"
    for is_local in (False, True):
        with raw() as (sender, link):
            link.is_local = is_local
            link.send(Pieces(), [np.arange(3, dtype=np.uint8)], timeout=1)
            content = sender.recv(1000)
            (size,) = struct.unpack("!I", content[:4])
            sum_of = b"" if is_local else struct.pack("!I", google_crc32c.value(payload))
            assert content[4 + size :] == payload + sum_of


def test_bytes_are_received_where_they_belong() -> None:
    targets = [np.zeros(3, np.int32), np.zeros((0, 2)), np.zeros((2, 2), np.float32)]
    with pair() as (one, two):
        one.send(Pieces(), [np.arange(3, dtype=np.int32), np.ones((2, 2), np.float32)], timeout=20)
        two.receive(Pieces, timeout=20, into=targets)
        assert targets[0].tolist() == [0, 1, 2]
        assert (targets[2] == 1).all()
        one.send(Pieces(), [np.zeros(5, np.uint8)], timeout=20)
        with pytest.raises(ProtocolError, match="5 bytes instead of 28"):
            two.receive(Pieces, timeout=20, into=targets)
