"""What became of a function on each process, and the errors that show it."""

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
      exception: the exception itself, without traceback and causes; None if it cannot be pickled.
    """

    type: str
    message: str
    traceback: str
    exception: BaseException | None


@dataclass(frozen=True)
class ProcessResult:
    """What became of a function on one process.

    Attributes:
      index: index of the process.
      pid: its process id.
      state: ``"returned"``, ``"raised"``, ``"died"`` (the process ended by itself), ``"killed"`` (by `Job.kill`), or what it was doing
        when time was up.
      value: what the function returned; arrays of JAX come as arrays of numpy.
      error: what the function raised.
      exitcode: status with which the process ended, negative for a signal; None if it still runs.
      output: what the process wrote to its standard output and error during the call (the end of it, if it is long).
      stacks: what its threads were doing when time was up; empty otherwise.
      disk: its private disk.
      files: what was on its private disk at the end.
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


class JobFailed(RuntimeError):  # noqa: N818 - says what happened, as subprocess.TimeoutExpired does
    """A function failed on a process, or a process ended. The message shows every process.

    Attributes:
      results: one `ProcessResult` a process.
    """

    def __init__(self, message: str, results: Sequence[ProcessResult] = ()) -> None:
        super().__init__("\n".join([message, *map(str, results)]))
        self.results = list(results)


class JobTimeout(TimeoutError):  # noqa: N818
    """Time was up. All processes were killed; the message shows what every thread of them was doing.

    Attributes:
      results: one `ProcessResult` a process.
    """

    def __init__(self, message: str, results: Sequence[ProcessResult] = ()) -> None:
        super().__init__("\n".join([message, *map(str, results)]))
        self.results = list(results)
