"""Who owns what, computed for jobs that are larger than any test machine: shardings are simulated."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxckpt.job.plan import Box, Layout, Plan, Share


class Device:
    """What a plan asks of a device."""

    def __init__(self, process_index: int) -> None:
        self.process_index = process_index


class Sharding:
    """A mesh of devices, and for each axis of an array the axis of the mesh that divides it, or None. Counts how often it is asked."""

    def __init__(self, devices: Sequence[Device], mesh: tuple[int, ...], spec: tuple[int | None, ...]) -> None:
        self._devices = np.array(devices, dtype=object).reshape(mesh)
        self._spec = spec
        self.asked = 0

    def devices_indices_map(self, shape: tuple[int, ...]) -> dict[Any, tuple[slice, ...]]:
        self.asked += 1
        found = {}
        for place in np.ndindex(*self._devices.shape):
            parts = []
            for extent, axis in itertools.zip_longest(shape, self._spec):
                if axis is None:
                    parts.append(slice(None))
                else:
                    size = extent // self._devices.shape[axis]
                    parts.append(slice(place[axis] * size, (place[axis] + 1) * size))
            found[self._devices[place]] = tuple(parts)
        return found


@st.composite
def jobs(draw: st.DrawFn) -> tuple[int, list[tuple[Sharding, tuple[int, ...]]]]:
    """A number of processes, and arrays: a sharding and a shape each. Devices lie in any order in the mesh."""
    processes = draw(st.integers(1, 6))
    mesh = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    count = math.prod(mesh)
    devices = [Device(draw(st.integers(0, processes - 1))) for _ in range(count)]
    arrays = []
    for _ in range(draw(st.integers(1, 4))):
        order = draw(st.permutations(range(len(mesh))))
        ndim = draw(st.integers(0, 3))
        spec = tuple(draw(st.sampled_from([None, axis])) for axis in order[:ndim])
        multiples = [draw(st.integers(1, 3)) for _ in spec]
        shape = tuple(times * (1 if axis is None else mesh[axis]) for times, axis in zip(multiples, spec, strict=True))
        arrays.append((Sharding(devices, mesh, spec), shape))
    return processes, arrays


def holders_of(sharding: Sharding, shape: tuple[int, ...], box: Box) -> set[int]:
    """Returns the processes that hold a box, by what the sharding says."""
    return {
        device.process_index
        for device, index in sharding.devices_indices_map(shape).items()
        if tuple(part.indices(extent)[0] for part, extent in zip(index, shape, strict=True)) == box.start
        and tuple(part.indices(extent)[1] - part.indices(extent)[0] for part, extent in zip(index, shape, strict=True))
        == box.shape
    }


def share(plan: Plan, array: tuple[Sharding, tuple[int, ...]]) -> Share:
    return plan.assign(plan.layout(*array))


@settings(max_examples=examples(200), deadline=None)
@given(job=jobs(), data=st.data())
def test_every_element_has_one_owner_that_holds_it_and_all_processes_agree(
    job: tuple[int, list[tuple[Sharding, tuple[int, ...]]]], data: st.DataObject
) -> None:
    processes, arrays = job
    center = data.draw(st.none() | st.integers(0, processes - 1))
    plans = [Plan(process, center) for process in range(processes)]

    for array in arrays * 2:
        sharding, shape = array
        shares = [share(plan, array) for plan in plans]

        owners = list(shares[0].all())
        assert all(list(other.all()) == owners for other in shares)
        covered = np.zeros(shape, int)
        for box, owner in owners:
            covered[tuple(slice(start, start + extent) for start, extent in zip(*box, strict=True))] += 1
            holders = holders_of(sharding, shape, box)
            assert owner in holders
            assert owner == center or center not in holders
        assert (covered == 1).all()
        for plan, own in zip(plans, shares, strict=True):
            assert own.mine() == [box for box, owner in owners if owner == plan.process]


@settings(max_examples=examples(50), deadline=None)
@given(processes=st.integers(2, 8), rows=st.integers(1, 4), leaves=st.integers(1, 64))
def test_replicas_take_turns(processes: int, rows: int, leaves: int) -> None:
    devices = [Device(process) for process in range(processes) for _ in range(rows)]
    sharding = Sharding(devices, (processes, rows), (1,))  # `rows` boxes, each held by every process.
    plan = Plan(0, None)

    loads = Counter(owner for _ in range(leaves) for _, owner in share(plan, (sharding, (4 * rows,))).all())

    boxes = leaves * rows
    least = math.floor(boxes / processes) - rows
    assert all(least <= loads[process] <= math.ceil(boxes / processes) + rows for process in range(processes))


def test_loads_of_several_layouts_are_balanced() -> None:
    processes = 4
    devices = [Device(process) for process in range(processes)]
    shardings = [Sharding(devices, (processes,), ()) for _ in range(64)]  # One replicated leaf of each layout.
    plan = Plan(0, None)

    loads = Counter(owner for sharding in shardings for _, owner in share(plan, (sharding, ())).all())

    assert [loads[process] for process in range(processes)] == [16] * 4


def test_the_io_process_sends_nothing_over_the_network_that_it_holds() -> None:
    devices = [Device(process) for process in range(16)]
    partly = Sharding(devices, (4, 4), (1, None))  # Four boxes, each on four processes; process 6 holds one of them.
    plan = Plan(6, 6)

    owned = share(plan, (partly, (8, 3))).mine()

    assert [box.start for box in owned] == [(4, 0)]


def test_the_cost_grows_with_layouts_not_with_leaves_and_devices() -> None:
    """10,000 leaves of a job of 1,024 processes."""
    devices = [Device(number // 4) for number in range(4096)]
    mesh = (64, 64)
    shardings = [Sharding(devices, mesh, spec) for spec in ((0, 1), (1, None), (None, None), (0, None))]
    shapes = [(8192, 8192), (4096, 8192), (64, 64)]
    plan = Plan(5, 700)
    boxes = 0

    for number in range(10_000):
        sharding = shardings[number % 4]
        boxes += len(share(plan, (sharding, shapes[number // 4 % 3])).mine())

    assert [sharding.asked for sharding in shardings] == [3, 3, 3, 3]
    # Four devices: four boxes of the leaves that are divided by both axes; of the others, replicated 64 or 4096 times, almost none.
    assert 10_000 <= boxes <= 11_000


def test_layouts_of_the_same_boxes_have_the_same_digest_on_every_process() -> None:
    def made() -> Layout:
        devices = [Device(number // 2) for number in range(8)]
        return Plan(0, None).layout(Sharding(devices, (8,), (0,)), (16, 2))

    turned = Plan(0, None).layout(Sharding([Device(3 - number // 2) for number in range(8)], (8,), (0,)), (16, 2))

    assert made().digest == made().digest
    assert made().digest != turned.digest
