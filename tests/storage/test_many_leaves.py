"""What is worked out once for thousands of leaves, or done in a shorter way, gives the same as the plain way for each leaf."""

import gc
import json
import os
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxckpt
from jaxckpt._lib import checksum
from jaxckpt.storage import compat
from jaxckpt.storage.arrays import inline, writer, zarr_metadata
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.content import ArrayContent, Entry, Piece
from jaxckpt.storage.ocdbt.encode import common_prefix
from jaxckpt.storage.ocdbt.index import Index
from jaxckpt.storage.ocdbt.model import Place
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.stores.inside import Inside
from jaxckpt.tree.names import Key, dotted_name, known_paths, leaf_name, leaf_names

DEVICE = jax.devices()[3]
PLACES = {
    "nowhere": None,
    "a device": DEVICE,
    "a sharding": SingleDeviceSharding(DEVICE),
    "host memory": SingleDeviceSharding(DEVICE, memory_kind="unpinned_host"),
    "a mesh of one": NamedSharding(jax.sharding.Mesh(np.array([DEVICE]), "x"), PartitionSpec("x")),
    "a mesh of two": NamedSharding(jax.sharding.Mesh(np.array(jax.devices()[:2]), "x"), PartitionSpec("x")),
}


class TestTransfers:
    @pytest.mark.parametrize("name", PLACES)
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int4, bool, np.int64, np.complex64])
    def test_like_those_of_jax(self, name: str, dtype: Any) -> None:
        """Several arrays of one shape and dtype, and another shape between them; JAX makes int32 of int64."""
        arrays = [np.arange(size, size + 4 * size).astype(dtype) for size in (2, 2, 4, 2, 4)]
        places = [PLACES[name]] * len(arrays)
        with jax.transfer_guard("disallow"):
            found, expected = compat.put(arrays, places), jax.device_put(arrays, places)
        for one, other in zip(found, expected, strict=True):
            assert one.aval == other.aval
            assert (one.sharding, one.committed) == (other.sharding, other.committed)
            assert (one.sharding.memory_kind, one.weak_type) == (other.sharding.memory_kind, other.weak_type)
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))

    def test_different_places_of_one_shape(self) -> None:
        arrays = [np.full(4, number, np.float32) for number in range(12)]
        places = [*PLACES.values(), *PLACES.values()]
        for array, place, found in zip(arrays, places, compat.put(arrays, places), strict=True):
            expected = jax.device_put(array, place)
            assert (found.sharding, found.committed) == (expected.sharding, expected.committed)
            np.testing.assert_array_equal(np.asarray(found), array)

    def test_to_the_default_device_of_the_program(self) -> None:
        arrays = [np.ones(4, np.float32)] * 3
        with jax.default_device(DEVICE):
            placed = compat.put(arrays, [None] * 3)
        assert [array.devices() for array in placed] == [{DEVICE}] * 3
        assert not any(array.committed for array in placed)

    def test_without_the_short_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compat, "_batched_put", lambda: None)
        arrays = [np.full(3, number, np.float32) for number in range(3)]
        placed = compat.put(arrays, [DEVICE, None, DEVICE])
        assert [array.committed for array in placed] == [True, False, True]
        assert [float(array[0]) for array in placed] == [0.0, 1.0, 2.0]
        assert compat.put([], []) == []

    def test_restored_arrays_do_not_share_memory(self, tmp_path: Path) -> None:
        values = {str(number): jnp.full(8, number, jnp.float32) for number in range(4)}
        path = jaxckpt.Checkpoint(model=values).write(tmp_path / "ckpt")
        checkpoint = jaxckpt.Checkpoint(model=jax.tree.map(jnp.zeros_like, values))
        checkpoint.restore(path)
        pointers = {array.unsafe_buffer_pointer() for array in checkpoint.model.values()}
        assert len(pointers) == len(values)


def small(name: str) -> Entry:
    array = np.arange(4, dtype=np.float32)
    piece = Piece((0,), array.shape, array)
    return Entry((Key(name),), ArrayContent("np.ndarray", array.shape, array.dtype, array.shape, (piece,)))


def test_garbage_is_collected_while_other_processes_are_waited_for(tmp_path: Path) -> None:
    """A save may wait for minutes, and the program goes on meanwhile."""
    for name in ("item/part_0", "item/part_1"):
        os.makedirs(tmp_path / name)
    writer.write_arrays(str(tmp_path / "item/part_1"), [small("b")], WriteSettings())
    seen: list[bool] = []

    def others() -> list[str]:
        seen.append(gc.isenabled())
        return ["part_1"]

    was_enabled = gc.isenabled()
    gc.enable()
    try:
        written = writer.write_with_parts(str(tmp_path / "item"), [small("a")], WriteSettings(), "part_0", others)
    finally:
        (gc.enable if was_enabled else gc.disable)()
    assert written
    assert seen == [True]


def test_paths_are_described_as_orbax_describes_them(tmp_path: Path) -> None:
    keys = ["plain", "it's", '"', "'\"", "back\\slash", "tab\t", "ü", "\U0001f600", "", "a b"]
    values: dict[str, Any] = {key: {inner: np.ones(1) for inner in keys} for key in keys}
    values["list"] = [np.ones(1), [{"x": np.ones(1)}, np.ones(1)]]
    path = jaxckpt.Checkpoint(model=values, one=np.ones(1)).write(tmp_path / "ckpt")
    tree = json.loads((Path(path) / "_METADATA").read_text())["tree_metadata"]
    assert len(tree) == len(keys) ** 2 + 4
    for shown, described in tree.items():
        assert shown == str(tuple(key["key"] for key in described["key_metadata"]))
    assert "('one',)" in tree
    types = [key["key_type"] for key in tree["('model', 'list', '1', '0', 'x')"]["key_metadata"]]
    assert types == [2, 2, 1, 1, 2]


@pytest.mark.parametrize("path", [(), ("a",), ("a", "b"), ("a/b", "c"), ("~", "c"), ("a.b", "c"), ("", "")])
def test_the_name_that_orbax_gives(path: tuple[str, ...]) -> None:
    known = known_paths()
    for text in path:
        known = known.below(text)
    assert dotted_name(known.path) == dotted_name(tuple(map(Key, path))) == ".".join(path)


def test_the_common_beginning_of_two_keys() -> None:
    source = random.Random(3)
    for _ in range(2000):
        one = source.randbytes(source.randrange(12))
        other = one[: source.randrange(len(one) + 1)] + source.randbytes(source.randrange(4))
        expected = max(length for length in range(len(one) + 1) if other[:length] == one[:length])
        assert common_prefix(one, other) == common_prefix(other, one) == expected
    assert common_prefix(b"\0\0a", b"\0\0b") == 2


class TestAlike:
    """Very small arrays that are alike are decoded in one step."""

    @pytest.mark.parametrize("shape", [(), (1,), (8,), (2, 3), (256,), (257,)])
    @pytest.mark.parametrize("dtype", ["float32", "bool", "int8", "complex128", "bfloat16", "int4"])
    def test_restored_and_read(self, shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
        random_ = np.random.default_rng(3)
        values = {str(number): random_.integers(0, 2, shape).astype(jnp.dtype(dtype)) for number in range(20)}
        path = jaxckpt.Checkpoint(model=values).write(tmp_path / "ckpt")
        checkpoint = jaxckpt.Checkpoint(model={name: np.ones_like(value) for name, value in values.items()})
        checkpoint.restore(path)
        reader = jaxckpt.load_checkpoint(path)
        for name, value in values.items():
            found = checkpoint.model[name]
            assert type(found) is np.ndarray
            assert found.flags.writeable
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(found, value)
            np.testing.assert_array_equal(reader.get_tensor(f"model/{name}"), value)
        # Each has memory of its own.
        bases = [array.base for array in checkpoint.model.values() if array.base is not None]
        assert len({id(base) for base in bases}) == len(bases)

    def test_only_what_is_there_and_right(self) -> None:
        info = zarr_metadata.parse_zarr3(layout.metadata_json((2,), np.dtype("float32"), (2,)))
        arrays = [np.array([number, -number], np.float32) for number in range(20)]
        values: list[Any] = [checksum.sealed(array.tobytes()) for array in arrays]
        names = [f"leaf_{number}" for number in range(20)]
        requests: list[Any] = [(name, (slice(1, 2),) if name == "leaf_3" else None) for name in names]
        infos = dict.fromkeys(names, info)

        class Fake:
            def many(self, keys: list[str]) -> list[Any]:
                assert keys == [f"{name}/c/0" for name in names]
                return values

        places: Any = Fake()
        found = inline.decoded(places, requests, infos)
        assert list(found) == list(range(20))
        for number, array in found.items():
            assert not array.flags.writeable
            np.testing.assert_array_equal(array, arrays[number][1:] if number == 3 else arrays[number])
        for wrong in (values[7][:-1] + b"x", values[7][:-1], None, Place("d/x", 0, 12)):
            right, values[7] = values[7], wrong
            assert inline.decoded(places, requests, infos) == {}
            values[7] = right
        assert inline.decoded(places, requests[:15], infos) == {}

    def test_values_of_many_keys(self, tmp_path: Path) -> None:
        tree = {**{f"leaf_{number}": number for number in range(20)}, "\n": 1, "ä": 2}
        path = jaxckpt.Checkpoint(model=tree).write(tmp_path / "ckpt")
        index = Index(Inside(path, path), lambda: None)
        keys = [f"model.{name}/c" for name in (*tree, "absent")]
        assert index.many(keys) is None
        keys.remove("model.\n/c")
        assert index.many(keys) == [index.get(key) for key in keys]
        assert index.many(keys[:1]) == [index.get(keys[0])]


def test_names_of_many_leaves() -> None:
    texts = ["a", "b", "a/b", "~", "", "x.y", "ä", "a\nb", "1"]
    random_ = random.Random(5)
    for longest in (1, 2, 4):
        paths = [tuple(Key(random_.choice(texts)) for _ in range(random_.randint(0, longest))) for _ in range(300)]
        assert leaf_names(paths) == [leaf_name(path) for path in paths]
    assert leaf_names([]) == []
