"""Warm starts: restores under other names, into other dtypes, and past other shapes; and what `diff` says of them."""

import gc
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from examples import examples
from flax import nnx
from from_tensorflow import written
from hypothesis import strategies as st

import jaxckpt
from jaxckpt.converting import Choice, convert
from jaxckpt.storage.arrays import counts


def pretrained(directory: Path) -> str:
    layers = [{"w": jnp.full((4, 3), number + 1.0), "b": jnp.full(3, -number - 1.0)} for number in range(3)]
    return jaxckpt.Checkpoint(bert={"enc": layers, "head": jnp.ones((3, 5))}, step=7).save(directory / "pretrained")


def target() -> jaxckpt.Checkpoint:
    layers = [{"w": jnp.zeros((4, 3), jnp.bfloat16), "b": jnp.zeros(3)} for _ in range(3)]
    return jaxckpt.Checkpoint(
        model={"encoder": layers, "head": jnp.zeros((3, 2)), "new": jnp.zeros(2)}, step=np.int32(0)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that no test changes."""
    return pretrained(tmp_path_factory.mktemp("source"))


RULES = {"model": "bert", "model/encoder": "bert/enc"}


def by_function(name: str) -> str:
    return name.replace("model/encoder", "bert/enc").replace("model/", "bert/")


@pytest.mark.parametrize("rename", [RULES, by_function, {f"{old}/": f"{new}/" for old, new in RULES.items()}])
@pytest.mark.parametrize("method", ["restore", "read"])
def test_other_names_dtypes_and_shapes_at_once(method: str, rename: Any, source: str) -> None:
    checkpoint = target()
    restore = getattr(checkpoint, method)
    status = restore(source, rename=rename, cast=True, skip_mismatched=True).expect_partial()
    assert status.missing == ("model/new",)
    assert status.mismatched == ("model/head",)
    assert status.unexpected == ()
    assert set(status.cast) == {f"model/encoder/{number}/w" for number in range(3)}
    for number, layer in enumerate(checkpoint.model["encoder"]):
        assert layer["w"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(layer["w"], np.full((4, 3), number + 1))
        np.testing.assert_array_equal(layer["b"], np.full(3, -number - 1))
    assert not checkpoint.model["head"].any()
    assert int(checkpoint.step) == 7
    assert checkpoint.save_counter == (1 if method == "restore" else 0)


@pytest.mark.usefixtures("nothing_dropped")
def test_mismatched_leaves_count_as_not_matched(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(head=np.ones((3, 5)), n=np.ones(8), keys=jax.random.split(jax.random.key(0), 2)).save(
        tmp_path / "c"
    )
    values: dict[str, Any] = {"head": jnp.zeros((3, 2), jnp.float32), "n": 0.5, "keys": jax.random.key(1)}
    checkpoint = jaxckpt.Checkpoint(**values)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = checkpoint.restore(path, skip_mismatched=True)
        assert status.mismatched == ("head", "n", "keys")
        for check in (
            status.assert_consumed,
            status.assert_existing_objects_matched,
            status.assert_nontrivial_match,
        ):
            with pytest.raises(AssertionError) as failed:
                check()
            assert all(name in str(failed.value) for name in values)
        assert "3 mismatched" in repr(status)
        del status
        gc.collect()
        assert caught == []
        checkpoint.restore(path, skip_mismatched=True).expect_partial()
        gc.collect()
        assert caught == []
        checkpoint.restore(path, skip_mismatched=True)
        gc.collect()
    assert "of another shape in the checkpoint (they kept their values): head, n, keys" in str(caught[0].message)
    assert [getattr(checkpoint, name) is value for name, value in values.items()] == [True] * 3
    with pytest.raises(ValueError, match=r"head: .*\(3, 2\).*\(3, 5\).*skip_mismatched=True"):
        checkpoint.restore(path, cast=True)


def test_another_kind_is_never_skipped_nor_cast(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(a=np.ones(2, np.int32), b=np.ones(2)).save(tmp_path / "c")
    checkpoint = jaxckpt.Checkpoint(a=np.zeros(2, np.float32), b=np.zeros(3))
    with pytest.raises(ValueError, match="a: .*int32, a number of another kind"):
        checkpoint.restore(path, cast=True, skip_mismatched=True)
    assert not checkpoint.a.any()


WRONG: list[tuple[Any, type[Exception], str]] = [
    ({"models": "bert"}, ValueError, r"no target has the name 'models'.*Did you mean 'model'"),
    ({"mod": "bert"}, ValueError, r"no target has the name 'mod'"),
    ({"model": "brt"}, ValueError, r"has no leaf of such a name. model/encoder/0/b is looked for as 'brt/encoder/0/b'"),
    ({"model": "bert", "model/new": "bert/hed"}, ValueError, r"rename \{'model/new': 'bert/hed'\}"),
    ({"model/head": "step"}, ValueError, "model/head and step would both be restored from 'step'"),
    ({"model/head": "bert/head", "model/new": "bert/head"}, ValueError, "model/head and model/new would both"),
    ({"model": "bert", "model/": "bert"}, ValueError, "twice"),
    (
        {"model": "bert", "model/encoder": "bert/enc", "model/head": "bert/head", "model/new": "bert/new"},
        ValueError,
        r"rename \{'model': 'bert'\}: longer prefixes apply to all targets below 'model'",
    ),
    (lambda name: name, ValueError, "changes the name of no target"),
    (lambda name: f"x/{name}", ValueError, "has no leaf of such a name"),
    (lambda name: "bert/head", ValueError, "would both be restored from 'bert/head'"),
    (lambda name: None, TypeError, "must return a stored name, got NoneType"),
    (lambda name: {}[name], KeyError, "model/encoder/0/b"),
    (lambda name: 1 / 0, ZeroDivisionError, "model/encoder/0/b: division"),
    ({"model": 1}, TypeError, "must map text to text"),
    ("model", TypeError, "rename must map names"),
]


@pytest.mark.parametrize(("rename", "kind", "text"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_rename_changes_nothing(rename: Any, kind: type[Exception], text: str, source: str) -> None:
    checkpoint = target()
    before = jax.tree.leaves(checkpoint.model)
    for call in (checkpoint.restore, checkpoint.read):
        with pytest.raises(kind, match=text):
            call(source, rename=rename, cast=True, skip_mismatched=True)
    with pytest.raises(kind, match=text):
        checkpoint.diff(source, rename=rename)
    assert all(one is other for one, other in zip(jax.tree.leaves(checkpoint.model), before, strict=True))
    assert checkpoint.save_counter == 0


@pytest.mark.parametrize("argument", ["cast", "skip_mismatched"])
def test_arguments_are_checked_also_without_a_checkpoint(argument: str) -> None:
    checkpoint: Any = jaxckpt.Checkpoint(a=1)
    with pytest.raises(TypeError, match=f"{argument} must be True or False, got str"):
        checkpoint.restore(None, **{argument: "yes"})
    with pytest.raises(TypeError, match="rename"):
        checkpoint.read(None, rename=3)
    checkpoint.restore(None, rename={})


keys = st.sampled_from(["a", "b", "a/b", "~", "ab"])
trees = st.dictionaries(keys, st.dictionaries(keys, st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=4)


@pytest.mark.slow
@hypothesis.given(tree=trees, prefix=keys)
@hypothesis.settings(max_examples=examples(30), deadline=None)
def test_a_mapping_does_what_a_function_does(
    tree: dict[str, dict[str, int]], prefix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Prefixes are whole keys: `a` is not a prefix of `ab`, nor of the key `a/b`. Keys are spelled as in names."""
    spelled = prefix.replace("~", "~0").replace("/", "~1")
    path = jaxckpt.Checkpoint(old=tree).save(tmp_path_factory.mktemp("names") / "c")
    blank = jax.tree.map(lambda _: -1, {("new" if key == prefix else key): below for key, below in tree.items()})
    if len(blank) < len(tree):
        return
    checkpoint = jaxckpt.Checkpoint(model=blank)
    mapping: dict[str, str] = {"model": "old"}
    if prefix in tree:
        mapping["model/new"] = f"old/{spelled}"

    def function(name: str) -> str:
        first, _, rest = name.removeprefix("model/").partition("/")
        return f"old/{spelled if first == 'new' else first}/{rest}"

    renames: list[Mapping[str, str] | Callable[[str], str]] = [mapping, function]
    if mapping.keys() == {"model", "model/new"} and blank.keys() == {"new"}:
        renames = [{"model/new": f"old/{spelled}"}, function]
    for rename in renames:
        checkpoint.model = blank
        checkpoint.read(path, rename=rename).assert_consumed()
        assert {(prefix if key == "new" else key): below for key, below in checkpoint.model.items()} == tree


def test_the_whole_tree_as_stored_and_as_target(tmp_path: Path) -> None:
    """What another program saved as one tree goes below a name, and the other way round."""
    params = {"dense": {"kernel": np.arange(6.0).reshape(2, 3)}}
    ocp.PyTreeCheckpointer().save(tmp_path / "orbax", params)
    checkpoint = jaxckpt.Checkpoint(model={"dense": {"kernel": np.zeros((2, 3))}})
    checkpoint.restore(tmp_path / "orbax", rename={"model": ""}).assert_consumed()
    np.testing.assert_array_equal(checkpoint.model["dense"]["kernel"], params["dense"]["kernel"])
    path = checkpoint.save(tmp_path / "c")
    flat = jaxckpt.Checkpoint(dense={"kernel": np.zeros((2, 3))})
    flat.restore(path, rename={"": "model"}).assert_consumed()
    np.testing.assert_array_equal(flat.dense["kernel"], params["dense"]["kernel"])


def test_two_names_are_exchanged(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(student=1, teacher=2).save(tmp_path / "c")
    checkpoint = jaxckpt.Checkpoint(student=0, teacher=0)
    checkpoint.restore(path, rename={"student": "teacher", "teacher": "student"}).assert_consumed()
    assert (checkpoint.student, checkpoint.teacher) == (2, 1)


def test_slots_that_are_skipped_may_be_renamed(tmp_path: Path) -> None:
    params = {"w": jnp.ones((2, 3))}
    path = jaxckpt.Checkpoint(params=params, opt=optax.adam(0.1).init(params)).save(tmp_path / "c")
    checkpoint = jaxckpt.Checkpoint(model=params, optimizer=optax.adam(0.1).init(params))
    options = jaxckpt.CheckpointOptions(experimental_skip_slot_variables=True)
    checkpoint.restore(path, options, rename={"model": "params", "optimizer": "opt"}).assert_consumed()


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, classes: int = 3) -> None:
        self.body = nnx.Sequential(nnx.Linear(2, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 4, rngs=rngs))
        self.head = nnx.Linear(4, classes, rngs=rngs)


@pytest.mark.slow
def test_an_nnx_module_in_place_and_from_a_state_of_plain_orbax(tmp_path: Path) -> None:
    old = Model(nnx.Rngs(0))
    path = jaxckpt.Checkpoint(net=old).save(tmp_path / "c")
    ocp.PyTreeCheckpointer().save(tmp_path / "orbax", {"net": nnx.state(old)})
    for source in (path, tmp_path / "orbax"):
        new = Model(nnx.Rngs(1), classes=5)
        head = np.asarray(new.head.kernel.get_value())
        status = jaxckpt.Checkpoint(model=new).restore(source, rename={"model": "net"}, skip_mismatched=True)
        assert set(status.expect_partial().mismatched) == {"model/head/kernel", "model/head/bias"}
        np.testing.assert_array_equal(new.body.layers[2].kernel.get_value(), old.body.layers[2].kernel.get_value())
        np.testing.assert_array_equal(new.head.kernel.get_value(), head)


def test_from_tensorflow_under_any_of_its_names(tmp_path: Path) -> None:
    source = written.golden("tree")
    checkpoint = jaxckpt.Checkpoint(net={"first": np.zeros((4, 8), ml_dtypes.bfloat16)}, at=0)
    rename = {"net/first": "model/layers/0/kernel", "at": "step"}
    status = checkpoint.restore(source.prefix, rename=rename, cast=True).expect_partial()
    assert status.cast == ("net/first",)
    expected = source.values["model/tied/.ATTRIBUTES/VARIABLE_VALUE"]
    np.testing.assert_array_equal(checkpoint.net["first"], expected.astype(ml_dtypes.bfloat16))
    assert checkpoint.at == 7


class Silent:
    def begin(self, nbytes: int) -> None: ...

    def advance(self, nbytes: int) -> None: ...


def test_from_safetensors(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(bert={"w": np.ones((2, 3), np.float32)}).save(tmp_path / "c")
    convert(path, str(tmp_path / "model.safetensors"), Choice(), Silent())
    checkpoint = jaxckpt.Checkpoint(model={"w": jnp.zeros((2, 3), jnp.bfloat16)})
    assert checkpoint.diff(tmp_path / "model.safetensors", rename={"model": "bert"}).cast == ("model/w",)
    checkpoint.restore(tmp_path / "model.safetensors", rename={"model": "bert"}, cast=True).assert_consumed()
    assert (checkpoint.model["w"] == 1).all()


def test_diff_says_what_a_restore_would_do(source: str) -> None:
    checkpoint = target()
    checkpoint.kind = "text"
    before = counts.so_far()
    found = checkpoint.diff(source, rename=RULES)
    assert counts.so_far() == before
    assert isinstance(found, jaxckpt.CheckpointDiff)
    status = target().restore(source, rename=RULES, cast=True, skip_mismatched=True).expect_partial()
    assert found.missing == ("model/new", "kind")
    assert (found.unexpected, found.cast, found.mismatched) == (status.unexpected, status.cast, status.mismatched)
    assert found.matched == (
        *(f"model/encoder/{number}/{name}" for number in range(3) for name in ("b", "w")),
        "step",
    )
    text = str(found)
    assert "model/new (looked for as bert/new)" in text
    assert "model/head: the target has shape (3, 2)" in text
    assert "stored as 'bert/head'" in text
    assert "3 of another dtype; restore() and read() with cast=True convert them:" in text
    dtypes = re.findall(r"^  (\S+): \S+ → \S+$", text, re.MULTILINE)
    assert tuple(dtypes) == found.cast
    assert all(found.reasons[name] in found._repr_html_() for name in found.cast)
    assert "7 matched, 2 missing, 3 cast, 1 mismatched" in repr(found)
    assert checkpoint.save_counter == 0


def test_diff_of_other_kinds_and_of_what_is_the_same(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(a=np.ones(2, np.int32), b="text", c=1, gone=1).save(tmp_path / "c")
    found = jaxckpt.Checkpoint(a=np.ones(2), b=b"bytes", c=2).diff(path)
    assert (found.matched, found.refused, found.unexpected) == (("c",), ("a", "b"), ("gone",))
    assert "int32" in found.reasons["a"]
    assert "2 of another kind; restore() and read() would fail:" in str(found)
    same = jaxckpt.Checkpoint(a=np.ones(2, np.int32), b="", c=1, gone=1).diff(path)
    assert (same.missing, same.unexpected, same.cast, same.mismatched, same.refused) == ((),) * 5
    assert str(same) == f"{path}: 4 matched"
    with pytest.raises(FileNotFoundError):
        jaxckpt.Checkpoint(a=1).diff(tmp_path / "none")


def test_a_notebook_shows_folded_trees(tmp_path: Path) -> None:
    layers = [{"w": np.zeros(3), "<b>": np.zeros(2)} for _ in range(12)]
    checkpoint = jaxckpt.Checkpoint(model={"layers": layers, "head": np.zeros(4)}, step=1)
    path = checkpoint.save(tmp_path / "c")
    for shown in (checkpoint.restore(path), checkpoint.diff(path), jaxckpt.load_checkpoint(path)):
        page = shown._repr_html_()
        assert "<code>0..11</code> × 12" in page
        assert page.count("<code>w</code>") == 1
        assert "&lt;b&gt;" in page
        assert "<b></code>" not in page
        assert page.count("<details") == page.count("</details>") == 4
    checkpoint.model["layers"][5]["w"] = np.zeros(4)
    page = jaxckpt.load_checkpoint(checkpoint.save(tmp_path / "c"))._repr_html_()
    assert [run in page for run in ("0..4", "<code>5</code>", "6..11")] == [True] * 3
    assert "float64 [4]" in page
