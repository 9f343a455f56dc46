"""Checksums of arrays: the same as `google_crc32c`'s, and other threads run meanwhile."""

import sys
import threading
from collections.abc import Iterator

import google_crc32c
import numpy as np
import pytest

from jaxckpt._lib import checksum


@pytest.mark.parametrize("size", [0, 1, 4095, 65_535, 65_536, 1_000_003])
@pytest.mark.parametrize("before", [0, 1, 0xFFFFFFFF])
def test_same_as_of_google_crc32c(size: int, before: int) -> None:
    block = np.random.default_rng(size).integers(0, 256, size, np.uint8)

    assert checksum.extended(before, block) == google_crc32c.extend(before, block.tobytes())
    assert block.flags.writeable


def test_refuses_what_is_not_contiguous() -> None:
    with pytest.raises((ValueError, BufferError)):
        checksum.extended(0, np.zeros(1 << 20, np.uint8)[::2])


def test_sealed_values() -> None:
    contents = [np.random.default_rng(size).bytes(size) for size in (0, 1, 32, 1000)]
    values = [checksum.sealed(content) for content in contents]
    assert checksum.are_sealed(values)
    assert checksum.are_sealed([])
    for value in values:
        for bit in range(8 * len(value)):
            changed = bytearray(value)
            changed[bit // 8] ^= 1 << bit % 8
            assert not checksum.are_sealed([*values, bytes(changed)])


@pytest.fixture
def only_when_let() -> Iterator[None]:
    """Python changes to another thread only where one lets its lock go."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(before)


@pytest.mark.skipif(google_crc32c.implementation != "c", reason="google_crc32c is in pure Python here")
def test_other_threads_run_meanwhile(only_when_let: None) -> None:
    block = np.zeros(64 << 20, np.uint8)
    ran: list[bool] = []
    found = False
    # The system may let the other thread wait for longer than one checksum takes.
    for _ in range(500):
        lock = threading.Lock()
        lock.acquire()

        def run(lock: threading.Lock = lock) -> None:
            with lock:
                ran.append(True)

        thread = threading.Thread(target=run)
        thread.start()
        ran.clear()
        lock.release()
        checksum.extended(0, block)
        found = bool(ran)
        thread.join()
        if found:
            break
    assert found
