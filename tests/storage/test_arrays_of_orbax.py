"""The own code reads what Orbax writes on a disk: the same bits as TensorStore, and damage is named. TensorStore is not asked."""

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import google_crc32c
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st

import jaxckpt
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage.arrays import pread
from jaxckpt.storage.arrays.tensorstore_reader import TensorStoreReader

DTYPES = ["float32", "bfloat16", "int8", "uint16", "int64", "bool", "complex64", "float8_e4m3fn", "int4"]
BIG_ENDIAN = {"float32": ">f4", "uint16": ">u2", "int64": ">i8", "complex64": ">c8"}
ZARR2 = {"float32": "<f4", "int8": "|i1", "uint16": "<u2", "int64": "<i8", "bool": "|b1", "complex64": "<c8"}
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


class Format(NamedTuple):
    """How an array is stored: what Orbax has ever written, and what it could."""

    zarr3: bool
    ocdbt: bool
    complete: bool
    compressed: bool
    checked: bool
    separator: str
    default_keys: bool
    shard: tuple[int, ...] | None

    def metadata(self, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> dict[str, Any]:
        if not self.zarr3:
            return {
                "zarr_format": 2,
                "shape": shape,
                "chunks": chunk,
                "dtype": ZARR2.get(dtype, dtype),
                "compressor": {"id": "zstd", "level": 1} if self.compressed else None,
                "dimension_separator": self.separator,
                "order": "C",
                "fill_value": None,
                "filters": None,
            }
        codecs: list[dict[str, Any]] = [
            LITTLE if np.dtype(ts.dtype(dtype).numpy_dtype).itemsize > 1 else {"name": "bytes"}
        ]
        codecs += [{"name": "zstd", "configuration": {"level": 3}}] if self.compressed else []
        codecs += [{"name": "crc32c"}] if self.checked else []
        if self.shard is not None:
            inner = {"chunk_shape": chunk, "codecs": codecs, "index_codecs": [LITTLE, {"name": "crc32c"}]}
            chunk = tuple(extent * count for extent, count in zip(chunk, self.shard, strict=True))
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {
                "name": "default" if self.default_keys else "v2",
                "configuration": {"separator": self.separator},
            },
            "codecs": codecs,
            "fill_value": False if dtype == "bool" else [0, 0] if dtype == "complex64" else 0,
        }


def write(directory: Path, array: np.ndarray, metadata: dict[str, Any], form: Format) -> None:
    """Writes a checkpoint with one leaf, "x", as Orbax would with that metadata."""
    directory.mkdir()
    database = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{directory}/"},
        "path": "x/",
        "config": {"max_inline_value_bytes": 1024},
    }
    spec = {
        "driver": "zarr3" if form.zarr3 else "zarr",
        "kvstore": database if form.ocdbt else f"file://{directory}/x/",
        "metadata": metadata,
        "store_data_equal_to_fill_value": form.complete,
    }
    ts.open(spec, create=True).result().write(array).result()
    path = [{"key": "x", "key_type": 2}]
    described = {"key_metadata": path, "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False}}
    tree = {
        "tree_metadata": {"('x',)": described},
        "use_zarr3": form.zarr3,
        "store_array_data_equal_to_fill_value": form.complete,
    }
    (directory / "_METADATA").write_text(json.dumps(tree))


@contextmanager
def without_tensorstore() -> Iterator[None]:
    asked = AssertionError("TensorStore was asked to read an array")
    with mock.patch.object(TensorStoreReader, "read", side_effect=asked):
        yield


@contextmanager
def only_tensorstore() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCKPT_ENGINE", "tensorstore")
        yield


def bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes()


def values(shape: tuple[int, ...], dtype: str, *, sparse: bool) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    numbers = rng.integers(0, 8, shape)
    if sparse and shape:
        numbers[shape[0] // 2 :] = 0
    return np.asarray(numbers).astype(ts.dtype(dtype).numpy_dtype)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Format, np.ndarray, dict[str, Any]]:
    axes = draw(st.integers(0, 3))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(axes))
    chunk = tuple(draw(st.integers(1, 10)) for _ in range(axes))
    zarr3 = draw(st.booleans())
    complete = draw(st.booleans())
    # Without shards if chunks may be absent: see `test_what_the_own_code_leaves_to_tensorstore`.
    shard = tuple(draw(st.integers(1, 3)) for _ in range(axes)) if zarr3 and complete and draw(st.booleans()) else None
    form = Format(
        zarr3,
        ocdbt=draw(st.booleans()),
        complete=complete,
        compressed=draw(st.booleans()),
        checked=zarr3 and draw(st.booleans()),
        separator=draw(st.sampled_from("./")),
        default_keys=draw(st.booleans()),
        shard=shard,
    )
    dtype = draw(st.sampled_from(DTYPES))
    return form, values(shape, dtype, sparse=draw(st.booleans())), form.metadata(shape, chunk, dtype)


@given(cases(), st.randoms(use_true_random=False))
def test_reads_the_same_bits_as_tensorstore(case: tuple[Format, np.ndarray, dict[str, Any]], random: Any) -> None:
    form, array, metadata = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c")
        write(path, array, metadata, form)
        with only_tensorstore():
            expected = jaxckpt.load_checkpoint(path).get_tensor("x")
        assert bits(expected) == bits(array)
        with without_tensorstore():
            assert bits(jaxckpt.load_checkpoint(path).get_tensor("x")) == bits(array)
            assert jaxckpt.verify(path).ok
            # In the parts that devices hold: some chunks are wanted in part, and several parts want the same chunk.
            axis = random.randrange(array.ndim) if array.ndim else None
            # JAX has no 64 bits in these tests.
            if axis is not None and array.shape[axis] in (2, 4, 8) and array.dtype != np.int64:
                mesh = jax.make_mesh((array.shape[axis],), ("x",))
                names = [None] * array.ndim
                names[axis] = "x"
                sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names))
                target = jax.device_put(np.zeros_like(array), sharding)
                checkpoint = jaxckpt.Checkpoint(x=target)
                checkpoint.read(path).assert_consumed()
                assert checkpoint.x.sharding == sharding
                assert bits(np.asarray(checkpoint.x)) == bits(array)
            checkpoint = jaxckpt.Checkpoint(x=np.ones_like(array))
            checkpoint.read(path).assert_consumed()
            assert bits(checkpoint.x) == bits(array)


@pytest.mark.parametrize("chunk_byte_size", [None, 1024])
@pytest.mark.parametrize("use_zarr3", [True, False])
@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_reads_what_orbax_writes(tmp_path: Path, chunk_byte_size: int | None, use_zarr3: bool, use_ocdbt: bool) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    both = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    tree = {
        "rows": jax.device_put(np.arange(64 * 30, dtype=np.float32).reshape(64, 30), rows),
        "both": jax.device_put(np.arange(64 * 32, dtype=np.int32).reshape(64, 32), both),
        "host": np.arange(1000.0).reshape(10, 100),
        "number": 3,
        "small": jax.numpy.ones((3,), jax.numpy.bfloat16),
    }
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    arguments = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=chunk_byte_size), tree)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "c", args=ocp.args.PyTreeSave(tree, save_args=arguments))
    with without_tensorstore():
        reader = jaxckpt.load_checkpoint(tmp_path / "c")
        for name, value in tree.items():
            assert bits(np.asarray(reader.get_tensor(name))) == bits(np.asarray(value)), name
        turned = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "y"))
        checkpoint = jaxckpt.Checkpoint(
            **{name: jax.device_put(np.zeros_like(tree[name]), turned) for name in ("rows", "both")}
        )
        checkpoint.read(tmp_path / "c").expect_partial()
    for name in ("rows", "both"):
        assert bits(np.asarray(getattr(checkpoint, name))) == bits(np.asarray(tree[name]))


FILES = Format(True, False, True, False, False, "/", True, (2, 2))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of four chunks of 2 × 2 numbers of 4 bytes."""
    array = np.arange(16, dtype=np.float32).reshape(4, 4)
    write(tmp_path / "c", array, FILES.metadata((4, 4), (2, 2), "float32"), FILES)
    return tmp_path / "c" / "x" / "c" / "0" / "0"


def with_index(entries: list[tuple[int, int]], chunks: bytes) -> bytes:
    index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return chunks + index + google_crc32c.value(index).to_bytes(4, "little")


ABSENT = (1 << 64) - 1
GOOD = [(0, 16), (16, 16), (32, 16), (48, 16)]


def test_the_shards_of_these_tests_are_those_of_tensorstore(shard: Path) -> None:
    content = shard.read_bytes()
    assert len(content) == 64 + 68
    assert with_index(GOOD, content[:64]) == content


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([*GOOD[:3], (56, 16)], "reaches out of it"),
        ([*GOOD[:3], (ABSENT - 8, 16)], "reaches out of it"),
        ([*GOOD[:3], (48, ABSENT)], "reaches out of it"),
        ([*GOOD[:3], (ABSENT, ABSENT)], "missing"),
        ([*GOOD[:3], (48, 12)], "has 12 bytes"),
        ([*GOOD[:3], (0, 0)], "has 0 bytes"),
        (GOOD[:3], "the checksum of the index"),
        ([], "too short for its index"),
    ],
)
def test_a_wrong_index_of_a_shard_is_damage(shard: Path, entries: list[tuple[int, int]], text: str) -> None:
    shard.write_bytes(with_index(entries, shard.read_bytes()[:64] if entries else b""))
    path = shard.parents[3]
    with pytest.raises(CorruptCheckpointError, match=text) as caught:
        jaxckpt.load_checkpoint(path).get_tensor("x")
    assert str(path) in str(caught.value)
    target = np.ones((4, 4), np.float32)
    checkpoint = jaxckpt.Checkpoint(x=target)
    with pytest.raises(CorruptCheckpointError, match=text):
        checkpoint.read(path)
    assert checkpoint.x is target
    assert (target == 1).all()


def test_a_flipped_bit_of_an_index_is_damage(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[70] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="the checksum of the index"):
        jaxckpt.load_checkpoint(shard.parents[3]).get_tensor("x")


def test_a_shard_in_the_index_of_a_database(tmp_path: Path) -> None:
    """Small values lie in the nodes of the tree, and have no place in a data file."""
    form = FILES._replace(ocdbt=True)
    array = np.arange(16, dtype=np.float32).reshape(4, 4)
    write(tmp_path / "c", array, form.metadata((4, 4), (2, 2), "float32"), form)
    with without_tensorstore(), mock.patch.object(pread, "_read_batch", side_effect=AssertionError):
        assert bits(jaxckpt.load_checkpoint(tmp_path / "c").get_tensor("x")) == bits(array)


@pytest.mark.parametrize(
    "what", ["big-endian", "gzip", "order F", "index at start", "fill value", "absent in shard", "extension"]
)
def test_what_the_own_code_leaves_to_tensorstore(tmp_path: Path, what: str) -> None:
    array = np.arange(16, dtype=np.float32).reshape(4, 4)
    zarr3 = what not in ("gzip", "order F")
    complete = what not in ("fill value", "absent in shard")
    form = FILES._replace(
        zarr3=zarr3, complete=complete, shard=(2, 2) if "in" in what.split() or "at" in what else None
    )
    metadata = form.metadata((4, 4), (2, 2), "float32")
    if what == "big-endian":
        metadata["codecs"][0] = {"name": "bytes", "configuration": {"endian": "big"}}
    elif what == "gzip":
        metadata["compressor"] = {"id": "gzip", "level": 1}
    elif what == "order F":
        metadata["order"] = "F"
    elif what == "index at start":
        metadata["codecs"][0]["configuration"]["index_location"] = "start"
    elif what == "fill value":
        metadata["fill_value"] = 7.0
        array[:2, :2] = 7.0
    elif what == "absent in shard":
        array[:2, :2] = 0
    write(tmp_path / "c", array, metadata, form)
    if what == "extension":
        file = tmp_path / "c" / "x" / "zarr.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "new": {"must_understand": False}}))
    with mock.patch.object(TensorStoreReader, "read", autospec=True, side_effect=TensorStoreReader.read) as asked:
        assert bits(jaxckpt.load_checkpoint(tmp_path / "c").get_tensor("x")) == bits(array)
    assert asked.called


def test_absent_files_of_a_complete_checkpoint_are_damage(shard: Path) -> None:
    shard.unlink()
    with without_tensorstore(), pytest.raises(CorruptCheckpointError, match="its chunk x/c/0/0 is missing"):
        jaxckpt.load_checkpoint(shard.parents[3]).get_tensor("x")
    shutil.rmtree(shard.parents[3])
