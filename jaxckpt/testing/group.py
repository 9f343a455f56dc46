"""All processes of a job together: their states, waiting for them, and ending them."""

import multiprocessing.connection
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from jaxckpt.testing.launcher import Process
from jaxckpt.testing.results import JobFailed, JobTimeout, ProcessResult
from jaxckpt.testing.watchdog import Watchdog

# How often to check whether a process has ended. Messages are noticed at once.
_POLL_SECS = 0.02


class Group:
    """The processes of a job, and the directory for the exchange of files with them.

    Attributes:
      directory: directory of the files with calls, results and output.
      call: number of the current call; 0 before the first call.
      watchdog: ends the processes if this process is killed.
    """

    def __init__(self) -> None:
        self.directory = os.path.realpath(tempfile.mkdtemp(prefix="jaxckpt-job-"))
        self.call = 0
        self.watchdog = Watchdog(self.directory)
        self._processes: list[Process] = []

    def add(self, process: Process) -> None:
        """Adds the next process."""
        self._processes.append(process)

    def __getitem__(self, index: int) -> Process:
        if not 0 <= index < len(self._processes):
            raise IndexError(f"there is no process {index}; the job has {len(self._processes)}, from 0.")
        return self._processes[index]

    def __iter__(self) -> Iterator[Process]:
        return iter(self._processes)

    def having(self, *states: str) -> list[int]:
        """Returns the indices of the processes in one of these states."""
        return [process.index for process in self if process.state in states]

    def busy(self) -> list[int]:
        """Returns the indices of the processes for which the parent waits."""
        return self.having("starting", "running")

    def failed(self) -> list[int]:
        """Returns the indices of the processes on which the function raised, or that ended by themselves."""
        return self.having("raised", "died")

    def alive(self) -> list[Process]:
        """Returns the processes that have not ended."""
        return [process for process in self if process.alive]

    def update(self) -> None:
        """Reads new messages of the processes, and notices which processes have ended."""
        for process in self:
            process.update()

    def wait(self, condition: Callable[[], object], deadline: float) -> bool:
        """Waits until a condition is true. Returns whether it became true before the deadline.

        Args:
          condition: called after each update of the processes.
          deadline: a time of `time.monotonic`.
        """
        while True:
            self.update()
            if condition():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            multiprocessing.connection.wait([process.socket for process in self.alive()], min(_POLL_SECS, remaining))

    def wait_ended(self, processes: list[Process], deadline: float) -> bool:
        """Waits until processes have ended. Returns whether they ended before the deadline.

        Args:
          processes: the processes, which have been told to end.
          deadline: a time of `time.monotonic`.
        """
        while [process for process in processes if not process.ended()]:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECS / 2)
        return True

    def results(self) -> list[ProcessResult]:
        """Returns the result of the current call on each process."""
        return [process.result(self.call) for process in self]

    def stop(self, showing: Sequence[int]) -> None:
        """Kills all processes.

        Args:
          showing: indices of the processes whose threads' stacks are read before.
        """
        for index in showing:
            self[index].ask_for_stacks()
        for index in showing:
            self[index].read_stacks()
        self._kill()

    def close(self) -> None:
        """Kills all processes, and removes the directory."""
        self._kill()
        self.watchdog.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _kill(self) -> None:
        # All processes are killed before the first is waited for. Otherwise JAX in one would report the end of another.
        for process in self:
            process.signal_group(signal.SIGKILL)
        for process in self:
            process.close()

    def time_out(self, what: str) -> NoReturn:
        """Kills all processes and raises a `JobTimeout` that shows them."""
        self.stop(self.busy() or [process.index for process in self.alive()])
        raise JobTimeout(what, self.results())

    def fail(self, what: str) -> NoReturn:
        """Raises a `JobFailed` that shows all processes."""
        raise JobFailed(what, self.results())
