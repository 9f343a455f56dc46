"""Who writes how much, for jobs that are larger than any one machine: the plan of a save with simulated shardings."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxckpt.job.plan import Plan

_LAYERS, _WIDTH, _HIDDEN, _KEYS, _WORDS = 32, 4096, 14336, 1024, 128256
_ITEMSIZE = 2


class _Device(NamedTuple):
    process_index: int
    number: int


class _Sharding:
    """Devices in a mesh of (replicas, parts), and the axis of an array that the parts divide, or None."""

    def __init__(self, devices: Sequence[_Device], mesh: tuple[int, int], axis: int | None) -> None:
        self._devices, self._mesh, self._axis = devices, mesh, axis

    def devices_indices_map(self, shape: tuple[int, ...]) -> dict[Any, tuple[slice, ...]]:
        """Returns what each device holds, as a jax.sharding.Sharding does."""
        _, parts = self._mesh
        found = {}
        for number, device in enumerate(self._devices):
            index = [slice(None)] * len(shape)
            if self._axis is not None:
                size, part = shape[self._axis] // parts, number % parts
                index[self._axis] = slice(part * size, (part + 1) * size)
            found[device] = tuple(index)
        return found


class Figures(NamedTuple):
    """The plan of one job.

    Attributes:
      name: the layout in words.
      leaves: number of arrays.
      ratio: bytes of the busiest process, in means.
      idle: processes that write nothing.
      mean_mib: mean of the processes.
      cpu_secs: processor time to divide all arrays and to list the boxes of one process.
    """

    name: str
    leaves: int
    ratio: float
    idle: int
    mean_mib: float
    cpu_secs: float


def llama(scanned: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Returns names and shapes of the weights of Llama 3 8B; with its layers stacked in one array each if they are scanned."""
    layer = {
        "q": (_WIDTH, _WIDTH),
        "k": (_WIDTH, _KEYS),
        "v": (_WIDTH, _KEYS),
        "o": (_WIDTH, _WIDTH),
        "gate": (_WIDTH, _HIDDEN),
        "up": (_WIDTH, _HIDDEN),
        "down": (_HIDDEN, _WIDTH),
        "norm1": (_WIDTH,),
        "norm2": (_WIDTH,),
    }
    found = [("embedding", (_WORDS, _WIDTH)), ("head", (_WIDTH, _WORDS)), ("norm", (_WIDTH,))]
    if scanned:
        return found + [(name, (_LAYERS, *shape)) for name, shape in layer.items()]
    return found + [(f"{number}/{name}", shape) for number in range(_LAYERS) for name, shape in layer.items()]


def figures(
    processes: int, layout: str, *, scanned: bool, replicate_embedding: bool, devices_each: int = 1, copies: int = 1
) -> Figures:
    """Computes one plan.

    Args:
      processes: number of processes.
      layout: "DP" (all replicated), "FSDP" (all divided) or "both" (divided by 8, and replicated).
      scanned: whether the layers are stacked.
      replicate_embedding: whether the embedding is replicated, whatever the layout.
      devices_each: devices of each process.
      copies: how often the model is there, as with moments of an optimizer.
    """
    count = processes * devices_each
    devices = [_Device(number // devices_each, number) for number in range(count)]
    mesh = {"DP": (count, 1), "FSDP": (1, count), "both": (count // 8, 8)}[layout]
    shardings: dict[int | None, _Sharding] = {}
    arrays = []
    for _, (name, shape) in itertools.product(range(copies), llama(scanned)):
        axis = None
        if math.prod(shape) >= 1 << 20 and not (name == "embedding" and replicate_embedding):
            axis = next((at for at in reversed(range(len(shape))) if shape[at] % mesh[1] == 0), None)
        arrays.append((shardings.setdefault(axis, _Sharding(devices, mesh, axis)), shape))
    plan = Plan(0, None)
    began = time.process_time()
    shares = plan.divide([(plan.layout(sharding, shape), _ITEMSIZE) for sharding, shape in arrays])
    for share in shares:
        share.mine()
    secs = time.process_time() - began
    loads: Counter[int] = Counter()
    for share in shares:
        for box, owner in share.all():
            loads[owner] += math.prod(box.shape) * _ITEMSIZE
    total = sum(loads.values())
    words = f"{layout}{', scanned' if scanned else ''}{', embedding replicated' if replicate_embedding else ''}"
    every = np.array([loads[process] for process in range(processes)])
    return Figures(
        f"{processes:,} processes, {words}",
        len(arrays),
        float(every.max() * processes / total),
        int((every == 0).sum()),
        total / processes / 2**20,
        secs,
    )


def all_figures() -> list[Figures]:
    """Computes the plans of the table: 128 processes in each layout, and jobs of 1,024 processes."""
    found = [
        figures(128, layout, scanned=scanned, replicate_embedding=replicated)
        for layout in ("DP", "FSDP", "both")
        for scanned in (True, False)
        for replicated in (False, True)
        if (layout, replicated) != ("DP", True)
    ]
    found.append(figures(1024, "DP", scanned=True, replicate_embedding=False))
    found.append(figures(1024, "both", scanned=False, replicate_embedding=True, devices_each=4, copies=34))
    found.append(figures(1024, "DP", scanned=False, replicate_embedding=False, devices_each=4, copies=34))
    return found
