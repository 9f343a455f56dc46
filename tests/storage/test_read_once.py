"""A restore reads each chunk once, whatever boxes want parts of it: counted by the engines, and by the operating system."""

import itertools
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import jaxckpt
from jaxckpt._lib.blocks import blocks
from jaxckpt._lib.boxes import overlapping
from jaxckpt.storage.arrays import cells, counts
from jaxckpt.storage.opened import StoredCheckpoint

pytestmark = pytest.mark.sampled

SHAPE = (512, 1024)
NBYTES = 512 * 1024 * 4
SETTINGS = {"chunk_byte_size": 64 << 10}
LAYOUTS = {
    "plain": jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(**SETTINGS)),
    "zstd": jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(compression="zstd", **SETTINGS)),
    "files": jaxckpt.CheckpointOptions(experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(70_000)),
}
SPECS = {
    "columns": PartitionSpec(None, "x"),
    "rows": PartitionSpec("x"),
    "both": PartitionSpec("y", "z"),
    "replicated": PartitionSpec(),
}


def on_devices(value: np.ndarray, spec: str) -> jax.Array:
    devices = np.asarray(jax.devices()[:8])
    mesh = (
        jax.sharding.Mesh(devices.reshape(4, 2), ("y", "z")) if spec == "both" else jax.sharding.Mesh(devices, ("x",))
    )
    return jax.device_put(value, NamedSharding(mesh, SPECS[spec]))


def value() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 1 << 20, SHAPE, dtype=np.int32)


def save(directory: Path, layout: str) -> Path:
    return Path(jaxckpt.Checkpoint(value=on_devices(value(), "rows")).write(directory / "c", LAYOUTS[layout]))


class Count:
    """What was read."""

    chunks = nbytes = by_system = -1


@contextmanager
def counted() -> Iterator[Count]:
    count, before, system = Count(), counts.so_far(), _read_by_system()
    yield count
    count.by_system = _read_by_system() - system
    after = counts.so_far()
    count.chunks, count.nbytes = after.chunks - before.chunks, after.bytes - before.bytes


def _read_by_system() -> int:
    if not sys.platform.startswith("linux"):
        return 0
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def restore(path: Path | str, spec: str) -> None:
    checkpoint = jaxckpt.Checkpoint(value=on_devices(np.zeros(SHAPE, np.int32), spec))
    checkpoint.read(path).assert_consumed()
    np.testing.assert_array_equal(np.asarray(checkpoint.value), value())
    assert checkpoint.value.sharding.spec == SPECS[spec]


def data_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_chunk_is_read_once(layout: str, spec: str, engine: str, tmp_path: Path) -> None:
    path = save(tmp_path, layout)
    # The first restore of a process reads modules of Python.
    restore(path, spec)
    with counted() as count:
        restore(path, spec)
    # Pieces of 256 kB, and chunks of 64 kB.
    assert count.chunks == 32
    if layout == "plain":
        assert NBYTES <= count.nbytes <= NBYTES + 32 * 4
    # Besides the data: the index, and metadata, of which some are read twice; and both ends of each file, by which it is recognized.
    files = sum(file.is_file() for file in path.rglob("*"))
    assert count.by_system <= data_bytes(path) + (60 << 10) + files * (8 << 10)


def test_what_plain_orbax_wrote_is_read_once(tmp_path: Path) -> None:
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    saved = {"value": on_devices(value(), "rows")}
    ocp.Checkpointer(handler).save(tmp_path / "c", ocp.args.PyTreeSave(saved))
    for spec in SPECS:
        restore(tmp_path / "c", spec)
        with counted() as count:
            restore(tmp_path / "c", spec)
        assert count.chunks == 8
        assert count.by_system <= data_bytes(tmp_path / "c") + (100 << 10)


def test_a_reader_reads_once(tmp_path: Path) -> None:
    path = save(tmp_path, "plain")
    with counted() as count:
        np.testing.assert_array_equal(jaxckpt.load_checkpoint(path).tree()["value"], value())
    assert count.chunks == 32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_of_a_shared_chunk(layout: str, tmp_path: Path) -> None:
    """Every box wants a part of it. The error names the leaf and the file, and no target has changed."""
    path = save(tmp_path, layout)
    file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    before = on_devices(np.zeros(SHAPE, np.int32), "columns")
    checkpoint = jaxckpt.Checkpoint(value=before, other=np.zeros(3))
    with pytest.raises(jaxckpt.CorruptCheckpointError, match=r"^value: .*" + file.name) as raised:
        checkpoint.read(path)
    assert str(path) in str(raised.value)
    assert checkpoint.value is before
    assert not np.any(np.asarray(before))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, ">f4"], ids=["native", "swapped"])
def test_a_numpy_target_costs_one_array(layout: str, dtype: Any, tmp_path: Path) -> None:
    """Chunks are as large as the array, where that is possible, and still take no memory of their own."""
    array = np.random.default_rng(1).standard_normal(6 << 20, dtype=np.float32).astype(dtype)
    orbax = jaxckpt.OrbaxSettings(chunk_byte_size=64 << 20, compression="zstd" if layout == "zstd" else None)
    options = LAYOUTS["files"] if layout == "files" else jaxckpt.CheckpointOptions(orbax=orbax)
    path = jaxckpt.Checkpoint(value=array).write(tmp_path / "c", options)
    checkpoint = jaxckpt.Checkpoint(value=np.zeros_like(array))
    tracemalloc.start()
    try:
        checkpoint.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(checkpoint.value, array)
    # Alignment to a huge page, the blocks of each thread, and zstd's window.
    assert array.nbytes < peak < array.nbytes + (12 << 20)


def test_an_array_larger_than_the_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "plain")
    steps: list[int] = []
    read = StoredCheckpoint.read

    def watched(self: StoredCheckpoint, *arguments: Any) -> list[np.ndarray]:
        found = read(self, *arguments)
        steps.append(sum(array.nbytes for array in found))
        return found

    monkeypatch.setattr(StoredCheckpoint, "read", watched)
    checkpoint = jaxckpt.Checkpoint(value=on_devices(np.zeros(SHAPE, np.int32), "rows"))
    options = jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(memory_limit_bytes=NBYTES // 4))
    with counted() as count:
        checkpoint.read(path, options)
    np.testing.assert_array_equal(np.asarray(checkpoint.value), value())
    assert steps == [NBYTES // 4] * 4
    assert count.chunks == 32


spans = st.tuples(st.integers(0, 30), st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def wanted(draw: st.DrawFn) -> tuple[list[list[tuple[int, int]]], list[int]]:
    axes = draw(st.integers(0, 3))
    box = st.lists(spans, min_size=axes, max_size=axes)
    return draw(st.lists(box, min_size=1, max_size=6)), [draw(st.integers(1, 9)) for _ in range(axes)]


@given(wanted(), st.integers(1, 3000))
def test_cells(given_boxes: tuple[list[list[tuple[int, int]]], list[int]], limit: int) -> None:
    """Together, cells fill each box exactly once, and no chunk is in two of them."""
    boxes, grid = given_boxes
    whole = np.arange(45 ** len(grid)).reshape((45,) * len(grid))
    filled = [np.full([stop - start for start, stop in box], -1) for box in boxes]
    seen: set[tuple[int, ...]] = set()
    for cell in cells.cells(boxes, grid, 1, limit):
        region = whole[(*cell.region, ...)]
        for position, inside, there in cell.wanted:
            assert np.all(filled[position][(*there, ...)] == -1)
            filled[position][(*there, ...)] = region[(*inside, ...)]
        ranges = [range(part.start // cut, -(-part.stop // cut)) for part, cut in zip(cell.region, grid, strict=True)]
        chunks = set(itertools.product(*ranges))
        assert len(chunks) <= cell.chunks
        assert not chunks & seen
        seen |= chunks
    for box, array in zip(boxes, filled, strict=True):
        np.testing.assert_array_equal(array, whole[(*(slice(*span) for span in box), ...)])
    assert cells.are_shared(boxes, grid) == any(
        all(
            max(a // cut, c // cut) < min(-(-b // cut), -(-d // cut))
            for (a, b), (c, d), cut in zip(boxes[one], boxes[other], grid, strict=True)
        )
        for one in range(len(boxes))
        for other in range(one)
    )


@given(st.lists(st.integers(1, 9), max_size=4), st.integers(1, 200))
def test_blocks(shape: list[int], limit: int) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape)
    found = [array[(*block, ...)] for block in blocks(tuple(shape), 1, limit)]
    assert all(part.flags.c_contiguous and part.size <= limit for part in found)
    np.testing.assert_array_equal(np.concatenate([part.reshape(-1) for part in found]), array.reshape(-1))


@given(st.lists(st.lists(spans, min_size=2, max_size=2), max_size=8))
def test_boxes_that_overlap(boxes: list[list[tuple[int, int]]]) -> None:
    sets = overlapping(boxes)
    assert sorted(number for each in sets for number in each) == list(range(len(boxes)))
    masks = []
    for box in boxes:
        mask = np.zeros((45, 45), bool)
        mask[tuple(slice(*span) for span in box)] = True
        masks.append(mask)
    together = [np.any([masks[number] for number in each], axis=0) for each in sets]
    assert not np.any(np.sum(together, axis=0) > 1)
    for each in sets:
        # None of them could be left out of its set.
        assert len(each) == 1 or all(
            any(np.any(masks[number] & masks[other]) for other in each if other != number) for number in each
        )
