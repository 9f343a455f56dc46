"""Who owns what, computed for jobs that are larger than any test machine: shardings are simulated."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxckpt._lib.boxes import Box
from jaxckpt.job.layouts import Layout
from jaxckpt.job.plan import Plan, Share


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


def divided(plan: Plan, arrays: Sequence[tuple[Sharding, tuple[int, ...]]], itemsize: int = 4) -> list[Share]:
    return plan.divide([(plan.layout(sharding, shape), itemsize) for sharding, shape in arrays])


def loads_of(shares: Sequence[Share], itemsize: int = 4) -> Counter[int]:
    """Returns how many bytes each process writes."""
    loads: Counter[int] = Counter()
    for share in shares:
        for box, owner in share.all():
            loads[owner] += math.prod(box.shape) * itemsize
    return loads


def ratio(loads: Counter[int], processes: int) -> float:
    """Returns the bytes of the busiest process, in means."""
    return max(loads.values()) * processes / sum(loads.values())


@settings(max_examples=examples(200), deadline=None)
@given(job=jobs(), data=st.data())
def test_every_element_has_one_owner_that_holds_it_and_all_processes_agree(
    job: tuple[int, list[tuple[Sharding, tuple[int, ...]]]], data: st.DataObject
) -> None:
    processes, arrays = job
    center = data.draw(st.none() | st.integers(0, processes - 1))
    plans = [Plan(process, center) for process in range(processes)]
    arrays = arrays * 2

    for array, *shares in zip(arrays, *(divided(plan, arrays) for plan in plans), strict=True):
        sharding, shape = array
        owners = list(shares[0].all())
        assert all(list(other.all()) == owners for other in shares)
        covered = np.zeros(shape, int)
        for box, owner in owners:
            covered[tuple(slice(start, start + extent) for start, extent in zip(*box, strict=True))] += 1
            holders = holders_of(sharding, shape, box)
            assert owner in holders
            assert owner == center or center not in holders
            # A box consists of whole cells, so no chunk belongs to two processes.
            for first, extent, cell, whole in zip(*box, shares[0].grid, shape, strict=True):
                assert first % cell == 0
                assert (first + extent) % cell == 0 or first + extent == whole
        assert (covered == 1).all()
        for plan, own in zip(plans, shares, strict=True):
            assert sorted(own.mine()) == sorted(box for box, owner in owners if owner == plan.process)


@st.composite
def replicated(draw: st.DrawFn) -> tuple[int, list[tuple[Sharding, tuple[int, ...]]]]:
    """Processes with a device each, arrays of one sharding, of which every process of a group holds the same."""
    rows, copies = draw(st.integers(1, 3)), draw(st.integers(2, 8))
    devices = [Device(process) for process in range(rows * copies)]
    spec = draw(st.sampled_from([(), (0,), (None, 0)]))
    arrays = []
    for _ in range(draw(st.integers(1, 12))):
        shape = tuple(draw(st.lists(st.integers(1, 40), min_size=2, max_size=4)))
        arrays.append(
            tuple(
                rows * extent if axis < len(spec) and spec[axis] == 0 else extent for axis, extent in enumerate(shape)
            )
        )
    sharding = Sharding(devices, (rows, copies), spec)
    return rows * copies, [(sharding, shape) for shape in arrays]


@settings(max_examples=examples(200), deadline=None)
@given(job=replicated())
def test_holders_get_the_same_number_of_bytes(job: tuple[int, list[tuple[Sharding, tuple[int, ...]]]]) -> None:
    processes, arrays = job
    loads = loads_of(divided(Plan(0, None), arrays))

    mean = sum(loads.values()) / processes
    # Extents that do not divide are exempt by one row, here of the last axis or the one before.
    row = max(4 * shape[-1] for _, shape in arrays)
    assert max(loads[process] for process in range(processes)) <= 1.1 * mean + row


def holders_of(sharding: Sharding, shape: tuple[int, ...], box: Box) -> set[int]:
    """Returns the processes that hold a box, or a larger one that contains it, by what the sharding says."""
    found = set()
    for device, index in sharding.devices_indices_map(shape).items():
        spans = [part.indices(extent)[:2] for part, extent in zip(index, shape, strict=True)]
        if all(low <= first and first + extent <= high for (low, high), first, extent in zip(spans, *box, strict=True)):
            found.add(device.process_index)
    return found


def test_a_few_large_leaves_are_divided_exactly() -> None:
    devices = [Device(process) for process in range(4)]
    leaf = (Sharding(devices, (4,), ()), (4096, 4096))

    shares = divided(Plan(0, None), [leaf] * 3)

    assert loads_of(shares) == dict.fromkeys(range(4), 48 << 20)
    assert [share.grid for share in shares] == [(1024, 4096), (2048, 4096), (1024, 4096)]


def test_small_leaves_are_balanced_by_bytes_and_number() -> None:
    processes = 4
    devices = [Device(process) for process in range(processes)]
    everywhere = Sharding(devices, (processes,), ())
    small = [(everywhere, (8,)), (everywhere, (100, 3)), (everywhere, ())] * 1000
    shares = divided(Plan(0, None), [*small, (everywhere, (1 << 20,)), *small])

    numbers = Counter(owner for share in shares for _, owner in share.all())
    assert ratio(loads_of(shares), processes) <= 1.1
    assert max(numbers.values()) <= 1.05 * 6000 / processes + 2
    assert sum(numbers.values()) <= 6000 + processes


def test_leaves_that_need_no_cut_are_whole() -> None:
    devices = [Device(process) for process in range(4)]
    sharding = Sharding(devices, (4,), ())
    shares = divided(Plan(0, None), [(sharding, (4096,))] * 400)

    assert ratio(loads_of(shares), 4) <= 1.1
    assert [len(list(share.all())) for share in shares] == [1] * 400


def test_the_processes_that_hold_much_already_get_less() -> None:
    devices = [Device(process) for process in range(4)]
    # Processes 0 and 1 hold an array that no other process has.
    two = Sharding(devices[:2], (2,), (0,))
    shares = divided(Plan(0, None), [(Sharding(devices, (4,), ()), (1 << 16, 3)), (two, (1 << 16,))])

    assert ratio(loads_of(shares), 4) <= 1.1


def test_the_io_process_sends_nothing_over_the_network_that_it_holds() -> None:
    devices = [Device(process) for process in range(16)]
    # Four boxes, each on four processes. Process 6 holds one of them.
    partly = Sharding(devices, (4, 4), (1, None))
    (share,) = divided(Plan(6, 6), [(partly, (8, 3))])

    assert [box.start for box in share.mine()] == [(4, 0)]


def test_what_peers_send_to_the_io_process_is_balanced() -> None:
    devices = [Device(process) for process in range(16)]
    partly = Sharding(devices, (4, 4), (0, None))
    shares = divided(Plan(6, 6), [(partly, (1024, 96))] * 3)

    loads = loads_of(shares)
    # Processes 4 to 7 hold what process 6 holds.
    assert loads.pop(6) == 3 * 256 * 96 * 4
    assert set(loads) == {0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15}
    assert ratio(loads, 12) <= 1.1


def test_boxes_with_extents_that_are_prime_are_not_cut_into_tiny_cells() -> None:
    devices = [Device(process) for process in range(16)]
    sharding = Sharding(devices, (4, 4), (0,))
    (share,) = divided(Plan(0, None), [(sharding, (4 * 1187, 4096))])

    assert ratio(loads_of([share]), 16) <= 1.1
    assert math.prod(share.grid) * 4 >= 100_000


@pytest.mark.slow
def test_the_cost_grows_with_layouts_not_with_leaves_and_devices() -> None:
    """10,000 leaves of a job of 1,024 processes."""
    devices = [Device(number // 4) for number in range(4096)]
    mesh = (64, 64)
    shardings = [Sharding(devices, mesh, spec) for spec in ((0, 1), (1, None), (None, None), (0, None))]
    shapes = [(8192, 8192), (4096, 8192), (64, 64)]
    arrays = [(shardings[number % 4], shapes[number // 4 % 3]) for number in range(10_000)]

    shares = divided(Plan(5, 700), arrays)
    boxes = sum(len(share.mine()) for share in shares)

    assert [sharding.asked for sharding in shardings] == [3, 3, 3, 3]
    # Four devices: four boxes of the leaves that are divided by both axes; of the others, replicated 64 or 4096 times, almost none.
    assert 10_000 <= boxes <= 11_000


def test_a_second_save_uses_the_division_of_the_first() -> None:
    devices = [Device(process) for process in range(4)]
    arrays = [(Sharding(devices, (4,), ()), (64, 3))] * 5

    first, second = (divided(Plan(1, None), arrays) for _ in range(2))

    assert first[0].division is second[0].division  # type: ignore[attr-defined]


def test_layouts_of_the_same_boxes_have_the_same_digest_on_every_process() -> None:
    def made() -> Layout:
        devices = [Device(number // 2) for number in range(8)]
        return Plan(0, None).layout(Sharding(devices, (8,), (0,)), (16, 2))

    turned = Plan(0, None).layout(Sharding([Device(3 - number // 2) for number in range(8)], (8,), (0,)), (16, 2))

    assert made().digest == made().digest
    assert made().digest != turned.digest
