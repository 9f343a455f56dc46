"""How a state is saved and restored: the interface, the floors, and jaxckpt. `benchmarks.libraries` has the others.

A save is over when everything is on stable storage. Orbax, DCP and jaxckpt see to that themselves; for the libraries that leave it to
their user, the fsync that the user would have to add is part of the time.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import states

Wait = Callable[[], object]
_THREADS = 2


class Contender:
    """A way to save and restore.

    Attributes:
      name: as given on the command line.
      package: the distribution that has to be installed, or None.
      restores, asynchronous: whether it can.
      verifies: whether a flipped bit in an array is an error when it restores.
    """

    name = ""
    package: str | None = None
    module: str | None = None
    restores = True
    asynchronous = False
    verifies = False

    def __init__(self, state: states.State) -> None:
        """Takes the state in the library's own form; not measured."""
        self.state = state

    @classmethod
    def version(cls) -> str | None:
        """Returns the version that is installed, "" for none needed, None if it is missing."""
        if cls.package is None:
            return ""
        if cls.module is not None and importlib.util.find_spec(cls.module) is None:
            return None
        try:
            return importlib.metadata.version(cls.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def save(self, path: str) -> None:
        """Saves; returns when the checkpoint is complete and on stable storage."""
        raise NotImplementedError

    def start(self, path: str) -> Wait:
        """Starts a save; returns when the state may be changed again. The result waits for the end of it."""
        raise NotImplementedError

    def restoring(self, path: str) -> Callable[[], Any]:
        """Makes the targets of a restore, and returns what restores: the arrays, in the order of the leaves of the state.

        The arrays are the library's own, on the device that it computes on.
        """
        return lambda: self.restore(path)

    def restore(self, path: str) -> Any:
        """Restores; for libraries that need no targets of their own."""
        raise NotImplementedError


def _in_background(work: Callable[[], object]) -> Wait:
    """Runs `work` on a thread; the wait raises its error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    def wait() -> None:
        thread.join()
        if errors:
            raise errors[0]

    thread = threading.Thread(target=run)
    thread.start()
    return wait


def _bytes(array: Any) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _both(work: Callable[[int], object]) -> None:
    waits = [_in_background(lambda part=part: work(part)) for part in range(_THREADS)]  # type: ignore[misc]
    for wait in waits:
        wait()


def sync_files(path: str) -> None:
    """Syncs a file, or everything in a directory."""
    found = [path, os.path.dirname(path)]
    for folder, _, names in os.walk(path):
        found += [folder, *(os.path.join(folder, name) for name in names)]
    for name in found:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(name, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


class Raw(Contender):
    """The floor: the bytes of the arrays, half of them a thread, written and synced; read back into fresh memory."""

    name = "raw"
    asynchronous = True

    def __init__(self, state: states.State) -> None:
        super().__init__(state)
        self._arrays = [states.plain(leaf) for leaf in jax.tree.leaves(state)]
        self._parts: list[list[int]] = [[] for _ in range(_THREADS)]
        held = [0] * _THREADS
        for position, array in enumerate(self._arrays):
            part = held.index(min(held))
            self._parts[part].append(position)
            held[part] += array.nbytes

    def save(self, path: str) -> None:
        os.makedirs(path)

        def write(part: int) -> None:
            with open(os.path.join(path, str(part)), "wb", buffering=1 << 20) as file:
                for position in self._parts[part]:
                    file.write(_bytes(self._arrays[position]))
                file.flush()
                os.fsync(file.fileno())

        _both(write)

    def start(self, path: str) -> Wait:
        return _in_background(lambda: self.save(path))

    def restore(self, path: str) -> Any:
        out: list[Any] = [None] * len(self._arrays)

        def read(part: int) -> None:
            with open(os.path.join(path, str(part)), "rb") as file:
                for position in self._parts[part]:
                    array = np.empty_like(self._arrays[position])
                    file.readinto(_bytes(array))
                    out[position] = array

        _both(read)
        return out


class Memcpy(Contender):
    """A copy in memory: what no save that copies the state can beat."""

    name = "memcpy"
    restores = False

    def save(self, path: str) -> None:
        del path
        self.copies = [np.array(states.plain(leaf), copy=True) for leaf in jax.tree.leaves(self.state)]


class Jaxckpt(Contender):
    """This project."""

    name = "jaxckpt"
    package = "jaxckpt"
    asynchronous = True
    verifies = True

    def __init__(self, state: states.State) -> None:
        super().__init__(state)
        import jaxckpt

        self._checkpoint = jaxckpt.Checkpoint(**state)
        self._targets = jaxckpt.Checkpoint(**states.targets(state))
        self._options = jaxckpt.CheckpointOptions(enable_async=True)

    @classmethod
    def version(cls) -> str | None:
        import jaxckpt

        return jaxckpt.__version__

    def save(self, path: str) -> None:
        self._checkpoint.write(path)

    def start(self, path: str) -> Wait:
        self._checkpoint.write(path, self._options)
        return self._checkpoint.sync

    def restore(self, path: str) -> Any:
        self._targets.read(path).assert_existing_objects_matched()
        values = {name: getattr(self._targets, name) for name in self.state}
        return jax.block_until_ready(jax.tree.leaves(values))
