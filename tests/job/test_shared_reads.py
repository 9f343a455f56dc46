"""The center reads what several processes want once, in bounded memory, whichever process is ahead. The processes are threads here."""

import dataclasses
import math
import random
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxckpt
from jaxckpt._lib.boxes import slices_of
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.job.modes import bundles, center_answers, shared_reads, tiles
from jaxckpt.job.modes.center_answers import CenterAnswers
from jaxckpt.job.modes.descriptions import infos_of, leaves_of
from jaxckpt.job.modes.remote import flags_of, runs_of
from jaxckpt.job.modes.shared_reads import SharedReads
from jaxckpt.job.modes.small_reads import SmallFirst
from jaxckpt.job.modes.wanted import Wanted
from jaxckpt.job.protocol.messages import Announce, AskBoxes, AskInfos, AskStored, Infos, Leaves
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.opened import StoredCheckpoint

Requests = Sequence[tuple[str, tuple[slice, ...] | None]]


@st.composite
def boxes(draw: st.DrawFn) -> tuple[ArrayInfo, tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 40), max_size=3)))
    chunks = tuple(draw(st.integers(1, extent)) for extent in shape)
    dtype = np.dtype(draw(st.sampled_from([np.uint8, np.float64, ml_dtypes.bfloat16])))
    start = tuple(draw(st.integers(0, extent - 1)) for extent in shape)
    extents = tuple(draw(st.integers(1, whole - first)) for first, whole in zip(start, shape, strict=True))
    return ArrayInfo(shape, dtype, chunks), start, extents


@settings(max_examples=200, deadline=None)
@given(box=boxes(), tile=st.integers(1, 4000), part=st.integers(8, 4000))
def test_parts_fill_a_box_and_lie_in_one_tile(box: Any, tile: int, part: int) -> None:
    info, start, extents = box
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_TILE_BYTES", tile)
        patch.setattr(tiles, "PART_BYTES", part)
        whole = tiles.tile_of(info)
        seen = np.zeros(info.shape, int)
        for number, first, shape in tiles.parts_of(start, extents, info):
            seen[slices_of(first, shape)] += 1
            assert math.prod(shape) * info.dtype.itemsize <= part
            begin, size = tiles.box_of(number, whole, info.shape)
            for at, extent, low, most in zip(first, shape, begin, size, strict=True):
                assert low <= at
                assert at + extent <= low + most
            assert tiles.tile_at(first, whole) == number
    expected = np.zeros(info.shape, int)
    expected[slices_of(start, extents)] = 1
    assert (seen == expected).all()


@given(st.lists(st.booleans(), max_size=20))
def test_flags_travel_as_runs(flags: list[bool]) -> None:
    assert flags_of(runs_of(flags), len(flags)) == flags


@pytest.mark.parametrize("runs", [(3,), (1, 2), (-1, 3), (0, 9)])
def test_runs_of_another_number_of_parts_are_refused(runs: tuple[int, ...]) -> None:
    with pytest.raises(jaxckpt.ProcessError, match="other parts"):
        flags_of(runs, 2)


class Counting(StoredCheckpoint):
    """Counts the bytes of arrays that are read."""

    counted = 0

    def read(self, requests: Any, into: Any = None) -> list[np.ndarray]:
        arrays = super().read(requests, into)
        self.counted += sum(array.nbytes for array in arrays)
        return arrays


STATE = {"a": np.arange(256 * 48, dtype=np.float32).reshape(256, 48), "b": np.arange(300.0), "c": np.array(7)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    options = jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(chunk_byte_size=4096))
    return jaxckpt.Checkpoint(**STATE).write(tmp_path_factory.mktemp("shared") / "c", options)


class Job:
    """Processes that read groups of boxes, each on a thread, with random pauses."""

    def __init__(self, path: str, processes: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiles, "_TILE_BYTES", 1024)
        monkeypatch.setattr(tiles, "PART_BYTES", 700)
        monkeypatch.setattr(shared_reads, "_WINDOW_BYTES", window)
        monkeypatch.setattr(shared_reads, "_AHEAD_BYTES", window // 2)
        self.stored = Counting(path)
        self.infos = self.stored.infos(self.stored.tree.leaves)
        self.positions = {leaf.param_name: number for number, leaf in enumerate(self.stored.tree.leaves)}
        self.reads = SharedReads(self.stored, range(processes), 20)
        self.errors: list[BaseException] = []
        self.found: dict[int, list[np.ndarray]] = {}

    def process(self, index: int, groups: Sequence[Requests], seed: int) -> None:
        rng = random.Random(seed)
        try:
            for requests in groups:
                wanted = Wanted(requests, self.infos, self.positions)
                shared, rest = wanted.divided(self.reads.announce(index, wanted.boxes))
                while shared:
                    some = [wanted.target(part) for part in shared[: rng.randint(1, 5)]]
                    del shared[: len(some)]
                    if rng.random() < 0.2:
                        threading.Event().wait(0.002)
                    with self.reads.taken([key for _, key in some]) as parts:
                        for (target, _), part in zip(some, parts, strict=True):
                            target[...] = part
                for target, (name, start, shape) in rest:
                    self.stored.read([(name, slices_of(start, shape))], [target])
                self.found.setdefault(index, []).extend(wanted.arrays)
            self.reads.leave(index)
        except BaseException as error:
            self.errors.append(error)
            self.reads.fail(error)

    def run(self, works: Sequence[Sequence[Requests]], seed: int) -> None:
        threads = [
            threading.Thread(target=self.process, args=(index, groups, seed + index))
            for index, groups in enumerate(works)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def columns(process: int, processes: int) -> Requests:
    width = 48 // processes
    return [
        ("a", (slice(0, 256), slice(process * width, (process + 1) * width))),
        ("b", None),
        ("c", None),
    ]


@pytest.mark.parametrize("window", [1, 10_000, 1 << 20])
@pytest.mark.parametrize("seed", range(5))
def test_each_byte_is_read_once(path: str, window: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(path, 4, window, monkeypatch)
    whole: Requests = [("a", None), ("c", None)]
    # Three groups: columns of one array and the whole of others; the same for all; and one process that leaves early.
    works: list[Sequence[Requests]] = [[columns(process, 4), whole, whole] for process in range(4)]
    works[2] = [columns(2, 4), whole]
    job.run(works, seed)

    assert not job.errors
    for process in range(4):
        expected = [STATE["a"][:, process * 12 : (process + 1) * 12], STATE["b"], STATE["c"], STATE["a"], STATE["c"]]
        expected += [] if process == 2 else [STATE["a"], STATE["c"]]
        for found, right in zip(job.found[process], expected, strict=True):
            assert (found == right).all()
    nbytes = {name: value.nbytes for name, value in STATE.items()}
    assert job.stored.counted == 3 * nbytes["a"] + nbytes["b"] + 3 * nbytes["c"]


@pytest.mark.parametrize("dead", [0, 3])
def test_the_failure_of_one_ends_the_waits_of_all(path: str, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(path, 4, 2048, monkeypatch)
    works: list[Sequence[Requests]] = [[columns(process, 4)] for process in range(4)]
    works[dead] = [[("a", (slice(0, 99, 0),))]]
    job.run(works, 0)

    assert len(job.errors) == 4
    assert len({id(error) for error in job.errors}) == 1


def test_damage_reaches_all_that_wanted_it(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "c"
    shutil.copytree(path, damaged)
    # The threads that write data files share out the chunks as they come.
    begin = STATE["a"][0, :4].tobytes()
    file = next(each for each in damaged.glob("d/*") if begin in each.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(begin)] ^= 1
    file.write_bytes(content)
    job = Job(str(damaged), 3, 2048, monkeypatch)
    monkeypatch.setattr(job.reads, "fail", lambda error: None)
    job.run([[[("a", None)]]] * 3, 0)

    # All of them get it from the tile itself.
    assert len(job.errors) == 3
    assert all(isinstance(error, CorruptCheckpointError) and "a: " in str(error) for error in job.errors)


class SmallJob(Job):
    """Processes that take very small arrays in bundles, and then the rest."""

    def process(self, index: int, groups: Sequence[Requests], seed: int) -> None:
        try:
            for requests in groups:
                small = SmallFirst(requests, self.infos, self.positions)
                wanted = Wanted(small.rest, self.infos, self.positions)
                shared, rest = wanted.divided(self.reads.announce(index, wanted.boxes, small.runs))
                left = small.agree(self.reads.small, self.stored.tree.leaves)
                for number, key in enumerate(small.keys):
                    with self.reads.taken([key]) as (content,):
                        small.take_one(number, content)
                for target, key in map(wanted.target, shared):
                    with self.reads.taken([key]) as (part,):
                        target[...] = part
                for target, (name, start, shape) in rest:
                    self.stored.read([(name, slices_of(start, shape))], [target])
                self.found.setdefault(index, []).extend(small.all(wanted.arrays, self.stored.read(left)))
            self.reads.leave(index)
        except BaseException as error:
            self.errors.append(error)
            self.reads.fail(error)


@pytest.mark.parametrize("window", [1, 3000, 1 << 20])
@pytest.mark.parametrize("nbytes", [1, 2500, 1 << 20])
def test_bundles_come_first(path: str, window: int, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_BUNDLE_BYTES", nbytes)
    job = SmallJob(path, 3, window, monkeypatch)
    half = (slice(100, 250),)
    works: list[list[Requests]] = [
        [[("a", None), ("b", half), ("c", None)], [("b", None)]],
        [[("b", None), ("c", None), ("a", (slice(0, 9), slice(0, 48)))], [("b", half), ("c", None)]],
        [[("c", None), ("b", half), ("b", None)], [("b", half)]],
    ]
    job.run(works, 0)
    assert not job.errors
    for index, groups in enumerate(works):
        for (name, box), found in zip(
            [request for group in groups for request in group], job.found[index], strict=True
        ):
            np.testing.assert_array_equal(found, STATE[name] if box is None else STATE[name][box])
    # Each bundle is read once for all, though each process wants its arrays. `c` of the second group is wanted by one process.
    small = STATE["b"].nbytes + STATE["c"].nbytes
    assert job.stored.counted <= small + small + STATE["a"].nbytes + 9 * 48 * 4


def test_a_part_that_was_not_announced_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(path, 1, 2048, monkeypatch)
    job.reads.announce(0, [("b", (0,), (300,))])
    with pytest.raises(jaxckpt.ProcessError, match="not announced"), job.reads.taken([("b", (0,), (10,))]):
        pass


def test_who_wants_the_whole_does_not_take_the_place_of_who_wants_a_part(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 0 wants a very small array whole, the others want less of it, so that process 0 reads it alone."""
    job = Job(path, 3, 1 << 20, monkeypatch)
    answers = CenterAnswers(job.stored, job.reads).handlers()
    part = ("b", (0,), (10,))
    asked = [Announce((), SmallFirst([("b", None)], job.infos, job.positions).runs), *[Announce((part,), ())] * 2]
    threads = [threading.Thread(target=answers[Announce], args=each) for each in enumerate(asked)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert job.reads.small == ()
    assert [job.reads.is_shared(process, part) for process in range(3)] == [False, True, True]
    with job.reads.taken([part]):
        _, content = answers[AskBoxes](0, AskBoxes((("b", (0,), (300,)),)))
        np.testing.assert_array_equal(content[0], STATE["b"])  # type: ignore[index]
    read = job.stored.counted
    # The tile is still there for process 2.
    with job.reads.taken([part]) as (found,):
        np.testing.assert_array_equal(found, STATE["b"][:10])
    assert job.stored.counted == read


def test_peers_that_ask_for_the_same_get_one_description(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = CenterAnswers(Counting(path), Job(path, 3, 1 << 20, monkeypatch).reads).handlers()
    for request in (AskStored(0), AskInfos((0, 2))):
        first, _ = answers[type(request)](1, request)
        again, _ = answers[type(request)](2, dataclasses.replace(request))
        assert again is first


def test_peers_that_ask_for_other_leaves_get_other_descriptions(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(path, 3, 1 << 20, monkeypatch)
    answers = CenterAnswers(job.stored, job.reads).handlers()
    for names in (("a", "b"), ("b", "c"), ("a",), ("c",), ("a", "b")):
        message, _ = answers[AskInfos](1, AskInfos(("abc".index(names[0]), len(names))))
        assert isinstance(message, Infos)
        shapes = {name: info.shape for name, info in infos_of(message, names).items()}
        assert shapes == {name: job.infos[name].shape for name in names}
    for position in (1, 0, 2, 1):
        page, _ = answers[AskStored](1, AskStored(position))
        assert isinstance(page, Leaves)
        assert leaves_of(page) == list(job.stored.tree.leaves[position:])


def test_few_descriptions_are_kept(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(center_answers, "_DESCRIPTIONS", 2)
    answers = CenterAnswers(Counting(path), Job(path, 3, 1 << 20, monkeypatch).reads).handlers()
    a, b, c = [(AskInfos((at, 1)), answers[AskInfos](1, AskInfos((at, 1)))[0]) for at in range(3)]
    assert all(answers[AskInfos](1, request)[0] is message for request, message in (b, c))
    assert answers[AskInfos](1, a[0])[0] is not a[1]
