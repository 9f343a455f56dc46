"""Asks the process that has access to the files: it does the work, and every process gets the result."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

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
    """Does `work` on the process that the options choose for file access, and returns its result on every process.

    In a job of one process, or if the options have no device, every process does `work` itself.

    Args:
      action: name of the call, for messages.
      subject: the path that the call is about. All processes must give the same one.
      options: the options with the device and the timeout.
      work: does the work. Its result must be representable in JSON.
      before: called by every process before it meets the others.
      always: whether to ask even if the options have no device. Process 0 is asked then, so that all get the same result.

    Raises:
      BaseException: the error of `work`; on the other processes a ProcessError of the same kind.
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
    """Returns the process that the options choose for file access; None if each process accesses files itself.

    Raises:
      TypeError: `options` is not a CheckpointOptions.
      ValueError: the device does not exist.
    """
    options = checked_options(options)
    return devices.resolve_process(None if options is None else options.experimental_io_device)


def does_file_access(options: CheckpointOptions | None) -> bool:
    """Whether this process touches files in calls that let one process do so, with these options."""
    process = file_process(options)
    return not meeting.several() or jax.process_index() == (process or 0)


class FileAccess:
    """Which process does the file access of a manager: the one that its options choose, or else the one of its last save.

    Attributes:
      given: the manager's options, as they were given.
    """

    def __init__(self, given: CheckpointOptions | None) -> None:
        """Notes the manager's options."""
        self.given = given
        self._device: Any = None

    def used(self, options: CheckpointOptions | None) -> None:
        """Notes the options of a save."""
        self._device = None if options is None else options.experimental_io_device

    @property
    def options(self) -> CheckpointOptions | None:
        """The manager's options. If they have no device, that of the last save is added."""
        if self._device is None or (self.given is not None and self.given.experimental_io_device is not None):
            return self.given
        options = CheckpointOptions() if self.given is None else copy.copy(self.given)
        options.experimental_io_device = self._device
        return options
