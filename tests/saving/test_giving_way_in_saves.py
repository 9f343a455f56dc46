"""The threads that write an asynchronous save give way to the program. Those of a synchronous one do not, nor do the program's own."""

import os
import sys
import threading
from collections import defaultdict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxckpt
from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.giving_way import GivingWay
from jaxckpt.storage.arrays.database import Chunk, Database

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux each thread has a priority of its own")

_BYTES = 1 << 16


def nice_of(thread: int) -> int:
    """Returns the nice value of a thread of this process, by its native id."""
    return int(Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[16])


class Seen:
    """The nice values of the threads that write arrays and that sync files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writing: set[int] = set()
        self.syncing: dict[int, int] = defaultdict(int)
        write, sync = os.write, os.fsync

        def writing(descriptor: int, data: memoryview) -> int:
            if len(data) >= _BYTES:
                self.writing.add(nice_of(threading.get_native_id()))
            return write(descriptor, data)

        def syncing(descriptor: int) -> None:
            self.syncing[nice_of(threading.get_native_id())] += 1
            sync(descriptor)

        monkeypatch.setattr(os, "write", writing)
        monkeypatch.setattr(os, "fsync", syncing)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def checkpoint() -> jaxckpt.Checkpoint:
    arrays = [jnp.arange(_BYTES, dtype=jnp.float32) + number for number in range(8)]
    return jaxckpt.Checkpoint(arrays=arrays, host=np.arange(_BYTES))


def test_an_asynchronous_save(seen: Seen, tmp_path: Path) -> None:
    before = nice_of(threading.get_native_id())
    saved = checkpoint()

    path = saved.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions(enable_async=True))
    saved.sync()

    assert seen.writing == {min(19, before + 10)}
    assert seen.syncing[min(19, before + 10)] >= 1
    # XLA's threads among them.
    assert {nice_of(thread.native_id) for thread in threading.enumerate() if thread.native_id} == {before}
    assert nice_of(max(int(task.name) for task in Path("/proc/self/task").iterdir())) == before
    restored = jaxckpt.Checkpoint(arrays=[jnp.zeros(_BYTES, jnp.float32) for _ in range(8)], host=np.zeros(_BYTES, int))
    restored.restore(path).assert_consumed()
    np.testing.assert_array_equal(restored.arrays[7], saved.arrays[7])


def test_a_synchronous_save(seen: Seen, tmp_path: Path) -> None:
    before = nice_of(threading.get_native_id())

    checkpoint().save(tmp_path / "ckpt")

    assert seen.writing == {before}
    assert set(seen.syncing) == {before}


def test_a_save_that_takes_long_goes_on_without_giving_way(tmp_path: Path) -> None:
    before = nice_of(threading.get_native_id())
    deadline = Deadline(60.0, "the test")
    relieved = threading.Event()

    def load() -> np.ndarray:
        if nice_of(threading.get_native_id()) == before:
            relieved.set()
        # Every thread that gives way stops here, until another one comes.
        assert relieved.wait(deadline.left())
        return np.zeros(_BYTES, np.uint8)

    chunks = [Chunk(f"chunk {number}", _BYTES, False, load) for number in range(100)]
    database = Database(str(tmp_path), 1 << 20, None, 1 << 30, deadline, giving_way=GivingWay(0.0))
    database.write(iter(chunks))

    assert relieved.is_set()
