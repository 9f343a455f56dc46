"""A JAX job of several processes on this machine, which runs functions one after another."""

import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxckpt.testing import functions
from jaxckpt.testing.disks import Disk, disks_for
from jaxckpt.testing.environment import Port, environment
from jaxckpt.testing.group import Group
from jaxckpt.testing.launcher import Process
from jaxckpt.testing.results import ProcessResult

Function = Callable[..., Any] | str
Path = str | os.PathLike[str]


class Job:
    """JAX processes on this machine that run functions, one after another. Use it in a ``with`` statement.

    >>> with testing.Job(processes=3, devices=2) as job:
    ...     assert job.run(train, 10) == [0.5, 0.5, 0.5]

    Each process is a separate Python process in which ``jax.distributed.initialize`` has been called. JAX runs on the CPU. All processes
    end with the ``with`` statement at the latest, and also if this process is killed.

    Attributes:
      processes: number of processes.
      private: the path at which each process sees its own disk; None without private disks.
      disks: the private disks, one for each process; None without private disks.
    """

    def __init__(
        self,
        function: Function | None = None,
        *,
        args: Sequence[Any] = (),
        processes: int = 2,
        devices: int = 1,
        private: Path | None = None,
        private_size: str | int | None = None,
        disks: Sequence[Disk | Path] | None = None,
        timeout: float = 60,
        grace: float = 5,
        heartbeat_timeout: int = 10,
        exit: Literal["normal", "fast"] = "normal",
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Describes the job. It starts with the ``with`` statement.

        Args:
          function: a function to start at once, as by `start`; None to wait for `run` or `start`.
          args: arguments of the function.
          processes: number of processes.
          devices: number of CPU devices of each process.
          private: a path at which each process sees its own disk. All other paths are shared. It is made if it does not exist.
          private_size: size of each private disk, such as ``"16M"``, for tests of full disks; None for disks without limit.
          disks: the private disks, one for each process: `Disk` objects, such as those of an earlier job, or directories; None to make
            new ones.
          timeout: how many seconds the start, each call and the end of the job may take. After that all processes are killed.
          grace: how many seconds the other processes may take to finish after a function has failed on one process. After that all
            processes are killed.
          heartbeat_timeout: after how many seconds without an answer JAX considers a process dead, and ends the others.
          exit: how processes end. ``"normal"`` runs exit handlers, with JAX's barrier; ``"fast"`` does not. If a process was
            lost, the others always end fast, because JAX would wait for it.
          env: environment variables to set, by name; None as a value removes a variable.
          cwd: working directory of the processes; None for that of this process.

        Raises:
          ValueError: an argument is out of range, or arguments contradict each other.
          OSError: private disks are not permitted on this machine.
        """
        if processes < 1 or devices < 1:
            raise ValueError(f"processes={processes}, devices={devices}: a job needs at least one of each.")
        if exit not in ("normal", "fast"):
            raise ValueError(f"exit={exit!r}: expected 'normal' or 'fast'.")
        self.processes = processes
        self.private = None if private is None else os.path.abspath(private)
        self.disks = disks_for(processes, self.private, private_size, disks)
        self._first = None if function is None else (functions.describe(function), args)
        self._devices = devices
        self._timeout, self._grace, self._heartbeat_timeout = timeout, grace, heartbeat_timeout
        self._fast = exit == "fast"
        self._environment = environment(processes, devices, env or {})
        self._cwd = os.path.abspath(cwd or os.getcwd())
        if not os.path.isdir(self._cwd):
            raise ValueError(f"cwd={self._cwd!r} is not a directory.")
        self._group_or_none: Group | None = None

    def __enter__(self) -> "Job":
        if self._group_or_none is not None:
            raise RuntimeError("a Job is used once; make another.")
        self._group_or_none = group = Group()
        try:
            self._launch(group)
            if self._first is not None:
                self._start(*self._first, {})
        except BaseException:
            group.close()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._let_go(self._group)
        finally:
            self._group.close()

    @property
    def _group(self) -> Group:
        if self._group_or_none is None:
            raise RuntimeError("the job has not started; use it in a with statement: `with testing.Job(...) as job:`.")
        return self._group_or_none

    def _launch(self, group: Group) -> None:
        if self.private is not None:
            os.makedirs(self.private, exist_ok=True)
            private = os.path.realpath(self.private)
            if os.path.commonpath([private, group.directory]) == private:
                raise ValueError(
                    f"private={self.private!r} would hide {group.directory}, which the job needs; take another path."
                )
        deadline = time.monotonic() + self._timeout
        with Port() as port:
            for index in range(self.processes):
                disk = self.disks[index] if self.disks else None
                settings = {
                    "index": index,
                    "processes": self.processes,
                    "coordinator": port.address,
                    "directory": group.directory,
                    "cwd": self._cwd,
                    "private": self.private,
                    "disk": None if disk is None else disk.mount,
                    "timeout": max(1, int(self._timeout)),
                    "heartbeat_timeout": self._heartbeat_timeout,
                }
                group.add(Process(settings, self._environment, disk, group.watchdog))
            if not group.wait(lambda: not group.having("starting") or group.failed(), deadline):
                group.time_out(f"the job did not start within {self._timeout:g} s")
        if lost := group.failed():
            group.fail(f"process {lost[0]} ended while the job started")

    def _let_go(self, group: Group) -> None:
        """Lets idle processes end by themselves. If a function is still running, returns at once; the caller kills all then."""
        group.update()
        if group.busy():
            return
        leaving = group.alive()
        for process in leaving:
            process.send(kind="exit", fast=self._fast or len(leaving) < self.processes)
        if not group.wait_ended(leaving, time.monotonic() + self._timeout):
            group.time_out(f"the processes did not end within {self._timeout:g} s after they were told to")
        if failed := [process.index for process in leaving if process.exitcode != 0]:
            group.fail(f"process {failed[0]} failed when it ended")

    def run(self, function: Function, *args: Any, timeout: float | None = None, **kwargs: Any) -> list[Any]:
        """Runs a function on every process and returns its results. The job can be used again, even after a failure.

        Args:
          function: a function at the top level of a module, ``"module:name"`` or ``"path/to/file.py:name"``.
          *args: arguments of the function. They and its result must be picklable.
          timeout: how many seconds the call may take; None for the timeout of the job.
          **kwargs: keyword arguments of the function.

        Returns:
          The result of each process, in order; None for a killed process. JAX arrays arrive as numpy arrays.

        Raises:
          JobFailed: the function raised on a process, or a process ended. If it finished on all others, the job can be used again.
          JobTimeout: the time was up. The job has ended.
        """
        self.start(function, *args, **kwargs)
        return [result.value for result in self.results(timeout)]

    def start(self, function: Function, *args: Any, **kwargs: Any) -> None:
        """Starts a function on every process, and returns at once. `results` waits for its results.

        Args:
          function: a function at the top level of a module, ``"module:name"`` or ``"path/to/file.py:name"``.
          *args: arguments of the function. They and its result must be picklable.
          **kwargs: keyword arguments of the function.

        Raises:
          RuntimeError: the previous function is still running on a process, or all processes have ended.
          ValueError: another process cannot find the function by a name.
        """
        self._start(functions.describe(function), args, kwargs)

    def _start(self, target: functions.Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        group = self._group
        group.update()
        if not group.alive():
            raise RuntimeError("all processes of the job have ended; make another job.")
        if busy := group.busy():
            raise RuntimeError(f"processes {busy} still run the previous function; wait for them with results().")
        group.call += 1
        with open(os.path.join(group.directory, f"call-{group.call}.pickle"), "wb") as file:
            pickle.dump((target, pickle.dumps((tuple(args), dict(kwargs)))), file)
        for process in group.alive():
            process.begin_call(group.call)

    def results(self, timeout: float | None = None, *, check: bool = True) -> list[ProcessResult]:
        """Waits until the function that `start` began has ended on every process, and returns its results.

        Args:
          timeout: how many seconds to wait at most; None for the timeout of the job.
          check: whether to raise JobFailed after a failure. A process that `kill` has ended does not count as a failure.

        Raises:
          JobFailed: the function raised on a process, or a process ended, and `check` is True.
          JobTimeout: the time was up. The job has ended.
          RuntimeError: `start` has not been called.
        """
        group = self._group
        if not group.call:
            raise RuntimeError("no function has been started; call start() or run().")
        timeout = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        if not group.wait(lambda: not group.busy() or (check and group.failed()), deadline):
            group.time_out(f"the function did not finish within {timeout:g} s on processes {group.busy()}")
        more = ""
        # The other processes may wait for the failed one for ever.
        if not group.wait(lambda: not group.busy(), min(deadline, time.monotonic() + self._grace)):
            more = f"; processes {group.busy()} had not finished {self._grace:g} s later, and all were killed"
            group.stop(group.busy())
        if check and (failed := group.failed()):
            group.fail(
                f"the function failed on {'process' if len(failed) == 1 else 'processes'} {str(failed)[1:-1]}{more}"
            )
        return group.results()

    def wait_for(self, process: int, name: str, timeout: float | None = None) -> None:
        """Waits until a process has called ``testing.signal(name)`` or ``testing.pause(name)`` in the current call.

        Args:
          process: index of the process.
          name: name of the signal.
          timeout: how many seconds to wait at most; None for the timeout of the job.

        Raises:
          JobFailed: the function ended on that process without the signal.
          JobTimeout: the time was up. The job has ended.
        """
        group, one = self._group, self._group[process]
        timeout = self._timeout if timeout is None else timeout
        if not group.wait(lambda: name in one.signals or one.state != "running", time.monotonic() + timeout):
            group.time_out(f"process {process} did not signal {name!r} within {timeout:g} s")
        if name not in one.signals:
            group.fail(f"process {process} ended the function without signalling {name!r}")

    def release(self, name: str, process: int | None = None) -> None:
        """Lets processes go on from ``testing.pause(name)``. They need not have reached that call yet.

        Args:
          name: name of the pause.
          process: index of the process; None for all processes.
        """
        for one in self._group if process is None else [self._group[process]]:
            one.send(kind="release", name=name)

    def kill(self, process: int) -> None:
        """Kills a process (SIGKILL) and the processes that it started. Later calls run on the other processes."""
        self._group[process].kill()

    def stall(self, process: int) -> None:
        """Stops a process (SIGSTOP), as if its machine hung. Returns when all of its threads have stopped."""
        self._group[process].stall()

    def resume(self, process: int) -> None:
        """Lets a process that `stall` has stopped go on."""
        self._group[process].signal_group(signal.SIGCONT)

    @property
    def directory(self) -> str:
        """A directory that all processes and this one see. It is removed with the job."""
        return self._group.directory

    @property
    def pids(self) -> list[int]:
        """The process ids."""
        return [process.pid for process in self._group]
