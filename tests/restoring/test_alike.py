"""Leaves that are alike are looked at once: the others get the same, and errors name the right one."""

import dataclasses
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxckpt
from jaxckpt import restoring
from jaxckpt.errors import CheckpointError
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.restoring.adapting import Sought, sought
from jaxckpt.restoring.alike import alike, divided
from jaxckpt.storage.opened import StoredCheckpoint
from jaxckpt.tree import flatten
from jaxckpt.tree.names import Key

MESH = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
P = PartitionSpec
ONE = SingleDeviceSharding(jax.devices()[3])
BY_X = NamedSharding(MESH, P("x"))
BY_Y = NamedSharding(MESH, P("y"))


def numbers(count: int = 12, dtype: Any = np.float32) -> dict[str, Any]:
    return {f"w{number:02d}": jnp.arange(8, dtype=dtype) + number for number in range(count)}


def write(tmp_path: Path, model: Any) -> str:
    return jaxckpt.Checkpoint(model=model).write(tmp_path / "c")


def read(path: str, model: Any, **options: Any) -> Any:
    checkpoint = jaxckpt.Checkpoint(model=model)
    checkpoint.read(path, **options).assert_consumed()
    return checkpoint.model


def check(restored: dict[str, Any], saved: dict[str, Any]) -> None:
    assert list(restored) == list(saved)
    for name, value in saved.items():
        assert np.array_equal(np.asarray(restored[name]), np.asarray(value)), name


def abstract(value: Any, sharding: Any = None, **more: Any) -> Any:
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding, **more)


def lengths(path: str, model: Any) -> list[int]:
    """Returns how many leaves are in each group."""
    leaves = flatten.flatten("model", model).leaves
    stored = StoredCheckpoint(path)
    pairs = list(zip(leaves, stored.tree.filled, strict=True))
    return [len(group.pairs) for group in alike(pairs, stored.infos([leaf for _, leaf in pairs]))]


def test_places_of_stored_leaves_that_are_alike(tmp_path: Path) -> None:
    saved = numbers()
    path = write(tmp_path, saved)
    places = [None, None, ONE, ONE, BY_X, BY_X, BY_Y, BY_X, NamedSharding(MESH, P()), ONE, None, BY_Y]
    for targets in (
        {name: abstract(value, place) for (name, value), place in zip(saved.items(), places, strict=True)},
        {name: jax.device_put(value * 0, place) for (name, value), place in zip(saved.items(), places, strict=True)},
    ):
        assert lengths(path, targets) == [3, 3, 3, 2, 1]
        restored = read(path, targets)
        check(restored, saved)
        for (name, value), place in zip(restored.items(), places, strict=True):
            assert value.sharding == (place or SingleDeviceSharding(jax.devices()[0])), name
            assert value.committed == (place is not None), name


def test_weak_types(tmp_path: Path) -> None:
    saved = {f"s{number:02d}": jnp.asarray(number, jnp.int32) for number in range(9)}
    path = write(tmp_path, saved)
    weak = [number % 4 > 1 for number in range(9)]
    pairs = list(zip(saved.items(), weak, strict=True))
    for targets in (
        {name: jnp.asarray(0) if is_weak else jnp.zeros((), jnp.int32) for (name, _), is_weak in pairs},
        {name: abstract(value, weak_type=is_weak) for (name, value), is_weak in pairs},
        {name: abstract(value, NamedSharding(MESH, P()), weak_type=is_weak) for (name, value), is_weak in pairs},
    ):
        assert lengths(path, targets) == [5, 4]
        restored = read(path, targets)
        check(restored, saved)
        assert [value.weak_type for value in restored.values()] == weak


def test_arrays_of_the_host_beside_others(tmp_path: Path) -> None:
    saved = numbers()
    path = write(tmp_path, saved)
    makes = [
        lambda value: np.zeros_like(value),
        lambda value: np.zeros_like(value),
        lambda value: np.zeros(8, ">f4"),
        lambda value: abstract(value),
        lambda value: value * 0,
        lambda value: np.zeros(8, ">f4"),
    ] * 2
    targets = {name: make(value) for (name, value), make in zip(saved.items(), makes, strict=True)}
    assert lengths(path, targets) == [4, 4, 2, 2]
    restored = read(path, targets)
    check(restored, saved)
    for name, target in targets.items():
        assert restored[name].dtype == target.dtype
        assert isinstance(restored[name], np.ndarray) == isinstance(target, np.ndarray)
        if isinstance(target, np.ndarray):
            assert restored[name].flags.writeable
            assert restored[name] is not target
    assert len({value.ctypes.data for value in restored.values() if isinstance(value, np.ndarray)}) == 8


@pytest.mark.parametrize("at", [0, 5, 11])
@pytest.mark.parametrize("kind", ["shape", "dtype", "stored shape", "stored kind", "key"])
def test_mismatch_inside_a_group(tmp_path: Path, at: int, kind: str) -> None:
    saved = numbers()
    name = f"w{at:02d}"
    targets = {name: abstract(value) for name, value in saved.items()}
    if kind == "shape":
        targets[name] = jax.ShapeDtypeStruct((9,), np.float32)
    elif kind == "dtype":
        targets[name] = jax.ShapeDtypeStruct((8,), np.int32)
    elif kind == "stored shape":
        saved[name] = jnp.zeros((4, 2), np.float32)
    elif kind == "stored kind":
        saved[name] = b"12345678"
    else:
        saved[name] = jax.random.key(3)
    path = write(tmp_path, saved)
    old = jaxckpt.Checkpoint(model=targets)
    with pytest.raises(ValueError, match=f"^model/{name}: "):
        old.read(path)
    assert old.model is targets
    different = old.diff(path)
    assert [*different.mismatched, *different.refused] == [f"model/{name}"]


def test_every_leaf_of_a_group_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, numbers())
    targets = {name: jax.ShapeDtypeStruct((9,), np.float32) for name in numbers()}
    checkpoint = jaxckpt.Checkpoint(model=targets)
    names = [f"model/{name}" for name in targets]
    with pytest.raises(ValueError, match=r"^model/w00: .* shape \(9,\)"):
        checkpoint.read(path)
    different = checkpoint.diff(path)
    assert list(different.mismatched) == names
    assert all(different.reasons[name].startswith(f"{name}: ") for name in names)


def test_every_leaf_of_a_group_is_converted(tmp_path: Path) -> None:
    saved = numbers()
    path = write(tmp_path, saved)
    targets = {name: jax.ShapeDtypeStruct((8,), ml_dtypes.bfloat16) for name in saved}
    checkpoint = jaxckpt.Checkpoint(model=targets)
    status = checkpoint.read(path, cast=True)
    assert status.cast == tuple(f"model/{name}" for name in saved)
    assert all(value.dtype == jnp.bfloat16 for value in checkpoint.model.values())
    check(checkpoint.model, saved)


def test_value_that_does_not_fit_names_its_leaf(tmp_path: Path) -> None:
    saved = {name: value + 7000 * (name == "w07") for name, value in numbers().items()}
    path = write(tmp_path, saved)
    targets = {name: jax.ShapeDtypeStruct((8,), jnp.float8_e5m2 if name > "w03" else np.float32) for name in saved}
    checkpoint = jaxckpt.Checkpoint(model={**targets, "w07": jax.ShapeDtypeStruct((8,), jnp.float8_e4m3fn)})
    with pytest.raises(ValueError, match=r"^model/w07: .*cannot"):
        checkpoint.read(path, cast=True)


def test_two_targets_of_one_stored_leaf(tmp_path: Path) -> None:
    # A function may not lead two targets to one name, so the names are put together here.
    saved = numbers(4)
    stored = StoredCheckpoint(write(tmp_path, saved))
    leaves = flatten.flatten(
        "t", {"a": abstract(saved["w00"]), "b": abstract(saved["w00"]), "c": np.zeros(8, np.float32)}
    ).leaves
    first = stored.tree.filled[0]
    found = restoring.load([(leaf, first) for leaf in leaves], stored)
    assert list(found.values) == ["t/a", "t/b", "t/c"]
    for value in found.values.values():
        assert np.array_equal(np.asarray(value), np.arange(8))
    assert found.values["t/a"] is not found.values["t/b"]


def test_prng_keys(tmp_path: Path) -> None:
    saved = {
        f"k{number}": jax.random.key(number, impl=impl)
        for number, impl in enumerate(["rbg", "rbg", "threefry2x32"] * 2)
    }
    path = write(tmp_path, saved)
    restored = read(
        path, {name: jax.random.key(99, impl=str(jax.random.key_impl(value))) for name, value in saved.items()}
    )
    for name, value in saved.items():
        assert jax.random.key_impl(restored[name]) == jax.random.key_impl(value)
        assert np.array_equal(jax.random.key_data(restored[name]), jax.random.key_data(value))
    for name in saved:
        targets: dict[str, Any] = {other: abstract(value) for other, value in saved.items()}
        targets[name] = jax.random.key(0, impl="unsafe_rbg")
        with pytest.raises(ValueError, match=f"^model/{name}: the target is a PRNG key of implementation unsafe_rbg"):
            jaxckpt.Checkpoint(model=targets).read(path)


def test_stored_arrays_that_differ_by_their_kind_only(tmp_path: Path) -> None:
    for number, (array, other) in enumerate(
        [
            (np.zeros(8, np.uint8), b"12345678"),
            (jnp.zeros(2, np.uint32), jax.random.key(1)),
            (np.zeros(8, np.uint8), "text"),
        ]
    ):
        path = jaxckpt.Checkpoint(model={"a": array, "b": array, "c": other, "d": array}).write(tmp_path / str(number))
        old = jaxckpt.Checkpoint(model=dict.fromkeys("abcd", array))
        with pytest.raises(ValueError, match="^model/c: "):
            old.read(path)
        assert old.diff(path).refused == ("model/c",)


def test_empty_mapping_that_jax_takes_for_a_leaf(tmp_path: Path) -> None:
    empty: Any = MappingProxyType({})
    path = write(tmp_path, {"a": empty, "b": jnp.arange(3), "c": None})
    restored = read(path, {"a": empty, "b": jnp.zeros(3, np.int32), "c": None})
    assert restored["a"] is empty
    assert restored["c"] is None
    assert np.array_equal(restored["b"], np.arange(3))


def test_errors_come_in_the_order_of_the_leaves(tmp_path: Path) -> None:
    saved = {f"w{number}": jnp.arange(8 if number % 2 else 4, dtype=jnp.float32) for number in range(8)}
    path = write(tmp_path, saved)
    targets = {
        name: jax.ShapeDtypeStruct((9,) if name != "w6" else value.shape, value.dtype) for name, value in saved.items()
    }
    targets["w1"] = jax.ShapeDtypeStruct((8,), jnp.int32)
    targets["w4"] = jax.ShapeDtypeStruct((4,), jnp.bfloat16)
    checkpoint = jaxckpt.Checkpoint(model=targets)
    different = checkpoint.diff(path)
    assert list(different.mismatched) == ["model/w0", "model/w2", "model/w3", "model/w5", "model/w7"]
    assert different.refused == ("model/w1",)
    assert different.matched == ("model/w4", "model/w6")
    with pytest.raises(ValueError, match="^model/w1: "):
        checkpoint.read(path)
    del targets["w1"]
    checkpoint = jaxckpt.Checkpoint(model=targets)
    status = checkpoint.read(path, cast=True, skip_mismatched=True).expect_partial()
    assert (status.cast, status.mismatched) == (("model/w4",), different.mismatched)
    assert np.array_equal(checkpoint.model["w6"], saved["w6"])


def test_objects_that_are_made_at_each_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python gives their ids to others, which must not be taken for them."""
    saved = {f"w{number}": jnp.arange(4 + number % 3, dtype=jnp.float32) for number in range(30)}
    path = write(tmp_path, saved)
    kind = kind_of(saved["w0"])
    monkeypatch.setattr(
        type(kind), "traits", lambda self, value: (True, (jax.core.ShapedArray(value.shape, value.dtype),))
    )
    assert lengths(path, saved) == [10, 10, 10]


def test_memory_divides_a_group(tmp_path: Path) -> None:
    saved = numbers(10)
    path = write(tmp_path, saved)
    stored = StoredCheckpoint(path)
    leaves = flatten.flatten("model", {name: abstract(value) for name, value in saved.items()}).leaves
    pairs = list(zip(leaves, stored.tree.filled, strict=True))
    infos = stored.infos([leaf for _, leaf in pairs])

    def sizes(memory: int, alone: tuple[str, ...] = ()) -> list[list[int]]:
        return [[len(group.pairs) for group in part] for part in divided(pairs, infos, alone, memory)]

    assert sizes(100) == [[3], [3], [3], [1]]
    assert sizes(100, ("model/w01", "model/w09")) == [[2, 1], [3], [3], [1]]
    assert sizes(1) == [[1]] * 10
    assert sizes(320) == [[10]]
    assert [pair for part in divided(pairs, infos, (), 100) for group in part for pair in group.pairs] == pairs
    assert divided([], infos, (), 100) == [[]]
    for memory in (1, 100, 319):
        values = restoring.load(pairs, stored, memory=memory).values
        assert [float(value[0]) for value in values.values()] == list(range(10))


def test_kinds_tell_their_traits() -> None:
    """Values whose traits are equal must be restored alike."""
    array = jnp.arange(8)
    different = [
        array,
        array * 1.0,
        jax.device_put(array, jax.devices()[0]),
        jax.device_put(array, ONE),
        jnp.arange(9),
        abstract(array),
        abstract(array, ONE),
        abstract(array, weak_type=True),
        abstract(array * 1.0),
        np.zeros(8, np.int32),
        np.zeros(8, ">i4"),
        np.zeros(9, np.int32),
    ]
    traits = [(type(value), kind_of(value).traits(value)) for value in different]
    assert all(own is not None for _, own in traits)
    assert all(one != other for at, one in enumerate(traits) for other in traits[:at])
    for value in (1, 2.0, "text", b"bytes", np.float32(1), jax.random.key(0), abstract(jax.random.key(0))):
        assert kind_of(value).traits(value) is None


def test_same_names_in_the_same_order_match(tmp_path: Path) -> None:
    saved = {"a": {}, "b": {"x": jnp.arange(2), "none": None}, "c": [1, "text", ()], "d": np.arange(3)}
    stored = StoredCheckpoint(write(tmp_path, saved))
    leaves = flatten.flatten("model", saved).leaves
    found = restoring.match(leaves, stored, set(), "", (0, 1), Sought(leaves))
    names = ["model/b/x", "model/c/0", "model/c/1", "model/d"]
    assert found == restoring.Matched([(leaf, stored.tree.by_name[leaf.name.replace("/", ".")]) for leaf in leaves])
    assert found.names == [leaf.name for _, leaf in found.pairs] == names
    assert restoring.match(leaves, stored, {"model/d"}, "", (0, 1), Sought(leaves)).skipped == ["model/d"]
    # Another order, and fewer targets.
    assert restoring.match(leaves[::-1], stored, set(), "", (0, 1), Sought(leaves[::-1])).names == names[::-1]
    assert restoring.match(leaves[1:], stored, set(), "", (0, 1), Sought(leaves[1:])).unexpected == names[:1]
    others = flatten.flatten("other", saved).leaves
    found = restoring.match(others, stored, set(), "", (0, 1), sought(others, {"other": "model"}))
    assert found.names == [name.replace("model", "other") for name in names]
    assert [leaf.name for _, leaf in found.pairs] == names


def test_same_names_that_need_a_closer_look(tmp_path: Path) -> None:
    stored = StoredCheckpoint(write(tmp_path, numbers(2)))
    first, second = stored.tree.leaves
    leaves = flatten.flatten("model", {name: abstract(value) for name, value in numbers(2).items()}).leaves
    stored.tree = dataclasses.replace(stored.tree, leaves=(first, second._replace(value_type="peculiar")))
    with pytest.raises(CheckpointError, match=r"^model/w01: "):
        restoring.match(leaves, stored, set(), "", (0, 1), Sought(leaves))
    # The second leaf is the state that another process had for the object of the first.
    path = (Key("@process_1"), *leaves[0].path)
    stored.tree = dataclasses.replace(stored.tree, leaves=(first, second._replace(path=path)))
    leaves = [leaves[0]._replace(is_state=True), leaves[1]._replace(path=path)]
    with pytest.raises(ValueError, match=r"^model/w00: the 2 processes that saved .* had different states"):
        restoring.match(leaves, stored, set(), "", (0, 1), Sought(leaves))
    assert restoring.match(leaves, stored, set(), "", (1, 2), Sought(leaves)).pairs[0][1].path == path
    twice = [leaves[0], leaves[0]]
    stored.tree = dataclasses.replace(stored.tree, leaves=(first, first))
    with pytest.raises(ValueError, match="would both be stored as"):
        restoring.match(twice, stored, set(), "", (0, 1), Sought(twice))


def test_damaged_value_inside_a_group_is_named(tmp_path: Path) -> None:
    """Values on the host are made one by one, and an error tells which one it is."""
    saved = {f"n{number}": np.float32(number) for number in range(4)}
    stored = StoredCheckpoint(write(tmp_path, saved))
    leaves = flatten.flatten("model", {name: np.zeros((), np.float32) for name in saved}).leaves
    pairs = list(zip(leaves, stored.tree.filled, strict=True))
    assert [len(group.pairs) for group in alike(pairs, stored.infos(stored.tree.filled))] == [4]

    class Broken:
        """What a reader would never return."""

    class Source:
        path, tree, record = stored.path, stored.tree, stored.record
        infos, nbytes, string = stored.infos, stored.nbytes, stored.string

        def read(self, requests: Any) -> list[Any]:
            found: list[Any] = stored.read(requests)
            found[2] = Broken()
            return found

    with pytest.raises(jaxckpt.CorruptCheckpointError, match=r"^model/n2: "):
        restoring.load(pairs, Source())
