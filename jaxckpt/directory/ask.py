"""Asking the process that has the files: it does the work, and every process gets the answer."""

from collections.abc import Callable
from typing import TypeVar

import jax

from jaxckpt.job import devices
from jaxckpt.job.agree import meeting
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.options import CheckpointOptions, OrbaxSettings, checked_options

_Result = TypeVar("_Result")


def ask(
    action: str,
    subject: str,
    options: CheckpointOptions | None,
    work: Callable[[], _Result],
    *,
    before: Callable[[], object] = lambda: None,
    always: bool = False,
) -> _Result:
    """Does `work` on the process that the options choose for the file access, and returns its result on every process.

    In a job of one process, and without a device, every process does it for itself.

    Args:
      action: the call, for messages.
      subject: what it is about: the processes have to agree on it.
      options: with the device, and the timeout.
      work: its result has to fit into JSON.
      before: done by every process before it meets the others.
      always: ask also without a device: then process 0, so that all get the same answer.

    Raises:
      BaseException: what `work` raised; on the other processes a ProcessError of the same kind.
    """
    process = file_process(options)
    if not meeting.several() or (process is None and not always):
        before()
        return work()
    settings = (options.orbax if options is not None else None) or OrbaxSettings()
    details = {"experimental_io_device": "None" if process is None else f"process {process}"}
    call = Call(action, subject, process or 0, settings.timeout_secs, details)

    def contribution() -> Contribution:
        before()
        return Contribution()

    with meeting.meet(call, contribution) as session:
        return session.decide(work)


def file_process(options: CheckpointOptions | None) -> int | None:
    """Returns the process that the options choose for file access; None for every one on its own.

    Raises:
      TypeError: `options` is not a CheckpointOptions.
      ValueError: the device does not exist.
    """
    options = checked_options(options)
    return devices.resolve_process(None if options is None else options.experimental_io_device)


def does_file_access(options: CheckpointOptions | None) -> bool:
    """Whether this process is the one that touches files for calls with these options, where only one does."""
    process = file_process(options)
    return not meeting.several() or jax.process_index() == (process or 0)
