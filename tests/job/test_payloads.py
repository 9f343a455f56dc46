"""Bytes between processes: what arrives is what was sent, in the place where it should be, or it is an error."""

import gc
import socket
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxckpt._lib.aligned import aligned_empty
from jaxckpt.job.modes.buffers import Pool
from jaxckpt.job.protocol.frames import ProtocolError
from jaxckpt.job.protocol.link import Link
from jaxckpt.job.protocol.messages import Done, Pieces

SECS = 20


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def transfer(parts: list[np.ndarray], into: Sequence[np.ndarray], *, checksums: bool) -> None:
    one, other = socket.socketpair()
    sender, receiver = Link(one, 1), Link(other, 0)
    sender.is_local = not checksums
    sending = threading.Thread(target=sender.send, args=(Pieces(), parts), kwargs={"timeout": SECS})
    sending.start()
    try:
        assert receiver.receive(Pieces, timeout=SECS, into=into) == Pieces()
        sender.send(Done(), timeout=SECS)
        assert receiver.receive(Done, timeout=SECS) == Done(), "the bytes left something in the connection"
    finally:
        sending.join(SECS)
        sender.close()
        receiver.close()


SIZES = st.lists(
    st.sampled_from([0, 1, 7, 4000, 32 << 10, (32 << 10) + 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 3]), max_size=12
)


@settings(max_examples=examples(40), deadline=None)
@given(sizes=SIZES, checksums=st.booleans(), whole=st.booleans())
def test_what_arrives_is_what_was_sent(sizes: list[int], checksums: bool, whole: bool) -> None:
    random = np.random.default_rng(sum(sizes))
    parts = [random.integers(0, 256, size, np.uint8) for size in sizes]
    into = [np.zeros(sum(sizes), np.uint8)] if whole else [np.zeros_like(part) for part in parts]

    transfer(parts, into, checksums=checksums)

    empty = np.empty(0, np.uint8)
    assert np.array_equal(np.concatenate([empty, *into]), np.concatenate([empty, *parts]))


def test_bytes_go_into_arrays_of_any_dtype_and_shape() -> None:
    parts = [np.arange(12, dtype=np.float32).reshape(3, 4), np.asarray(7, np.int16), np.ones((2, 0), np.int8)]
    into = [np.empty_like(part) for part in parts]

    transfer(parts, into, checksums=True)

    for part, target in zip(parts, into, strict=True):
        np.testing.assert_array_equal(part, target)


@pytest.mark.parametrize("size", [100, 3 << 20])
def test_a_bit_that_was_flipped_on_the_way_is_an_error(ends: tuple[socket.socket, socket.socket], size: int) -> None:
    receiver = Link(ends[1], 0)
    one, other = socket.socketpair()
    recorder = Link(one, 1)
    recorder.is_local = False
    content = bytearray()

    def record() -> None:
        recorder.send(Pieces(), [np.zeros(size, np.uint8)], timeout=SECS)
        one.shutdown(socket.SHUT_WR)

    recording = threading.Thread(target=record)
    recording.start()
    while block := other.recv(1 << 20):
        content += block
    recording.join(SECS)
    one.close()
    other.close()
    content[-50] ^= 4
    replaying = threading.Thread(target=ends[0].sendall, args=(content,))
    replaying.start()

    with pytest.raises(ProtocolError, match="process 0 sent the bytes of Pieces.*checksums differ"):
        receiver.receive(Pieces, timeout=SECS, into=[np.empty(size, np.uint8)])

    replaying.join(SECS)


def test_a_payload_of_another_size_than_its_place_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="Pieces with 10 bytes instead of 12"):
        transfer([np.zeros(10, np.uint8)], [np.zeros(12, np.uint8)], checksums=False)


def test_a_buffer_in_use_is_not_used_again() -> None:
    pool = Pool(64 << 20)
    first = pool.take(3 << 20)
    first[:] = 1
    view = first[100:200].view(np.int32).reshape(5, 5)
    address = first.ctypes.data
    del first
    gc.collect()

    second = pool.take(3 << 20)
    second[:] = 2

    assert (view == 0x01010101).all()
    assert second.ctypes.data != address
    del view
    gc.collect()
    assert pool.take(3 << 20).ctypes.data == address


def test_a_pool_keeps_no_more_than_it_may() -> None:
    pool = Pool(4 << 20)
    taken = [pool.take(2 << 20) for _ in range(5)]
    taken.clear()
    gc.collect()

    assert sum(memory.nbytes for memory in pool._free) <= 4 << 20


@pytest.mark.parametrize(
    ("shape", "alignment"), [((), 64), ((0, 3), 1), ((5,), 64), ((1000, 1001), 64), ((1049, 1000), 2 << 20)]
)
def test_aligned_arrays(shape: tuple[int, ...], alignment: int) -> None:
    array = aligned_empty(shape, np.dtype(np.float32))

    assert array.shape == shape
    assert array.ctypes.data % alignment == 0
    assert array.flags.c_contiguous
    assert array.flags.writeable
