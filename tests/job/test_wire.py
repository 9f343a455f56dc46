"""Framing: what is sent arrives, whatever the sizes; what is not a message is an error; and no wait is longer than its bound."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxckpt.job.protocol.wire import Link, WireError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
HEADERS = st.dictionaries(st.text(max_size=8).filter(lambda name: name not in ("n", "t")), JSON, max_size=4)


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


@given(st.lists(st.tuples(HEADERS, st.none() | st.lists(st.binary(max_size=40), max_size=700)), max_size=6))
def test_what_is_sent_arrives(messages: list[tuple[dict[str, object], list[bytes] | None]]) -> None:
    with pair() as (one, two):

        def send() -> None:
            for header, parts in messages:
                arrays = None if parts is None else [np.frombuffer(part, np.uint8) for part in parts]
                one.send(header, arrays, timeout=20)
                one.beat()

        thread = threading.Thread(target=send)
        thread.start()
        for header, parts in messages:
            found = two.receive(20)
            own = ("n", "sum")  # what the link adds
            assert {name: value for name, value in found.header.items() if name not in own} == {
                name: value for name, value in header.items() if name not in own
            }
            if not parts:
                assert found.payload is None
            else:
                assert found.payload is not None
                assert found.payload.tobytes() == b"".join(parts)
        thread.join(20)


def test_payloads_larger_than_the_buffers_of_the_socket() -> None:
    arrays = [np.arange(1_000_000, dtype=np.int32), np.empty(0), np.full((3, 1000), 3, np.float32)]
    with pair() as (one, two):
        thread = threading.Thread(target=one.send, args=({"t": "x"}, arrays), kwargs={"timeout": 20})
        thread.start()
        found = two.receive(20)
        thread.join(20)
        assert found.payload is not None
        assert found.payload.tobytes() == b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


@given(st.binary(max_size=200))
def test_garbage_is_an_error(content: bytes) -> None:
    with raw() as (sender, link):
        sender.sendall(content)
        sender.close()
        with pytest.raises((WireError, TimeoutError)):
            while True:
                header = link.receive(1, max_payload=100, max_header=100).header
                assert isinstance(header, dict)


@pytest.mark.parametrize(
    "text",
    [
        *["", "[]", "3", "null", "nul", '{"n": NaN}', '{"n": Infinity}', '{"n": 1e400}', '{"n": -1}', '{"n": "1"}'],
        *['{"n": true}', '{"n": 1.0}', '{"n": 65}', '{"n": [1]}', '{"n": null}', "[" * 100_000, '{"a":' * 100_000],
        '{"n": ' + "9" * 5000 + "}",
    ],
)
def test_headers_that_are_bombs(text: str) -> None:
    with raw() as (sender, link):
        thread = threading.Thread(target=sender.sendall, args=(struct.pack("!I", len(text)) + text.encode(),))
        thread.start()
        with pytest.raises(WireError):
            link.receive(20, max_payload=64)
        link.close()
        thread.join(20)


def test_a_huge_length_is_refused_before_memory_is_taken() -> None:
    with raw() as (sender, link):
        sender.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(WireError, match="4294967295"):
            link.receive(20)


def test_a_late_answer_is_not_taken_for_the_next_one() -> None:
    with pair() as (one, two):
        with pytest.raises(TimeoutError):
            one.receive(0.01)
        two.send({"t": "late"}, timeout=20)
        with pytest.raises(TimeoutError):
            one.receive(20)
        one.send({"t": "failed"}, timeout=20)  # The other direction is whole.
        assert two.receive(20).header == {"t": "failed"}


def test_half_a_message_is_not_continued_by_another() -> None:
    with pair() as (one, two):
        with pytest.raises(TimeoutError):
            one.send({"t": "x"}, np.zeros(1 << 24, np.uint8), timeout=0.05)
        with pytest.raises(TimeoutError):
            one.send({"t": "y"}, timeout=20)
        one.beat()
        one.close()
        with pytest.raises(WireError, match="closed"):
            two.receive(20)


def test_beats_keep_a_wait_alive_and_end_with_it() -> None:
    with pair() as (one, two):
        stop = threading.Event()

        def beat() -> None:
            for _ in range(10):
                time.sleep(0.05)
                one.beat()
            one.send({"t": "at last"}, timeout=20)
            stop.set()

        thread = threading.Thread(target=beat)
        thread.start()
        assert two.receive(0.4).header == {"t": "at last"}
        thread.join(20)
        with pytest.raises(TimeoutError):
            two.receive(0.01)


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
            link.receive(20, end=time.monotonic() + 0.2)
        stop.set()
        thread.join(20)


def test_the_times_of_two_threads_are_their_own() -> None:
    with pair() as (one, two):
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(two.receive(20).header))
        thread.start()
        for _ in range(50):
            two.send({"t": "x"}, timeout=0.001)
        time.sleep(0.1)
        one.send({"t": "y"}, timeout=20)
        thread.join(20)
        assert found == [{"t": "y"}]


def test_closing_wakes_who_waits_and_frees_the_descriptor_afterwards() -> None:
    one, two = socket.socketpair()
    link = Link(one, 1)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            link.receive(20)
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
        link.send({}, timeout=1)
    two.close()


def test_whether_the_other_side_is_there() -> None:
    with pair() as (one, two):
        assert one.is_open()
        two.send({"t": "x"}, timeout=1)
        assert one.is_open()
        two.close()
        assert not one.is_open()
        one.close()
        assert not one.is_open()


def test_what_does_not_fit_into_json_leaves_the_connection_whole() -> None:
    with pair() as (one, two):
        with pytest.raises(TypeError):
            one.send({"t": object()}, timeout=1)
        one.send({"t": "x"}, timeout=1)
        assert two.receive(1).header == {"t": "x"}


def test_the_frame_is_a_length_and_json() -> None:
    with raw() as (sender, link):
        link.is_local = False
        link.send({"t": "x"}, np.arange(3, dtype=np.uint8), timeout=1)
        content = sender.recv(1000)
        (size,) = struct.unpack("!I", content[:4])
        assert json.loads(content[4 : 4 + size]) == {"t": "x", "n": 3, "sum": True}
        payload = b"\0\1\2"
        assert content[4 + size :] == payload + struct.pack("!I", google_crc32c.value(payload))
        for position in range(4 + size, len(content)):  # A byte of the payload, or of its checksum, that has changed.
            changed = bytearray(content)
            changed[position] ^= 1
            with raw() as (forger, victim):
                forger.sendall(changed)
                with pytest.raises(WireError, match="checksum"):
                    victim.receive(20)


def test_a_payload_is_received_where_it_belongs() -> None:
    targets = [np.zeros(3, np.int32), np.zeros((0, 2)), np.zeros((2, 2), np.float32)]
    with pair() as (one, two):
        one.send({"t": "x"}, [np.arange(3, dtype=np.int32), np.ones((2, 2), np.float32)], timeout=20)
        assert two.receive(20, into=targets).payload is None
        assert targets[0].tolist() == [0, 1, 2]
        assert (targets[2] == 1).all()
        one.send({"t": "x"}, np.zeros(5, np.uint8), timeout=20)
        with pytest.raises(WireError, match="instead of"):
            two.receive(20, into=targets)
