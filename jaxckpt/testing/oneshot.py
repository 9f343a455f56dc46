"""A job that runs one function."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxckpt.testing.disks import Disk
from jaxckpt.testing.job import Function, Job, Path
from jaxckpt.testing.results import ProcessResult


def run(
    function: Function,
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
    check: bool = True,
) -> list[ProcessResult]:
    """Starts a job, runs one function on each of its processes, and ends it.

    >>> results = testing.run(train, processes=3, devices=2, args=(10,))
    >>> [result.value for result in results]

    Args:
      function: a function at the top level of a module, ``"module:name"`` or ``"path/to/file.py:name"``.
      args: arguments of the function.
      processes: number of processes.
      devices: number of CPU devices of each process.
      private: a path at which each process sees its own disk; None without private disks.
      private_size: size of each private disk, such as ``"16M"``; None for disks without limit.
      disks: the private disks, one for each process; None to make new ones.
      timeout: how many seconds the start, the call and the end of the job may take. After that all processes are killed.
      grace: how many seconds the other processes may take to finish after the function has failed on one process.
      heartbeat_timeout: after how many seconds without an answer JAX considers a process dead.
      exit: ``"normal"`` to run exit handlers when processes end, ``"fast"`` to skip them.
      env: environment variables to set, by name; None as a value removes a variable.
      cwd: working directory of the processes; None for that of this process.
      check: whether to raise JobFailed if the function fails on a process.

    Returns:
      The result of each process, in order.

    Raises:
      JobFailed: the job could not start or end; or, if `check` is True, the function raised on a process, or a process ended.
      JobTimeout: the time was up.
    """
    with Job(
        function,
        args=args,
        processes=processes,
        devices=devices,
        private=private,
        private_size=private_size,
        disks=disks,
        timeout=timeout,
        grace=grace,
        heartbeat_timeout=heartbeat_timeout,
        exit=exit,
        env=env,
        cwd=cwd,
    ) as job:
        return job.results(check=check)
