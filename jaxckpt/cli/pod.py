"""Who reads and writes what in a job that does not run here, by the plan that its processes would compute."""

import math
from collections.abc import Callable
from typing import NamedTuple

from jaxckpt._lib.output import count, human_bytes
from jaxckpt.job.devices import Imagined
from jaxckpt.job.plan import Plan
from jaxckpt.translate import OrbaxTranslation

# Size of the arrays for which bytes are told, and of their elements.
_BYTES = 1 << 30
_ITEMSIZE = 4


class Role(NamedTuple):
    """What processes of a job do.

    Attributes:
      processes: their indices.
      tasks: sentences.
    """

    processes: list[int]
    tasks: list[str]


class _Device(NamedTuple):
    process_index: int
    number: int


class _Layout(NamedTuple):
    """An array of one axis on the devices of a job, as a sharding for the plan.

    Attributes:
      job: the job.
      parts: into how many parts it is divided; devices with the same number, modulo that, hold the same part.
    """

    job: Imagined
    parts: int

    def devices_indices_map(self, shape: tuple[int, ...]) -> dict[_Device, tuple[slice]]:
        size = shape[0] // self.parts
        found = {}
        for number in range(self.job.processes * self.job.devices):
            part = number % self.parts
            found[_Device(number // self.job.devices, number)] = (slice(part * size, (part + 1) * size),)
        return found


def roles(translation: OrbaxTranslation, job: Imagined) -> list[Role]:
    """Returns what each process of a job does in a save and a restore. Processes that do the same are together.

    Args:
      translation: the settings, translated for the job.
      job: the job.
    """
    devices = job.processes * job.devices
    cases = {
        "divided over all devices": _bytes(translation, job, devices),
        "that all devices hold": _bytes(translation, job, 1),
    }
    if job.devices > 1 and job.processes > 1:
        cases["divided over the devices of each process"] = _bytes(translation, job, job.devices)
    found: dict[tuple[str, ...], list[int]] = {}
    for process in range(job.processes):
        tasks = (*_duties(translation, job, process), *_amounts(translation, cases, process))
        found.setdefault(tasks, []).append(process)
    return [Role(processes, list(tasks)) for tasks, processes in found.items()]


def heading(role: Role) -> str:
    """Returns the processes of a role in words: ``processes 0, 2-5``."""
    spans: list[list[int]] = []
    for process in role.processes:
        if spans and spans[-1][1] + 1 == process:
            spans[-1][1] = process
        else:
            spans.append([process, process])
    words = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"process{'es' if len(role.processes) > 1 else ''} {words}"


def _duties(translation: OrbaxTranslation, job: Imagined, process: int) -> list[str]:
    center = translation.io_process
    if job.processes == 1:
        return ["does all file access: data, metadata, the state file, deletion, reading"]
    if center is None:
        own = ["writes the parts of arrays that it owns, into a directory that all processes see"]
        if process == 0:
            own += [
                "stores numbers, texts and numpy arrays; merges the databases of all, commits, and registers the checkpoint",
                "runs the write callbacks, and deletes old checkpoints",
            ]
        once = translation.read_once_per_job
        if once is None:
            own.append(
                "reads what its devices need; from a bucket or a disk of another machine, process 0 reads what several need"
            )
        elif once and process == 0:
            own.append("reads what it alone needs, and what several need, which it sends to them")
        elif once:
            own.append("reads what it alone needs; process 0 sends what several need")
        else:
            own.append("reads what its devices need")
        return own
    if process == center:
        others = count(job.processes - 1, "process", "processes")
        own = [
            "does all file access: its disk alone has the checkpoints",
            f"fetches the parts of the other {others} chunk by chunk; commits, registers, runs the write callbacks, deletes",
            "reads for all, and sends each process the parts that its devices need",
        ]
    else:
        own = [
            f"touches no file; sends the parts that it owns to process {center}",
            f"gets what its devices need from process {center}",
        ]
    if process == 0 and center != 0:
        own.append(f"sends numbers, texts and numpy arrays to process {center}: those of process 0 are stored")
    return own


def _amounts(
    translation: OrbaxTranslation, cases: dict[str, tuple[Callable[[int], int], Callable[[int], int]]], process: int
) -> list[str]:
    center = translation.io_process
    verb = "writes" if center is None or process == center else "sends"
    lines = []
    for case, (owned, needed) in cases.items():
        own = owned(process)
        text = f"of an array of 1 GiB {case}: {verb} {human_bytes(own)}"
        if process == center:
            others = sum(owned(each) for each in range(translation.processes)) - own
            text = f"of an array of 1 GiB {case}: writes {human_bytes(own + others)}, of which {human_bytes(others)} come from others"
        lines.append(f"{text}; its devices need {human_bytes(needed(process))} in a restore")
    return lines


def _bytes(
    translation: OrbaxTranslation, job: Imagined, parts: int
) -> tuple[Callable[[int], int], Callable[[int], int]]:
    """Returns functions that tell how many bytes of an array a process owns in a save, and needs in a restore.

    Args:
      translation: the settings.
      job: the job.
      parts: into how many parts the array is divided.
    """
    size = math.ceil(_BYTES / _ITEMSIZE / parts)
    shape = (size * parts,)
    plan = Plan(0, translation.io_process)
    layout = plan.layout(_Layout(job, parts), shape)
    (share,) = plan.divide([(layout, _ITEMSIZE)])
    owned: dict[int, int] = {}
    for box, owner in share.all():
        owned[owner] = owned.get(owner, 0) + math.prod(box.shape) * _ITEMSIZE

    def needed(process: int) -> int:
        parts_of = zip(layout.boxes, layout.holders, strict=True)
        elements: int = sum(math.prod(box.shape) for box, holders in parts_of if process in holders)
        return elements * _ITEMSIZE

    return lambda process: owned.get(process, 0), needed
