"""Memory that processes of a host share: what one writes the other reads, and a process cannot be made to use something else."""

import dataclasses
import errno
import fcntl
import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import local_memory
from jaxckpt.job.modes.local_memory import OpenedSlots, SharedSlots, open_slots, share_slots

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory files")

_OTHER = """
import json, sys
import numpy as np
from jaxckpt.job.modes.local_memory import OpenedSlots
from jaxckpt.job.protocol.parts import SlotOffer

memory = OpenedSlots(SlotOffer(**json.loads(sys.argv[1])))
found = [np.empty(5, np.uint8), np.empty(0, np.float32), np.empty((2, 3), np.float32)]
memory.read(1, found)
print(bytes(found[0]).decode(), found[2].ravel().tolist())
"""


@pytest.mark.slow
def test_another_process_reads_it() -> None:
    memory = SharedSlots(2, 5000)
    target = memory.slot(1, 29)
    target[:5] = np.frombuffer(b"hello", np.uint8)
    target[5:] = np.arange(6, dtype=np.float32).view(np.uint8)
    offer = json.dumps(dataclasses.asdict(memory.offer))
    done = subprocess.run([sys.executable, "-c", _OTHER, offer], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "hello [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]\n"


@pytest.mark.slow
def test_a_process_of_another_user_is_refused() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    offer = json.dumps(dataclasses.asdict(SharedSlots(2, 5000).offer))
    program = (
        "import os\nfrom jaxckpt.job.modes import local_memory\nimport numpy, json\nos.setuid(65534)\n"
        + _OTHER.replace("memory = ", "try: memory = ").partition("found")[0]
        + "except PermissionError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", program, offer], capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr


def test_many_parts_in_every_slot() -> None:
    memory = SharedSlots(3, 4500)
    opened = OpenedSlots(memory.offer)
    for number in range(3):
        memory.slot(number, 4500)[:] = (np.arange(4500) + number) % 251
    for number in range(3):
        parts = [np.empty(3, np.uint8) for _ in range(1500)]
        opened.read(number, parts)
        np.testing.assert_array_equal(np.concatenate(parts), (np.arange(4500) + number) % 251)


@pytest.mark.parametrize(("number", "nbytes"), [(2, 1), (-1, 1), (0, 101), (0, -1)])
def test_there_are_no_other_slots(number: int, nbytes: int) -> None:
    memory = SharedSlots(2, 100)
    for side in (memory, OpenedSlots(memory.offer)):
        with pytest.raises(ProcessError, match="there are 2 slots of 100 bytes"):
            side.slot(number, nbytes)


def test_something_else_is_not_taken_for_it() -> None:
    memory, other = SharedSlots(2, 50), SharedSlots(2, 50)
    assert open_slots(memory.offer) is not None
    assert open_slots(None) is None
    for changed in ({"proof": other.offer.proof}, {"fd": 10**6}, {"pid": 2**22 + 1}, {"count": 1}, {"fd": 0}):
        assert open_slots(dataclasses.replace(memory.offer, **changed)) is None, changed


def test_memory_that_could_become_smaller_is_not_used(tmp_path: Path) -> None:
    """A file, or memory without the seal: reading behind its end would kill this process."""
    offer = SharedSlots(1, 100).offer
    with open(tmp_path / "file", "w+b") as file:
        file.write(bytes(100) + bytes.fromhex(offer.proof))
        file.flush()
        unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
        os.write(unsealed, bytes(100) + bytes.fromhex(offer.proof))
        for descriptor in (file.fileno(), unsealed):
            assert open_slots(dataclasses.replace(offer, fd=descriptor)) is None
        os.close(unsealed)


def test_it_cannot_be_made_smaller() -> None:
    memory = SharedSlots(1, 100)
    descriptor = os.open(f"/proc/{os.getpid()}/fd/{memory.offer.fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 10)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        os.close(descriptor)


def test_it_lives_as_long_as_a_process_uses_it() -> None:
    memory = SharedSlots(1, 1 << 20)
    offer, array = memory.offer, memory.slot(0, 1 << 20)
    opened = OpenedSlots(offer)
    memory.withdraw()
    memory.withdraw()
    assert open_slots(offer) is None
    del memory
    gc.collect()
    array[:4] = np.arange(4)
    found = np.empty(4, np.uint8)
    opened.read(0, [found])
    assert found.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        opened.slot(0, 4)[...] = 0


def test_a_limit_of_the_size_of_files_is_no_error() -> None:
    """The memory is a file for the kernel, so that the limit holds for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    descriptors = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        assert share_slots(2, 1 << 20) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert share_slots(2, 1 << 20) is not None
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOSPC])
def test_no_memory_left_is_no_error(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert share_slots(2, 1 << 20) is None


def test_a_system_that_does_not_know_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 6.3."""
    create = os.memfd_create

    def old(name: str, flags: int) -> int:
        if flags & local_memory._NOEXEC:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    memory = share_slots(1, 100)
    assert memory is not None
    assert open_slots(memory.offer) is not None
