"""Readers give parts: boxes of arrays, parts of trees, names by a pattern, and the dicts that Flax takes."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from from_tensorflow import written

import jaxckpt
from jaxckpt.converting import Choice, convert
from jaxckpt.storage.arrays import counts

pytestmark = pytest.mark.sampled


class Silent:
    def begin(self, nbytes: int) -> None: ...

    def advance(self, nbytes: int) -> None: ...


@pytest.mark.parametrize("engine", ["own", "tensorstore"])
def test_only_the_box_is_read(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "tensorstore":
        monkeypatch.setenv("JAXCKPT_ENGINE", engine)
    array = np.arange(1 << 20, dtype=np.int32).reshape(1024, 1024)
    options = jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(chunk_byte_size=64 << 10))
    reader = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(a=array).write(tmp_path / "c", options))
    before = counts.so_far()
    found = reader.get_tensor("a", np.s_[5, 7:9])
    after = counts.so_far()
    np.testing.assert_array_equal(found, array[5, 7:9])
    assert after.chunks - before.chunks == 1
    assert after.bytes - before.bytes < 66_000
    np.testing.assert_array_equal(reader.get_tensor("a", np.s_[::-100, -1]), array[::-100, -1])
    assert reader.get_tensor("a", np.s_[3:3]).shape == (0, 1024)
    assert reader.get_tensor("a", (2, 3)).shape == ()
    assert reader.get_tensor("a", np.s_[:, ::2]).flags.writeable


def test_boxes_of_leaves_of_every_kind(tmp_path: Path) -> None:
    values: dict[str, Any] = {"text": "ab", "raw": b"abc", "n": 3, "keys": jax.random.split(jax.random.key(0), 3)}
    reader = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(values).save(tmp_path / "c"))
    assert reader.get_tensor("text", ...) == "ab"
    assert reader.get_tensor("raw", np.s_[1:]).tobytes() == b"bc"
    assert reader.get_tensor("n", ()) == 3
    assert reader.get_tensor("save_counter", ()) == 1
    np.testing.assert_array_equal(reader.get_tensor("keys", 1), jax.random.key_data(values["keys"])[1])
    with pytest.raises(IndexError, match=r"text, an array of shape \(\)"):
        reader.get_tensor("text", 0)


def test_boxes_of_other_libraries(tmp_path: Path) -> None:
    source = written.golden("tree")
    whole = source.values["model/tied/.ATTRIBUTES/VARIABLE_VALUE"]
    reader = jaxckpt.load_checkpoint(source.prefix)
    np.testing.assert_array_equal(reader.get_tensor("model/layers/0/kernel", np.s_[1:3, -1]), whole[1:3, -1])
    convert(str(source.prefix), str(tmp_path / "a.safetensors"), Choice(["model/tied"]), Silent())
    np.testing.assert_array_equal(
        jaxckpt.load_checkpoint(tmp_path / "a.safetensors").get_tensor("model/tied", np.s_[1:3, -1]), whole[1:3, -1]
    )


def test_parts_of_a_tree(tmp_path: Path) -> None:
    values = {"a": {"b": [1, {"c": (2.5, "x")}], "b2": 3, "e": {}, "none": None, "x/y": 4}, "one": np.arange(3)}
    reader = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(values).save(tmp_path / "c"))
    assert reader.tree("a/b") == reader.tree("a/b/") == [1, {"c": [2.5, "x"]}]
    assert reader.tree("a/b/1/c") == [2.5, "x"]
    assert (reader.tree("a/b/0"), reader.tree("a/e"), reader.tree("a/none"), reader.tree("a/x~1y")) == (1, {}, None, 4)
    assert (reader.tree("save_counter"), reader.tree()["save_counter"]) == (1, 1)
    np.testing.assert_array_equal(reader.tree("one"), np.arange(3))
    assert "save_counter" not in reader.tree("a")
    for name in ("a/bb", "a/b/2", "aa", "a/b/0/x"):
        with pytest.raises(KeyError, match="has no leaf"):
            reader.tree(name)
    with pytest.raises(KeyError, match="Did you mean 'a/b2?'"):
        reader.pure_dict("a/b3")


def test_names_by_a_pattern(tmp_path: Path) -> None:
    values = {"layers": [{"w": 1, "b": 2} for _ in range(11)], "W": 3}
    reader = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(values).save(tmp_path / "c"))
    assert reader.keys("layers/1*/w") == ["layers/1/w", "layers/10/w"]
    assert reader.keys("*w") == [name for name in reader.keys() if name.endswith("w")]
    assert reader.keys("layers/[23]/?") == ["layers/2/b", "layers/2/w", "layers/3/b", "layers/3/w"]
    assert reader.keys("none") == []
    assert reader.keys(None) == reader.keys()


class Model(nnx.Module):
    """A sequence with a hole, more than ten layers, a key, a counter, and a Param that is called `value`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.relu, nnx.Linear(3, 2, rngs=rngs))
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(12)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.value = nnx.Param(jnp.ones(2))


def assert_same(one: Model, other: Model) -> None:
    states = [nnx.to_pure_dict(nnx.state(model)) for model in (one, other)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert bool((a == b).all())


@pytest.mark.parametrize("saved_as", ["module", "state", "orbax"])
def test_flax_takes_a_pure_dict(saved_as: str, tmp_path: Path) -> None:
    model = Model(nnx.Rngs(0))
    if saved_as == "orbax":
        path = str(tmp_path / "orbax")
        ocp.PyTreeCheckpointer().save(path, {"model": nnx.state(model)})
    else:
        path = jaxckpt.Checkpoint(model=model if saved_as == "module" else nnx.state(model), n=1).save(tmp_path / "c")
    found = jaxckpt.load_checkpoint(path).pure_dict("model")
    expected = nnx.to_pure_dict(nnx.state(model))
    # An `nnx.State` is a mapping, and its keys are stored as texts. Flax finds them all the same.
    if saved_as != "state":
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        assert set(found["body"]["layers"]) == {0, 2}
        assert list(found["layers"]) == list(range(12))
    other = Model(nnx.Rngs(1))
    state = nnx.state(other)
    nnx.replace_by_pure_dict(state, found)
    nnx.update(other, state)
    assert_same(model, other)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Model(nnx.Rngs(2))))
    nnx.replace_by_pure_dict(abstract, found)
    assert_same(model, nnx.merge(graph, abstract))


def test_a_hole_is_a_dict_in_a_tree_and_lists_stay_lists(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(model=Model(nnx.Rngs(0)), empty={}, n=[1, 2]).save(tmp_path / "c")
    reader = jaxckpt.load_checkpoint(path)
    tree = reader.tree("model")
    assert set(tree["body"]["layers"]) == {0, 2}
    assert isinstance(tree["layers"], list)
    assert len(tree["layers"]) == 12
    pure = reader.pure_dict()
    assert set(pure) == {"model", "n"}
    assert pure["n"] == {0: 1, 1: 2}


def test_the_tree_of_an_object_of_tensorflow_under_its_other_names() -> None:
    reader = jaxckpt.load_checkpoint(written.golden("tree").prefix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = reader.tree("model/layers")
        assert reader.tree("step") == 7
    np.testing.assert_array_equal(tree["0"]["kernel"], reader.get_tensor("model/layers/0/kernel"))
