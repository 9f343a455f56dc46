"""Safetensors files are read like checkpoints; damaged ones are refused."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

import jaxckpt

ARRAYS = {
    "model.layers.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "model.bias": np.array([np.nan, -0.0, 1.0], ml_dtypes.bfloat16),
    "model.empty": np.zeros((0, 3), np.int8),
    "model.flags": np.array([True, False]),
    "step": np.array(7, np.int64),
    "z": np.array([1 + 2j], np.complex64),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that the library wrote."""
    save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"format": "np"})
    return tmp_path / "x.safetensors"


def check(reader: jaxckpt.Reader, arrays: dict[str, np.ndarray]) -> None:
    """Checks names, dtypes, shapes and bytes."""
    assert reader.keys() == sorted(arrays)
    for name, expected in arrays.items():
        found = reader.get_tensor(name)
        assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_reads_what_the_library_writes(path: Path) -> None:
    check(jaxckpt.load_checkpoint(path), ARRAYS)
    report = jaxckpt.verify(path)
    assert (report.ok, report.checksummed, report.leaves, report.files) == (True, False, len(ARRAYS), 1)


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float16", "uint64"]
)
def test_reads_dtypes_that_the_library_does_not_give_numpy(name: str, tmp_path: Path) -> None:
    array = np.arange(8).astype(getattr(ml_dtypes, name, name))
    save_file({"a": array}, tmp_path / "x.safetensors")
    check(jaxckpt.load_checkpoint(tmp_path / "x.safetensors"), {"a": array})


def test_restores_names_with_dots_and_with_slashes(path: Path) -> None:
    def target() -> dict[str, Any]:
        return {"layers": [{"weight": jnp.zeros((2, 3))}], "bias": jnp.zeros(3, jnp.bfloat16)}

    checkpoint = jaxckpt.Checkpoint(model=target(), step=0)
    status = checkpoint.read(path)
    status.assert_existing_objects_matched()
    assert set(status.unexpected) == {"model.empty", "model.flags", "z"}
    assert checkpoint.step == 7
    np.testing.assert_array_equal(checkpoint.model["layers"][0]["weight"], ARRAYS["model.layers.0.weight"])
    flat = jaxckpt.Checkpoint({"model.bias": np.zeros(3, ml_dtypes.bfloat16)})
    flat.read(path).expect_partial()


def test_a_restore_of_a_wrong_shape_changes_nothing(path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(model={"bias": np.ones(4, ml_dtypes.bfloat16)}, step=1)
    with pytest.raises(ValueError, match=r"model/bias: the target has shape \(4,\)"):
        checkpoint.restore(path)
    assert checkpoint.step == 1


def sharded(directory: Path) -> Path:
    names = sorted(ARRAYS)
    places = {name: f"m-{1 + number % 2:05d}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: ARRAYS[name] for name in names if places[name] == file}, directory / file)
    index = directory / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_several_files_with_an_index(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    for given in (index, tmp_path / "m.safetensors"):
        check(jaxckpt.load_checkpoint(given), ARRAYS)
    assert jaxckpt.verify(index).files == 3
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        jaxckpt.CorruptCheckpointError, match="m-00002-of-00002.safetensors: this file, which .* names, is missing"
    ):
        jaxckpt.load_checkpoint(index)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", "a\0b", 3, None])
def test_an_index_that_leads_elsewhere(name: Any, path: Path, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    index = tmp_path / "inside/m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"step": name}}))
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        jaxckpt.load_checkpoint(index)


def test_an_index_that_names_an_array_that_is_not_there(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    document = json.loads(index.read_text())
    document["weight_map"]["more"] = "m-00001-of-00002.safetensors"
    index.write_text(json.dumps(document))
    with pytest.raises(
        jaxckpt.CorruptCheckpointError, match="'more', which m.safetensors.index.json says to be in this file"
    ):
        jaxckpt.load_checkpoint(index)


def header(document: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\1\2",
        header({}, length=1 << 60),
        header({}, length=1 << 63),
        header(b"{", b"abcd"),
        header(b"[1]"),
        header(b"[" * 100_000),
        header(entry(shape=(2,)), b"1234"),
        header(entry(shape=(1 << 40, 1 << 40), offsets=(0, 4)), b"1234"),
        header(entry(shape=(-1,)), b"1234"),
        header(entry(shape=(1.5,)), b"1234"),
        header(entry(), b"123"),
        header(entry(), b"12345"),
        header(entry(offsets=(4, 0)), b"1234"),
        header(entry(offsets=(0, 1 << 62)), b"1234"),
        header(entry(offsets=(4, 8)), b"12345678"),
        header({**entry(), "b": entry()["a"]}, b"1234"),
        header({"__metadata__": {"a": 1}, **entry()}, b"1234"),
        header({"__metadata__": {"jaxckpt": "{}"}, **entry()}, b"1234"),
        header({"__metadata__": {"jaxckpt": '{"format":9}'}, **entry()}, b"1234"),
        header(
            {"__metadata__": {"jaxckpt": '{"format":1,"leaves":{"a":{"type":"np.ndarray","note":"x"}}}'}, **entry()},
            b"1234",
        ),
        header(
            {
                "__metadata__": {"jaxckpt": '{"format":1,"leaves":{"a":{"type":"np.ndarray","note":"bytes"}}}'},
                **entry(),
            },
            b"1234",
        ),
        header({"__metadata__": {"jaxckpt": '{"format":1,"record":{"save_counter":-1}}'}, **entry()}, b"1234"),
        header({"a": {"dtype": "F32"}}),
        header({"a": 1}),
    ],
    ids=[str(number) for number in range(25)],
)
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    target = jaxckpt.Checkpoint(a=np.ones(1, np.float32))
    for call in (jaxckpt.load_checkpoint, target.restore):
        with pytest.raises(jaxckpt.CorruptCheckpointError, match="x.safetensors"):
            call(path)
    assert not jaxckpt.verify(path).ok
    assert target.a == 1


def test_a_dtype_that_numpy_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(header(entry("F4", (8,)), b"1234"))
    reader = jaxckpt.load_checkpoint(path)
    assert reader.shape("a") == (8,)
    with pytest.raises(jaxckpt.CheckpointError, match="a: .* dtype F4, which numpy does not have"):
        reader.get_tensor("a")
    assert jaxckpt.verify(path).unread == ("a",)


def test_a_file_that_is_replaced_while_it_is_read(path: Path) -> None:
    reader = jaxckpt.load_checkpoint(path)
    save_file(ARRAYS, path.with_name("new"))
    os.replace(path.with_name("new"), path)
    with pytest.raises(FileNotFoundError, match="replaced by another one while it was read"):
        reader.get_tensor("step")


def test_another_name(path: Path) -> None:
    os.rename(path, path.with_name("model.bin"))
    with pytest.raises(jaxckpt.CheckpointError, match="Give it a name that ends in .safetensors"):
        jaxckpt.load_checkpoint(path.with_name("model.bin"))
    with pytest.raises(FileNotFoundError):
        jaxckpt.load_checkpoint(path)
    with safetensors.safe_open(path.with_name("model.bin"), "np") as file:
        assert set(file.keys()) == set(ARRAYS)
