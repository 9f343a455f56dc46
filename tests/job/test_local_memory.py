"""Memory that processes of a host share: what one writes the other reads, and nobody can be made to use something else."""

import fcntl
import gc
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxckpt.job.modes.local_memory import OpenedMemory, SharedMemory, open_offered

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory files")

_OTHER = """
import json, sys
import numpy as np
from jaxckpt.job.modes.local_memory import OpenedMemory

memory = OpenedMemory(json.loads(sys.argv[1]))
found = [np.empty(5, np.uint8), np.empty(0, np.float32), np.empty((2, 3), np.float32)]
memory.read(100, found)
print(bytes(found[0]).decode(), found[2].ravel().tolist())
"""


def test_another_process_reads_it() -> None:
    memory = SharedMemory(5000)
    memory.array(100, 5)[:] = np.frombuffer(b"hello", np.uint8)
    memory.array(105, 24)[:] = np.arange(6, dtype=np.float32).view(np.uint8)
    done = subprocess.run(
        [sys.executable, "-c", _OTHER, json.dumps(memory.offer)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "hello [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]\n"


def test_many_parts_are_read_in_several_calls() -> None:
    memory = SharedMemory(5000)
    memory.array(0, 5000)[:] = np.arange(5000) % 251
    parts = [np.empty(3, np.uint8) for _ in range(1500)]
    OpenedMemory(memory.offer).read(7, parts)
    np.testing.assert_array_equal(np.concatenate(parts), (np.arange(4500) + 7) % 251)


def test_something_else_is_not_taken_for_it() -> None:
    memory, other = SharedMemory(100), SharedMemory(100)
    assert open_offered(memory.offer) is not None
    for changed in ({"proof": other.offer["proof"]}, {"fd": 10**6}, {"pid": 2**22 + 1}, {"size": 50}, {"fd": 0}):
        assert open_offered({**memory.offer, **changed}) is None, changed


def test_nobody_can_make_it_smaller() -> None:
    memory = SharedMemory(100)
    descriptor = os.open(f"/proc/{os.getpid()}/fd/{memory.offer['fd']}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 10)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        os.close(descriptor)


def test_it_lives_as_long_as_somebody_uses_it() -> None:
    memory = SharedMemory(1 << 20)
    offer, array = memory.offer, memory.array(0, 1 << 20)
    opened = OpenedMemory(offer)
    del memory
    gc.collect()
    assert open_offered(offer) is None
    array[1000:1004] = np.arange(4)
    found = np.empty(4, np.uint8)
    opened.read(1000, [found])
    assert found.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        opened._view(1000, found)[...] = 0
