"""Translates TensorFlow's device strings into the index of the JAX process that accesses the file system.

A JAX job corresponds to one TensorFlow job, ``worker``, with one task per process. TensorFlow's names for the machine that
coordinates (``/job:localhost``, ``/job:chief``, ...), and a device without a task, mean process 0 on every process. If
they meant "this process", every process would write a checkpoint of its own.
"""

import numbers
import re
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax

from jaxckpt._lib.arguments import refusal

IoDevice: TypeAlias = str | int | jax.Device | None


class Imagined(NamedTuple):
    """A job that does not run here, for which options are explained.

    Attributes:
      processes: number of its processes.
      devices: number of devices of each process, of whatever type.
    """

    processes: int
    devices: int


_NAME = "experimental_io_device"
_ONE_TASK_JOBS = ("localhost", "chief", "coordinator", "master")
_INDEXED_JOB = "worker"
_JOBS = f"{', '.join(_ONE_TASK_JOBS)} (each of them is process 0), and {_INDEXED_JOB} with /task:<process index>"
_FORMS = '"/job:worker/task:2", "/job:localhost", "CPU:0", a process index, a jax.Device, or None'

# One part between slashes. As in TensorFlow, job names are case-sensitive, device types are not, and "*" means "any".
# The number of digits is limited, so that int() accepts them.
_PART = re.compile(
    r"job:(?P<job>\*|[A-Za-z][A-Za-z0-9_-]*)"
    r"|replica:(?P<replica>\*|[0-9]{1,18})"
    r"|task:(?P<task>\*|[0-9]{1,18})"
    r"|(?:device:(?P<type>\*|[A-Za-z][A-Za-z0-9_]*)|(?P<bare>(?i:cpu|gpu|tpu)))(?::(?P<ordinal>\*|[0-9]{1,18}))?"
)


@dataclass(frozen=True)
class DeviceSpec:
    """The parts of a TensorFlow device string. A part that is absent or ``*`` is None."""

    job: str | None = None
    replica: int | None = None
    task: int | None = None
    device_type: str | None = None
    ordinal: int | None = None


def parse_device(value: object) -> IoDevice:
    """Checks the form of an `experimental_io_device`. `resolve_process` checks later that the device exists.

    This does not look at JAX's devices, so that options can be created before ``jax.distributed.initialize``.

    Args:
      value: None, a process index, a jax.Device, or a TensorFlow device string.

    Returns:
      The value. An integer of another type (such as numpy's) is converted to int.

    Raises:
      ValueError: the value has none of these forms.
    """
    if value is None or isinstance(value, jax.Device):
        return value
    if isinstance(value, str):
        parse_spec(value)
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        index = int(value)
        if index < 0:
            raise _refused(index, "a process index must not be negative", expected=_FORMS)
        return index
    raise _refused(value, f"this is a {type(value).__name__}", expected=_FORMS)


def parse_spec(text: str) -> DeviceSpec:
    """Splits a TensorFlow device string, such as ``/job:worker/replica:0/task:3/device:CPU:0``, into its parts.

    As in TensorFlow, parts may come in any order, the first slash may be missing, ``device:`` may be left out before
    CPU, GPU and TPU, and ``*`` is the same as leaving a part out. Unlike in TensorFlow, giving a part twice is an error.

    Args:
      text: the device string.

    Raises:
      ValueError: the string cannot be parsed, or all of its parts are ``*``.
    """
    given: dict[str, str] = {}
    for part in text.removeprefix("/").split("/"):
        match = _PART.fullmatch(part)
        if match is None:
            raise _refused(text, f"cannot parse {part!r}{_hint(text, part)}", expected=_FORMS)
        found = {name: word for name, word in match.groupdict().items() if word is not None}
        if "bare" in found:
            found["type"] = found.pop("bare")
        if twice := sorted(given.keys() & found.keys()):
            raise _refused(text, f"it names its {' and '.join(twice)} twice; give each part once")
        given |= found
    named = {name: word for name, word in given.items() if word != "*"}
    if not named:
        raise _refused(text, "it names no device; use None to let every process access the file system")
    kind = named.get("type")
    if kind is None and "ordinal" in named:
        raise _refused(text, f"a device number needs a device type, such as CPU:{named['ordinal']}")
    return DeviceSpec(
        job=named.get("job"),
        replica=_number(named.get("replica")),
        task=_number(named.get("task")),
        device_type=None if kind is None else kind.upper(),
        ordinal=_number(named.get("ordinal")),
    )


def _refused(value: object, reason: str, *, expected: str = "") -> ValueError:
    return refusal(ValueError, f"{_NAME}={value!r}", reason, expected=expected)


def _number(word: str | None) -> int | None:
    return None if word is None else int(word)


def _hint(text: str, part: str) -> str:
    if text != text.strip():
        return " (remove the space around it)"
    if part in (*_ONE_TASK_JOBS, _INDEXED_JOB):
        return f" (did you mean '/job:{part}'?)"
    if part.isdecimal():
        return f" (did you mean '/task:{part}', or the int {part}?)"
    return ""


def resolve_process(value: object, imagined: Imagined | None = None) -> int | None:
    """Returns the index of the process that accesses the file system, after checking that it and its device exist.

    Args:
      value: any value that `parse_device` accepts.
      imagined: the job; None for this one.

    Returns:
      A process index, the same on every process; None for None.

    Raises:
      ValueError: the process or the device does not exist. The message lists those that exist.
    """
    device = parse_device(value)
    if device is None:
        return None
    count = jax.process_count() if imagined is None else imagined.processes
    if isinstance(device, int):
        return _existing(device, device, count)
    if isinstance(device, jax.Device):
        if device not in _devices(device.platform):
            raise ValueError(f"{_NAME}={device!r} is not a device of this job. {_inventory(0, count)}")
        return _existing(device.process_index, device, count)
    spec = parse_spec(device)
    process = process_of(spec, device, count)
    if spec.device_type is not None:
        # A type without a number means "any device of this type": the process must have at least one.
        have = _device_count(process, spec.device_type, count) if imagined is None else imagined.devices
        if have <= (spec.ordinal or 0):
            wanted = spec.device_type if spec.ordinal is None else f"{spec.device_type}:{spec.ordinal}"
            known = _inventory(process, count) if imagined is None else f"Each process has {imagined.devices}."
            raise ValueError(f"{_NAME}={device!r}: process {process} has no device {wanted}. {known}")
    return process


def process_of(spec: DeviceSpec, text: str, count: int) -> int:
    """Returns the index of the process that a device string names. Does not check its devices.

    Args:
      spec: the parts of the device string.
      text: the device string, for messages.
      count: number of processes of the job.

    Raises:
      ValueError: the process does not exist, or the string names several processes.
    """
    if spec.job not in (None, _INDEXED_JOB, *_ONE_TASK_JOBS):
        raise ValueError(f"{_NAME}={text!r}: there is no job {spec.job!r}; the jobs are {_JOBS}. {_processes(count)}")
    if spec.replica:
        raise ValueError(f"{_NAME}={text!r}: there is no replica {spec.replica}, only replica 0. {_processes(count)}")
    if spec.job in _ONE_TASK_JOBS and spec.task:
        raise ValueError(
            f"{_NAME}={text!r}: the job {spec.job!r} has task 0 only; write '/job:{_INDEXED_JOB}/task:{spec.task}' "
            f"for process {spec.task}. {_processes(count)}"
        )
    if spec.job == _INDEXED_JOB and spec.task is None:
        # An error also in a job of one process: otherwise a program would work on a laptop and fail on a pod.
        raise ValueError(
            f"{_NAME}={text!r}: the job {spec.job!r} means all processes; name one of them, such as "
            f"'/job:{spec.job}/task:0'. {_processes(count)}"
        )
    return _existing(spec.task or 0, text, count)


def _existing(index: int, given: object, count: int) -> int:
    if index >= count:
        raise ValueError(f"{_NAME}={given!r}: there is no process {index}. {_processes(count)}")
    return index


def _processes(count: int) -> str:
    return (
        "This job has one process, task 0."
        if count == 1
        else f"This job has {count} processes, tasks 0 to {count - 1}."
    )


def _inventory(process: int, count: int) -> str:
    """Returns a sentence that lists the processes, and the devices of one of them.

    Args:
      process: index of the process whose devices are listed.
      count: number of processes of the job.
    """
    have = []
    for device_type in dict.fromkeys(("CPU", *(device.platform.upper() for device in jax.devices()))):
        number = _device_count(process, device_type, count)
        if number:
            have.append(f"{device_type}:0" if number == 1 else f"{device_type}:0 to {device_type}:{number - 1}")
    return f"{_processes(count)} Process {process} has {', '.join(have)}."


def _device_count(process: int, device_type: str, count: int) -> int:
    """Returns how many devices of a type a process has. As in TensorFlow, they are numbered from 0 on each process."""
    devices = _devices(device_type.lower())
    if device_type == "CPU" and len({device.process_index for device in devices}) < count:
        # The CPU backend is off, or knows only the CPUs of this process. Assume that every process has as many as this one.
        return max(1, len(devices))
    return sum(device.process_index == process for device in devices)


def _devices(platform: str) -> list[jax.Device]:
    """Returns all devices of a platform, of every process; an empty list if the job does not have the platform."""
    try:
        return list(jax.devices(platform))
    except RuntimeError:
        # The platform is unknown or absent. Or it is a plugin whose name differs from the one that its devices report.
        return [device for device in jax.devices() if device.platform.lower() == platform.lower()]
