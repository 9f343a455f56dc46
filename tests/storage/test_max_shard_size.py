"""No data file is larger than MaxShardSizePolicy allows, whatever the arrays and the other settings."""

import os
from pathlib import Path
from typing import Any

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from examples import examples
from hypothesis import strategies as st
from orbax.checkpoint import v1

import jaxckpt

pytestmark = pytest.mark.sampled

MIB = 1 << 20
METADATA = {
    "_METADATA",
    "_CHECKPOINT_METADATA",
    "_JAXCKPT",
    "_sharding",
    "_strings.json",
    "zarr.json",
    "process_0",
    "commit_success.txt",
}


def options(limit: int, **settings: Any) -> jaxckpt.CheckpointOptions:
    return jaxckpt.CheckpointOptions(
        experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(limit), orbax=jaxckpt.OrbaxSettings(**settings)
    )


def data_files(path: str | Path) -> dict[str, int]:
    found = (file for file in Path(path).rglob("*") if file.is_file() and file.name not in METADATA)
    return {str(file): file.stat().st_size for file in found}


@hypothesis.given(
    shape=st.lists(st.integers(1, 60), max_size=3),
    dtype=st.sampled_from([np.uint8, np.float32, np.float64, np.complex64]),
    limit=st.integers(20, 5000),
    compression=st.sampled_from([None, "zstd"]),
)
# Noise grows when it is compressed.
@hypothesis.example(shape=[10_000], dtype=np.uint8, limit=1004, compression="zstd")
@hypothesis.settings(max_examples=examples(20))
def test_small_limits(
    shape: list[int], dtype: Any, limit: int, compression: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hypothesis.assume(np.prod(shape) * np.dtype(dtype).itemsize / limit < 300)
    noise = np.random.default_rng(0).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    array = np.frombuffer(noise, dtype).reshape(shape)
    checkpoint = jaxckpt.Checkpoint(value=array, text="x" * 10, scalar=1)
    path = checkpoint.write(tmp_path_factory.mktemp("small") / "c", options(limit, compression=compression))
    assert all(size <= limit for size in data_files(path).values())
    checkpoint.value = np.zeros_like(array)
    checkpoint.read(path).assert_consumed()
    assert checkpoint.value.tobytes() == array.tobytes()
    assert jaxckpt.verify(path).ok


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ([15 * MIB, 62 * MIB], {"chunk_byte_size": 64 * MIB}),
        ([15 * MIB] * 3 + [50 * MIB], {"chunk_byte_size": 64 * MIB, "target_data_file_size": 64 * MIB}),
        ([16 * MIB - 100] * 5, {}),
        ([100_000] * 900, {}),
    ],
    ids=["one large chunk", "several", "default chunks", "small arrays"],
)
def test_large_limits(sizes: list[int], settings: Any, tmp_path: Path) -> None:
    """Files that hold many chunks. Arrays of zeros: their pages take no memory before they are written."""
    limit = 64 * MIB
    values = {f"v{index}": np.zeros(size, np.uint8) for index, size in enumerate(sizes)}
    path = jaxckpt.Checkpoint(values).write(tmp_path / "c", options(limit, **settings))
    files = data_files(path)
    assert sum(files.values()) >= sum(sizes)
    assert max(files.values()) <= limit
    # 100 MB are not left behind for pytest to keep.
    for file in files:
        os.unlink(file)


@pytest.mark.parametrize("limit", [1, 4, 7, 11])
def test_an_element_larger_than_the_limit(limit: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"model/w.*max_shard_size={limit}"):
        jaxckpt.Checkpoint(model={"w": np.zeros(3)}).save(tmp_path / "ckpt", options(limit))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("leaf", ["array", "str"])
@pytest.mark.parametrize(
    "key",
    [
        "a/b",
        "/",
        "..",
        ".",
        "",
        "x\0y",
        "é" * 120,
        "x" * 250,
        "manifest.ocdbt",
        "_METADATA",
        "_JAXCKPT",
        "_sharding",
        "_strings.json",
        "array_metadatas",
        "_CHECKPOINT_METADATA",
        "d",
        "ocdbt.process_0",
        "zarr.json",
        "c",
        "commit_success.txt",
        "~",
        "\n",
    ],
)
def test_keys_that_are_no_file_names(key: str, leaf: str, tmp_path: Path) -> None:
    """Kept or refused by name, before any file is made, and never outside of the checkpoint. A str needs no file of its own."""
    value = np.arange(4.0) if leaf == "array" else "some text"
    checkpoint = jaxckpt.Checkpoint(**{key: value, "j": jnp.arange(3.0)})
    try:
        path = checkpoint.write(tmp_path / "c", options(1000))
    except ValueError as error:
        assert str(error).startswith(key.replace("~", "~0").replace("/", "~1") + ":"), error
        assert os.listdir(tmp_path) == []
        assert leaf == "array"
        return
    assert os.listdir(tmp_path) == ["c"]
    assert jaxckpt.verify(path).ok
    fresh = jaxckpt.Checkpoint(**{key: np.zeros(4) if leaf == "array" else "", "j": jnp.zeros(3)})
    fresh.read(path).assert_consumed()
    np.testing.assert_array_equal(getattr(fresh, key), value)


def test_plain_orbax_restores_it(tmp_path: Path) -> None:
    value = {"a": np.arange(1000.0), "b": [jnp.arange(5), np.float32(2)]}
    path = jaxckpt.Checkpoint(value=value).write(tmp_path / "c", options(500))
    found = v1.load(path, {"value": {"a": np.zeros(1000), "b": [np.zeros(5, np.int32), 0.0]}})["value"]
    np.testing.assert_array_equal(found["a"], value["a"])
    np.testing.assert_array_equal(found["b"][0], np.arange(5))


def test_the_policy_is_not_needed_to_restore_and_may_change(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(value=np.arange(1000.0))
    for limit in (100, 64 * MIB, 5000):
        path = checkpoint.write(tmp_path / "c", options(limit))
        checkpoint.value = np.zeros(1000)
        checkpoint.read(path).assert_consumed()
        np.testing.assert_array_equal(checkpoint.value, np.arange(1000.0))
