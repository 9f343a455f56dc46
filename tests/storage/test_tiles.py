"""Large arrays are cut into tiles, so that a process of another sharding reads little besides its own part."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxckpt
from jaxckpt.storage.item import layout, tiles
from jaxckpt.storage.item.content import ArrayContent
from jaxckpt.storage.settings import WriteSettings

MIB = 1 << 20


@st.composite
def arrays(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, shape of the pieces, and size of an element, of an array of 64 MiB or somewhat more."""
    itemsize = draw(st.sampled_from([1, 2, 4, 8]))
    shape = [draw(st.integers(1, 9000)) for _ in range(draw(st.integers(1, 4)))]
    whole = math.prod(shape) * itemsize
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] *= max(1, -(-64 * MIB // whole))
    pieces = []
    for extent in shape:
        divisors = [count for count in (1, 2, 3, 4, 6, 7, 8, 16) if extent % count == 0]
        pieces.append(extent // draw(st.sampled_from(divisors)))
    return tuple(shape), tuple(pieces), itemsize


@hypothesis.given(arrays())
@hypothesis.settings(max_examples=500)
def test_any_array(given: tuple[tuple[int, ...], tuple[int, ...], int]) -> None:
    """Tiles never cross pieces, are no dust, and do not add much at the edges."""
    shape, pieces, itemsize = given
    found = tiles.tile(shape, pieces, itemsize)
    for whole, piece, extent in zip(shape, pieces, found, strict=True):
        assert 1 <= extent <= piece
        assert piece == whole or piece % extent == 0
        if piece == whole:
            assert -(-whole // extent) * extent <= whole * (1 + 1 / 100)
    if math.prod(shape) * itemsize < 64 * MIB:
        assert found == pieces
    elif found != pieces:
        nbytes = math.prod(found) * itemsize
        assert nbytes >= 512 << 10
        # What is contiguous in a piece.
        run = itemsize
        for extent, piece in zip(reversed(found), reversed(pieces), strict=True):
            run *= extent
            if extent < piece:
                break
        assert run >= 256


def read_by(shape: tuple[int, ...], chunk: tuple[int, ...], boxes: list[tuple[slice, ...]], itemsize: int) -> int:
    """Bytes of the chunks that are in these boxes."""
    wanted: set[tuple[int, ...]] = set()
    for box in boxes:
        spans = [part.indices(extent)[:2] for part, extent in zip(box, shape, strict=True)]
        wanted |= set(
            itertools.product(
                *(range(first // cut, -(-last // cut)) for (first, last), cut in zip(spans, chunk, strict=True))
            )
        )
    return len(wanted) * math.prod(chunk) * itemsize


SHAPES: list[tuple[tuple[int, ...], Any]] = [
    ((8192, 8192), np.float32),
    ((4096, 4096), np.float32),
    ((8192, 4096), np.uint16),
    ((50304, 768), np.float32),
    ((128256, 4096), np.uint16),
    ((1048, 16384), np.float32),
    ((32, 2048, 512), np.float32),
    ((16, 16, 256, 256), np.float32),
]


def shardings(shape: tuple[int, ...]) -> Iterator[NamedSharding]:
    """Over 8 devices, of which each process has two: every axis by 8, and every pair of axes by 4 and 2."""
    devices = np.asarray(jax.devices()[:8])
    for axis, extent in enumerate(shape):
        if extent % 8 == 0:
            yield NamedSharding(Mesh(devices, ("x",)), PartitionSpec(*[None] * axis, "x"))
    mesh = Mesh(devices.reshape(4, 2), ("x", "y"))
    for one, other in itertools.permutations(range(len(shape)), 2):
        if shape[one] % 4 == 0 and shape[other] % 2 == 0:
            spec: list[str | None] = [None] * len(shape)
            spec[one], spec[other] = "x", "y"
            yield NamedSharding(mesh, PartitionSpec(*spec))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=[f"{shape}" for shape, _ in SHAPES])
def test_what_four_processes_of_two_devices_read(shape: tuple[int, ...], dtype: Any) -> None:
    """Saved with any sharding of the two longest axes, restored with any other one."""
    itemsize = np.dtype(dtype).itemsize
    part = math.prod(shape) * itemsize / 4
    longest = sorted(range(len(shape)), key=lambda axis: -shape[axis])[:2]
    used = [
        sharding
        for sharding in shardings(shape)
        if all(axis in longest or name is None for axis, name in enumerate(sharding.spec))
    ]
    assert len(used) >= 3
    for saved in used:
        content = ArrayContent("jax.Array", shape, np.dtype(dtype), saved.shard_shape(shape), ())
        chunk = layout.chunks_of(content, WriteSettings())
        for restored in used:
            boxes = list(restored.devices_indices_map(shape).values())
            for process in range(4):
                read = read_by(shape, chunk, boxes[2 * process : 2 * process + 2], itemsize)
                assert read <= 1.25 * part, (saved.spec, restored.spec, chunk, process)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts arrays of a few kilobytes as if they were large."""
    for name, value in {"TILED_BYTES": 4096, "_LEAST_BYTES": 32, "_MOST_BYTES": 256, "_RUN_BYTES": 8}.items():
        monkeypatch.setattr(tiles, name, value)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("spec", [("x", None), (None, "x"), (None, None), ("y", "z")], ids=str)
def test_tiles_are_written_and_read(
    spec: tuple[str | None, ...], compression: Any, engine: str, small_tiles: None, tmp_path: Path
) -> None:
    """Also at the edges of arrays whose extents have no divisors. After the test, plain Orbax reads it too."""
    devices = np.asarray(jax.devices()[:8])
    mesh = Mesh(devices, ("x",)) if "x" in spec or spec == (None, None) else Mesh(devices.reshape(4, 2), ("y", "z"))
    rng = np.random.default_rng(0)
    sharded = jax.device_put(rng.standard_normal((64, 96), dtype=np.float32), NamedSharding(mesh, PartitionSpec(*spec)))
    value = {
        "sharded": sharded,
        "odd": rng.standard_normal((131, 257), dtype=np.float32),
        "fortran": np.asfortranarray(rng.standard_normal((130, 64))),
        "deep": rng.integers(0, 100, (5, 37, 64), dtype=np.int16),
        "line": rng.standard_normal(10_007, dtype=np.float32),
    }
    assert layout.chunks_of(
        ArrayContent("np.ndarray", (131, 257), np.dtype("f4"), (131, 257), ()), WriteSettings()
    ) != (
        131,
        257,
    )
    options = jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(compression=compression))
    path = jaxckpt.Checkpoint(value=value).write(tmp_path / "c", options)
    target = jaxckpt.Checkpoint(value=jax.tree.map(lambda leaf: leaf * 0, value))
    target.read(path).assert_consumed()
    jax.tree.map(np.testing.assert_array_equal, target.value, value)
    assert jaxckpt.verify(path).ok
