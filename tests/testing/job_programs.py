"""What the tests of jaxckpt.testing run in the processes of jobs."""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxckpt import testing


class Unpicklable(Exception):  # noqa: N818
    def __init__(self, one: object, two: object) -> None:
        super().__init__("two arguments make it, one comes back")
        self.why = lambda: (one, two)


def topology(*, offset: int = 0) -> tuple[int, int, int]:
    return jax.process_index() + offset, jax.process_count(), jax.local_device_count()


def total(value: float) -> np.ndarray:
    return multihost_utils.process_allgather(np.float32(value + jax.process_index())).sum()


def array(size: int) -> dict[str, jax.Array]:
    return {"a": jax.numpy.arange(size)}


def global_array() -> jax.Array:
    mesh = jax.sharding.Mesh(jax.devices(), "d")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    return jax.make_array_from_callback((12,), sharding, lambda index: np.arange(12.0)[index])


def environment(name: str) -> tuple[str | None, str]:
    return os.environ.get(name), os.getcwd()


def say(text: str) -> None:
    print(text, jax.process_index())
    os.system(f"echo {text} by a shell")


def fail_on(index: int, kind: str = "OSError") -> None:
    if jax.process_index() == index:
        print("about to fail")
        match kind:
            case "OSError":
                raise OSError(28, "no room")
            case "Unpicklable":
                raise Unpicklable(1, 2)
            case "SystemExit":
                sys.exit(3)


def fail_while_others_wait() -> None:
    if jax.process_index() == 1:
        testing.pause("fail")
        raise KeyError("mine")
    testing.signal("waiting")
    multihost_utils.sync_global_devices("never")


def die_on(index: int, status: int) -> None:
    if jax.process_index() == index:
        os._exit(status)


def fail_at_exit() -> None:
    atexit.register(os._exit, 3)


def stay_at_exit() -> None:
    atexit.register(time.sleep, 600)


def leave_mark_at_exit(directory: str) -> None:
    atexit.register((Path(directory) / str(jax.process_index())).touch)


def lonely_wait() -> None:
    testing.signal("waiting")
    if jax.process_index() == 0:
        time.sleep(600)


def wait_in_thread() -> str:
    said: list[str] = []

    def wait() -> None:
        testing.pause("gate")
        said.append("through")

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    return said[0]


def two_gates() -> str:
    testing.pause("first")
    testing.pause("second")
    return "through"


def start_child() -> int:
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    testing.signal("ready")
    signal.pause()
    return child.pid


def start_child_and_tell(path: str) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    target = Path(path) / f"pid-{jax.process_index()}"
    target.with_suffix(".part").write_text(str(child.pid))
    target.with_suffix(".part").rename(target)
    testing.signal("ready")
    signal.pause()


def write(directory: str, name: str, size: int = 1) -> list[str]:
    (Path(directory) / f"{name}-{jax.process_index()}").write_bytes(b"x" * size)
    return sorted(os.listdir(directory))


def write_and_stay(directory: str) -> None:
    write(directory, "kept")
    testing.signal("written")
    signal.pause()


def read(directory: str) -> list[str]:
    return sorted(os.listdir(directory))


def ids() -> tuple[int, int]:
    return os.getuid(), os.getgid()
