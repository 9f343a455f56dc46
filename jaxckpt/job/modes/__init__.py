"""The modes of a job: how its processes reach the files of a checkpoint, and how pieces of arrays travel between them.

A call chooses its mode once, with `mode_of`.
"""

from collections.abc import Callable

from jaxckpt.job.agree import meeting
from jaxckpt.job.modes.alone import Alone
from jaxckpt.job.modes.io_process import IoProcess
from jaxckpt.job.modes.mode import Mode, Reading
from jaxckpt.job.modes.shared import SharedDirectory

__all__ = ["Mode", "Reading", "mode_of"]


def mode_of(io_process: int | None, reads_once: Callable[[], bool] = lambda: False) -> Mode:
    """Returns the mode of this job.

    Args:
      io_process: index of the process that does all file access; None if each process accesses its own shards.
      reads_once: tells, for a restore without such a process, whether one process reads what several want.
    """
    if not meeting.several():
        return Alone()
    return SharedDirectory(reads_once) if io_process is None else IoProcess(io_process)
