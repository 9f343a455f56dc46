"""Compressed checkpoints are read by the own code: never by TensorStore, never wrong, and in memory that the leaf justifies."""

import tracemalloc
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zstandard
from engines import use_tensorstore

import jaxckpt
from jaxckpt.storage.arrays import stored
from jaxckpt.storage.item import digests

pytestmark = pytest.mark.sampled

LAYOUTS = {
    "database": jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(compression="zstd", chunk_byte_size=20_000)),
    "files": jaxckpt.CheckpointOptions(
        experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(20_000),
        orbax=jaxckpt.OrbaxSettings(compression="zstd"),
    ),
}


def values() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "noise": rng.standard_normal((300, 200), dtype=np.float32),
        "ramp": np.arange(60_000, dtype=np.int64).reshape(20, 3000),
        "zeros": np.zeros((50_000,), np.uint8),
        "small": [rng.standard_normal(5) for _ in range(5)],
        "flags": rng.integers(0, 2, (70, 90)).astype(bool),
    }


def blank() -> dict[str, Any]:
    return {
        name: [np.zeros_like(item) for item in value] if isinstance(value, list) else np.zeros_like(value)
        for name, value in values().items()
    }


def restored(path: Path) -> dict[str, Any]:
    checkpoint = jaxckpt.Checkpoint(value=blank())
    checkpoint.read(path).assert_consumed()
    return checkpoint.value  # type: ignore[no-any-return]


def assert_right(found: dict[str, Any]) -> None:
    for name, value in values().items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value))


@pytest.fixture(params=LAYOUTS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(jaxckpt.Checkpoint(value=values()).write(tmp_path / "c", LAYOUTS[request.param]))


def test_tensorstore_reads_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("TensorStore was asked to read")

    monkeypatch.setattr(stored, "TensorStoreReader", refuse)
    assert_right(restored(saved))
    assert_right(jaxckpt.load_checkpoint(saved).tree()["value"])
    assert jaxckpt.verify(saved).ok


def test_tensorstore_reads_if_it_is_told_to(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tensorstore(monkeypatch)
    assert_right(restored(saved))


@pytest.fixture
def in_files(tmp_path: Path) -> Path:
    return Path(jaxckpt.Checkpoint(value=values()).write(tmp_path / "c", LAYOUTS["files"]))


def replace_chunk(path: Path, frame: bytes) -> Path:
    """Gives one chunk other bytes, with right checksums everywhere."""
    chunk = path / "value.zeros" / "c" / "1"
    chunk.write_bytes(frame + google_crc32c.value(frame).to_bytes(4, "little"))
    (path / digests.FILE).unlink()
    digests.write(str(path))
    return chunk


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
def test_any_frame_of_the_right_size(sized: bool, in_files: Path) -> None:
    size = len(zstandard.decompress((in_files / "value.zeros" / "c" / "1").read_bytes()[:-4], 1 << 20))
    replace_chunk(in_files, zstandard.ZstdCompressor(9, write_content_size=sized).compress(bytes(size)))
    assert_right(restored(in_files))


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
@pytest.mark.parametrize("size", [1, 1 << 30], ids=["short", "bomb"])
def test_a_frame_of_another_size(size: int, sized: bool, in_files: Path) -> None:
    """The error names leaf and file, and a bomb takes no memory."""
    compressor = zstandard.ZstdCompressor(1, write_content_size=sized)
    replace_chunk(in_files, compressor.compress(bytes(size))[: 16_000 if size > 1 else None])
    restored_before = blank()
    checkpoint = jaxckpt.Checkpoint(value=restored_before)
    tracemalloc.start()
    try:
        with pytest.raises(jaxckpt.CorruptCheckpointError, match=r"value.*zeros.*value\.zeros/c/1") as raised:
            checkpoint.read(in_files)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert str(in_files) in str(raised.value)
    assert checkpoint.value is restored_before
    assert not any(np.any(array) for array in (checkpoint.value["noise"], checkpoint.value["ramp"]))


def test_an_array_that_nothing_justifies(in_files: Path) -> None:
    """Metadata that claim a terabyte are refused before memory is made."""
    metadata = in_files / "value.ramp" / "zarr.json"
    text = metadata.read_text()
    for old, new in (("[20, 3000]", "[20, 300000000000]"), ("[20,3000]", "[20,300000000000]")):
        text = text.replace(old, new)
    assert "300000000000" in text
    metadata.write_text(text)
    replace_chunk(in_files, (in_files / "value.zeros" / "c" / "1").read_bytes()[:-4])
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="ramp"):
        jaxckpt.load_checkpoint(in_files).tree()
