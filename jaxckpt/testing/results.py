"""The result of a function on each process, and the errors that show these results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxckpt.testing.disks import Disk

State = Literal["starting", "idle", "running", "returned", "raised", "died", "killed"]

_SHOWN_LINES = 60


@dataclass(frozen=True)
class RemoteError:
    """An exception of another process.

    Attributes:
      type: name of its class.
      message: its text.
      traceback: its traceback, with causes, as Python prints it.
      exception: the exception itself, without traceback and causes; None if it cannot be pickled and unpickled.
    """

    type: str
    message: str
    traceback: str
    exception: BaseException | None


@dataclass(frozen=True)
class ProcessResult:
    """The result of a function on one process.

    Attributes:
      index: index of the process.
      pid: its process id.
      state: ``"returned"``, ``"raised"``, ``"died"`` (the process ended by itself), ``"killed"`` (by `Job.kill`), or the state of the
        process when the time was up.
      value: the value that the function returned. JAX arrays arrive as numpy arrays.
      error: the exception that the function raised; None if it did not raise.
      exitcode: exit status of the process, negative for a signal; None if it has not ended.
      output: standard output and error of the process during the call (only the end, if it is long).
      stacks: the stacks of its threads when the time was up; empty otherwise.
      disk: its private disk; None without private disks.
      files: paths of the files on its private disk at the end, relative to the disk.
    """

    index: int
    pid: int
    state: State
    value: Any = None
    error: RemoteError | None = None
    exitcode: int | None = None
    output: str = ""
    stacks: str = ""
    disk: Disk | None = None
    files: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the function returned."""
        return self.state == "returned"

    def __str__(self) -> str:
        what = f"process {self.index} (pid {self.pid}): {self.state}"
        if self.exitcode is not None:
            what += f" with status {self.exitcode}" if self.exitcode >= 0 else f" by signal {-self.exitcode}"
        parts = [what]
        if self.error is not None:
            parts.append(_indented(self.error.traceback))
        if self.stacks:
            parts.append("  stacks of its threads:\n" + _indented(self.stacks))
        parts.append("  output:\n" + _indented(self.output) if self.output.strip() else "  no output")
        return "\n".join(parts)


def _indented(text: str) -> str:
    lines = text.rstrip().splitlines()
    if len(lines) > _SHOWN_LINES:
        lines = [f"... {len(lines) - _SHOWN_LINES} lines before ...", *lines[-_SHOWN_LINES:]]
    return "\n".join(f"    {line}" for line in lines)


# Named after the event, like subprocess.TimeoutExpired.
class JobFailed(RuntimeError):  # noqa: N818
    """A function failed on a process, or a process ended. The message shows every process.

    Attributes:
      results: the `ProcessResult` of each process.
    """

    def __init__(self, message: str, results: Sequence[ProcessResult] = ()) -> None:
        super().__init__("\n".join([message, *map(str, results)]))
        self.results = list(results)


class JobTimeout(TimeoutError):  # noqa: N818
    """The time was up, and all processes were killed. The message shows the stacks of all their threads.

    Attributes:
      results: the `ProcessResult` of each process.
    """

    def __init__(self, message: str, results: Sequence[ProcessResult] = ()) -> None:
        super().__init__("\n".join([message, *map(str, results)]))
        self.results = list(results)
