"""A new kind of leaf takes one object in the registry: it is saved, restored, read, compared and described like those that come along."""

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1

import jaxckpt
from jaxckpt import cli
from jaxckpt.job.agree import leaves
from jaxckpt.job.plan import Plan
from jaxckpt.leaf_kinds import contents, registry
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.kind import WHOLE, Content, Delivery, LeafKind, OtherKindError, Terms
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.notes import Note
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree import flatten
from jaxckpt.tree.flatten import Leaf

NOTE = Note("fraction", lambda shape, dtype: shape == (2,) and dtype == "int64")


class Fractions(LeafKind):
    """Python's fractions, each stored as its numerator and its denominator."""

    name = "fraction"
    reader_name = "fraction"
    stored_as = (NOTE.word,)
    note = NOTE
    is_one_value = True

    def owns(self, value: Any) -> bool:
        return type(value) is Fraction

    def take(self, leaf: Leaf, copy: bool) -> Content:
        return contents.whole("np.ndarray", np.asarray(leaf.value.as_integer_ratio(), np.int64), NOTE.word)

    def digest(self, value: Any) -> str | None:
        return str(value)

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        if leaf.note != NOTE.word:
            raise OtherKindError
        return None

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        return Delivery(WHOLE, (), self._build)

    def _build(self, arrays: Sequence[Any]) -> Any:
        return self.read(arrays[0])

    def describe_stored(self, leaf: StoredLeaf, info: ArrayInfo | None) -> str:
        return "a fraction"

    def read(self, array: np.ndarray) -> Any:
        return Fraction(*array.tolist())


@pytest.fixture(autouse=True)
def fractions() -> Iterator[None]:
    # Its type has been looked at before there was a kind for it.
    assert registry.refusal(Fraction(1, 2), "save") is not None
    remove = registry.register(Fractions())
    yield
    remove()
    assert registry.refusal(Fraction(1, 2), "save") is not None


def test_saved_and_restored(tmp_path: Path) -> None:
    saved = jaxckpt.Checkpoint(model={"f": Fraction(3, 4), "x": jnp.arange(3), "two": [Fraction(-1, 3), 5]})
    path = saved.write(tmp_path / "c")
    target = jaxckpt.Checkpoint(model={"f": Fraction(0), "x": jnp.zeros(3, jnp.int32), "two": [Fraction(0), 0]})
    target.read(path).assert_consumed()
    assert target.model["f"] == Fraction(3, 4)
    assert type(target.model["f"]) is Fraction
    assert target.model["two"] == [Fraction(-1, 3), 5]
    assert jaxckpt.verify(path).ok


def test_in_the_background(tmp_path: Path) -> None:
    with jaxckpt.Checkpoint(f=Fraction(3, 4)) as checkpoint:
        path = checkpoint.save(tmp_path / "c", jaxckpt.CheckpointOptions(enable_async=True))
        checkpoint.f = Fraction(0)
        checkpoint.restore(path).assert_consumed()
        assert checkpoint.f == Fraction(3, 4)


def test_read_without_a_target(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(f=Fraction(3, 4), x=np.arange(2)).write(tmp_path / "c")
    reader = jaxckpt.load_checkpoint(path)
    assert reader.tree()["f"] == Fraction(3, 4)
    assert reader.metadata("f").kind == "fraction"
    np.testing.assert_array_equal(reader.get_tensor("f"), [3, 4])
    np.testing.assert_array_equal(v1.load(path)["f"], [3, 4])


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers that stand for a value are not compared, nor averaged, by themselves."""
    for name, value in (("a", Fraction(3, 4)), ("b", Fraction(5, 4)), ("same", Fraction(3, 4))):
        jaxckpt.Checkpoint(f=value, x=np.arange(2)).write(tmp_path / name)
    assert cli.main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "Fraction(3, 4) in A, Fraction(5, 4) in B" in capsys.readouterr().out
    assert cli.main(["diff", str(tmp_path / "a"), str(tmp_path / "same")]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", "--stats", "--json", str(tmp_path / "a")]) == 0
    described = {leaf["name"]: leaf for leaf in json.loads(capsys.readouterr().out)["leaves"]}
    assert described["f"]["kind"] == "fraction"
    assert "mean" in str(described["x"])
    assert "mean" not in str(described["f"])


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(f=Fraction(3, 4), x=np.arange(2)).write(tmp_path / "c")
    with pytest.raises(ValueError, match=r"^f: the target is an array of shape \(2,\).*holds a fraction\."):
        jaxckpt.Checkpoint(f=np.zeros(2, np.int64), x=np.arange(2)).read(path)
    with pytest.raises(ValueError, match=r"^f: the target is an array of shape \(2,\).*holds a fraction\."):
        jaxckpt.Checkpoint(f=jax.ShapeDtypeStruct((2,), np.int64), x=np.arange(2)).read(path)
    with pytest.raises(ValueError, match=r"^x: the target is a Fraction, but .* holds an array of shape \(2,\)"):
        jaxckpt.Checkpoint(f=Fraction(0), x=Fraction(0)).read(path)


def test_compared_where_one_object_has_two_names(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(a=nnx.Variable(Fraction(1, 2)), b=nnx.Variable(Fraction(1, 3))).write(tmp_path / "c")
    same = jaxckpt.Checkpoint(a=nnx.Variable(Fraction(1, 2)), b=nnx.Variable(Fraction(1, 2))).write(tmp_path / "d")
    shared = nnx.Variable(Fraction(0))
    target = jaxckpt.Checkpoint(a=shared, b=shared)
    with pytest.raises(ValueError, match="a and b are one object"):
        target.read(path)
    assert shared.get_raw_value() == Fraction(0)
    target.read(same).assert_consumed()
    assert shared.get_raw_value() == Fraction(1, 2)


def test_what_the_processes_of_a_job_compare() -> None:
    named = flatten.flatten("v", {"f": Fraction(3, 4), "x": jnp.zeros(2)}).leaves
    assert ("v/f", "fraction") in leaves.descriptions(named, Plan(0, None))
    assert ("v/f", "3/4") in leaves.host_contents(named)


@pytest.mark.parametrize(
    ("word", "said"),
    [(NOTE.word, "f: .*shape .3,. .* cannot be fraction"), ("no such kind", "contains an unknown note of a leaf")],
    ids=["another array", "another note"],
)
def test_what_cannot_be_is_damage(word: str, said: str, tmp_path: Path) -> None:
    class Wrong(Fractions):
        def take(self, leaf: Leaf, copy: bool) -> Content:
            return contents.whole("np.ndarray", np.arange(3), word)

    remove = registry.register(Wrong())
    try:
        path = jaxckpt.Checkpoint(f=Fraction(3, 4)).write(tmp_path / "c")
    finally:
        remove()
    with pytest.raises(jaxckpt.CorruptCheckpointError, match=said):
        jaxckpt.load_checkpoint(path).tree()


def test_a_note_with_the_word_of_another() -> None:
    class Texts(Fractions):
        note = Note("bytes")

    with pytest.raises(ValueError, match="'bytes'"):
        registry.register(Texts())


@pytest.fixture(params=["ValueError", "KeyError", "ZeroDivisionError"])
def undecodable(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A checkpoint that fits its note, but whose content its kind cannot turn into a value."""

    class Strict(Fractions):
        def take(self, leaf: Leaf, copy: bool) -> Content:
            return contents.whole("np.ndarray", np.asarray([1, 0], np.int64), NOTE.word)

        def read(self, array: np.ndarray) -> Any:
            if request.param == "KeyError":
                raise KeyError(array[1])
            if request.param == "ValueError":
                raise ValueError("not a denominator: 0")
            return super().read(array)

    remove = registry.register(Strict())
    yield jaxckpt.Checkpoint(model={"f": Fraction(3, 4), "x": np.arange(2)}).write(tmp_path / "c")
    remove()


def test_an_error_of_the_kind_names_the_leaf(undecodable: str, request: pytest.FixtureRequest) -> None:
    target = jaxckpt.Checkpoint(model={"f": Fraction(5), "x": np.zeros(2, np.int64)})
    cause = request.node.callspec.params["undecodable"]
    for read in (lambda: target.read(undecodable), jaxckpt.load_checkpoint(undecodable).tree):
        with pytest.raises(jaxckpt.CorruptCheckpointError, match=rf"^model/f: its stored value .* {cause}: ") as found:
            read()
        assert found.value.where == "model/f"
        assert type(found.value.__cause__).__name__ == cause
    assert target.model["f"] == 5
    np.testing.assert_array_equal(target.model["x"], [0, 0])
