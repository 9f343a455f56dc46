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
      check: whether it is an error if the function fails on a process.
      **others: see `Job`.

    Returns:
      One result a process, in order.

    Raises:
      JobFailed: with `check`, the function raised on a process, or a process ended; always, if the job could not start or end.
      JobTimeout: time was up.
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
