"""Values taken apart into named leaves, and put together again."""

import collections
import dataclasses
import enum
import gc
import operator
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import examples
from flax import nnx
from hypothesis import strategies as st

import jaxckpt
from jaxckpt.tree import flatten, roots
from jaxckpt.tree.builders import Change
from jaxckpt.tree.names import Key, leaf_name
from jaxckpt.tree.rebuilding import rebuild_values

ROOT = Path(__file__).parents[2]


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Node:
    left: Any
    right: Any


class StateObject:
    """An object with a state of its own."""

    def __init__(self, state: str = "") -> None:
        self.state = state

    def serialize(self) -> str:
        return self.state

    def deserialize(self, value: str) -> None:
        self.state = value


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), children, max_size=3),
        st.dictionaries(st.integers(-3, 12), children, max_size=3),
        st.dictionaries(st.text(max_size=2), children, max_size=3).map(collections.OrderedDict),
        st.builds(Pair, children, children),
        st.builds(Node, children, children),
    )


trees = st.recursive(st.one_of(st.integers(0, 99), st.just("text"), st.none()), containers, max_leaves=12)
paths = st.lists(st.text(alphabet="ab/~01.", max_size=4), min_size=1, max_size=4)


def rebuilt(flat: flatten.Flat, values: list[Any]) -> tuple[Any, list[Change]]:
    """Puts a value together again from new leaves."""
    new = {leaf.name: value for leaf, value in zip(flat.leaves, values, strict=True)}
    replacements, changes = rebuild_values({"top": flat}, new, operator.eq)
    return replacements["top"], changes


@hypothesis.given(trees)
@hypothesis.settings(max_examples=examples(200))
def test_taken_apart_and_put_together_again(value: Any) -> None:
    flat = flatten.flatten("top", value)
    assert [leaf.value for leaf in flat.leaves] == jax.tree.leaves(value)
    assert all(leaf.path[0] == Key("top") for leaf in flat.leaves)
    if not flat.leaves:
        return
    same, changes = rebuilt(flat, [leaf.value for leaf in flat.leaves])
    assert same is value
    assert not changes
    other, _ = rebuilt(flat, [(leaf.name, "new") for leaf in flat.leaves])
    expected = iter([(leaf.name, "new") for leaf in flat.leaves])
    assert other == jax.tree.map(lambda _: next(expected), value)


@hypothesis.given(trees)
@hypothesis.settings(max_examples=examples(100))
def test_every_leaf_and_every_empty_container_has_its_own_name(value: Any) -> None:
    flat = flatten.flatten("top", value)
    names = [leaf.name for leaf in flat.leaves] + [leaf_name(node.path) for node in flat.empties]
    assert len(set(names)) == len(names)


@hypothesis.given(paths, paths)
@hypothesis.settings(max_examples=examples(300))
def test_two_paths_never_share_a_name(one: list[str], other: list[str]) -> None:
    names = [leaf_name([Key(text) for text in path]) for path in (one, other)]
    assert (names[0] == names[1]) == (one == other)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (["a", "b"], "a/b"),
        (["a/b"], "a~1b"),
        (["a~1b"], "a~01b"),
        (["a.b", "0"], "a.b/0"),
        (["a", ""], "a/"),
        ([""], ""),
    ],
)
def test_spelling_of_names(path: list[str], name: str) -> None:
    assert leaf_name([Key(text) for text in path]) == name


def test_what_is_a_leaf_and_what_is_empty() -> None:
    value = {"a": [1, None, {}], "b": (), "c": [], "d": Pair(None, "x")}
    flat = flatten.flatten("v", value)
    assert [leaf.name for leaf in flat.leaves] == ["v/a/0", "v/d/second"]
    assert [leaf_name(node.path) for node in flat.empties] == ["v/a/1", "v/a/2", "v/b", "v/c", "v/d/first"]


def test_reference_objects_stand_anywhere_in_a_tree() -> None:
    one, two = StateObject("one"), StateObject("two")
    flat = flatten.flatten("v", {"deep": [(one, 1)], "other": Pair(two, 2)})
    assert [(leaf.name, leaf.value) for leaf in flat.leaves] == [
        ("v/deep/0/0", "one"),
        ("v/deep/0/1", 1),
        ("v/other/first", "two"),
        ("v/other/second", 2),
    ]
    value, changes = rebuilt(flat, ["ONE", 10, "TWO", 20])
    assert value["deep"][0][0] is one
    assert value["other"] == Pair(two, 20)
    # The values change only when the changes are carried out.
    assert (one.state, two.state) == ("one", "two")
    undos = [change() for change in changes]
    assert (one.state, two.state) == ("ONE", "TWO")
    for undo in undos:
        undo()
    assert (one.state, two.state) == ("one", "two")


def test_a_value_that_contains_itself() -> None:
    """In a process of its own, whose thread has to be usable afterwards: JAX leaks stack depth when it runs out of it."""
    code = """
        import jaxckpt
        checkpoint = jaxckpt.Checkpoint(fine=1)
        for loop in ([], {"a": 1}):
            (loop.append if isinstance(loop, list) else lambda value: loop.update(again=value))([loop])
            checkpoint.loop = loop
            try:
                checkpoint.save("never")
            except ValueError as error:
                assert "loop" in str(error) and "contain itself" in str(error), error
            else:
                raise AssertionError("saved")

        def depth(n):
            return 0 if n == 0 else 1 + depth(n - 1)

        assert depth(500) == 500
        print("usable")
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "usable\n"), done.stderr


def test_deep_nesting_is_kept_or_refused_by_name() -> None:
    value: Any = 1
    for _ in range(400):
        value = [value]
    (leaf,) = flatten.flatten("deep", value).leaves
    assert len(leaf.path) == 401


@pytest.mark.parametrize("keys", [{1: 0, "a": 0}, {None: 0, "a": 0}, {(1,): 0, 1: 0}])
def test_keys_of_several_types(keys: Any) -> None:
    with pytest.raises(TypeError, match=r"^model.*Use strings"):
        flatten.flatten("model", {"inner": keys})


class Level(str, enum.Enum):  # noqa: UP042  A StrEnum is spelled like its value.
    LOW = "low"


class Shouting(str):
    """Equal to a str that is spelled otherwise."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


@jax.tree_util.register_pytree_with_keys_class
class Keyed:
    """A pytree whose keys come from what is not a leaf."""

    def __init__(self, keys: tuple[Any, ...], values: Any) -> None:
        self.keys, self.values = keys, tuple(values)

    def tree_flatten_with_keys(self) -> Any:
        pairs = [(jax.tree_util.DictKey(key), value) for key, value in zip(self.keys, self.values, strict=True)]
        return pairs, self.keys

    @classmethod
    def tree_unflatten(cls, keys: tuple[Any, ...], values: Any) -> "Keyed":
        return cls(keys, values)


SPELLINGS: list[tuple[Any, Any]] = [(1, True), (0, 0.0), ("low", Level.LOW), ("low", Shouting("low")), (1, np.int64(1))]


@pytest.mark.parametrize("one_first", [True, False])
@pytest.mark.parametrize(("one", "other"), SPELLINGS, ids=range(len(SPELLINGS)))
def test_keys_that_are_equal_and_spelled_otherwise(one: Any, other: Any, one_first: bool) -> None:
    assert one == other
    for key in (one, other, one) if one_first else (other, one, other):
        for value in ({key: 0}, collections.OrderedDict({key: 0}), Keyed((key,), [0]), [{"a": {key: 0}}]):
            (leaf,) = flatten.flatten("top", value).leaves
            assert leaf.path[-1].text == str(key)
            assert type(leaf.path[-1].text) is str
            assert leaf.name.endswith(f"/{key}")
    for keys in ((1, 0), (True, False), (1.0, 0.0)):
        assert [leaf.name for leaf in flatten.flatten("top", Keyed(keys, "ab")).leaves] == [
            f"top/{key}" for key in keys
        ]


def test_paths_of_what_is_saved_again_are_the_very_same() -> None:
    """What later steps of a save know of paths, they look up by identity."""
    value = {"layers": [{"w": 1, "b": (2, Pair(3, None))}], "state": nnx.State({"k": nnx.Param(1)})}
    one, other = flatten.flatten("top", value), flatten.flatten("top", jax.tree.map(lambda leaf: leaf + 1, value))
    assert all(left.path is right.path for left, right in zip(one.leaves, other.leaves, strict=True))
    assert len(one.leaves) == 4


def test_a_type_that_is_registered_later() -> None:
    class Late:
        def __init__(self, x: Any) -> None:
            self.x = x

    (leaf,) = flatten.flatten("top", Late(1)).leaves
    assert leaf.name == "top"
    jax.tree_util.register_pytree_with_keys(
        Late, lambda late: (((jax.tree_util.GetAttrKey("x"), late.x),), None), lambda _, children: Late(*children)
    )
    (leaf,) = flatten.flatten("top", Late(1)).leaves
    assert leaf.name == "top/x"


class TestNothingIsKeptAlive:
    """Once the program has let go of a state, the package has too."""

    @pytest.mark.parametrize("keep_checkpoint", [False, True])
    def test_static_fields(self, keep_checkpoint: bool, tmp_path: Path) -> None:
        weights = jnp.ones(3)

        def apply_fn(x: Any) -> Any:
            return x + weights

        @flax.struct.dataclass
        class State:
            params: Any
            apply_fn: Any = flax.struct.field(pytree_node=False)

        class Tag(str):
            """A key of the user."""

        class Iterator:
            def get_state(self) -> Any:
                return (1,)

            def set_state(self, state: Any) -> None: ...

        class Special(nnx.Param):
            pass

        class Scalar(np.ndarray):
            pass

        tag = Tag("key")
        state = State({"w": jnp.ones(2), "inner": {tag: 1}}, apply_fn)
        module = nnx.Dict(v=Special(jnp.ones(2)))
        array = np.ones(2).view(Scalar)
        checkpoint = jaxckpt.Checkpoint(s=state, it=Iterator(), m=module, state=nnx.state(module), array=array)
        path = checkpoint.save(tmp_path / "c")
        jaxckpt.Checkpoint(s=state).restore(path).expect_partial()
        checkpoint.restore(path).assert_consumed()
        kept = [weakref.ref(thing) for thing in (apply_fn, State, Tag, tag, Iterator, Scalar)]
        if keep_checkpoint:
            del checkpoint.s, checkpoint.it, checkpoint.m, checkpoint.state, checkpoint.array
        else:
            del checkpoint
        del apply_fn, State, state, Tag, tag, Iterator, module, Special, Scalar, array
        # JAX's registry of pytrees keeps the classes that are registered with it.
        gc.collect()
        assert [reference() for reference in kept if reference() is not None and reference() is not kept[1]()] == []


@dataclasses.dataclass
class Plain:
    w: Any
    b: Any


@dataclasses.dataclass(slots=True)
class Slots:
    w: Any
    b: Any


@flax.struct.dataclass
class Struct:
    w: Any
    b: Any
    name: str = flax.struct.field(pytree_node=False, default="static")


class Module(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.ones(2))
        self.b = nnx.Param(jnp.ones(3))
        self.hyper = 5


class Attributes:
    def __init__(self) -> None:
        self.w = np.ones(2)
        self.b = np.ones(3)
        self._private = object()


@pytest.mark.parametrize(
    "root",
    [
        {"w": np.ones(2), "b": np.ones(3)},
        Plain(np.ones(2), np.ones(3)),
        Slots(np.ones(2), np.ones(3)),
        Struct(np.ones(2), np.ones(3)),
        Pair(np.ones(2), np.ones(3)),
        Node(np.ones(2), np.ones(3)),
        Module(),
        Attributes(),
    ],
    ids=lambda root: type(root).__name__,
)
def test_roots(root: Any) -> None:
    found = roots.expand_root(root)
    expected = {"Pair": ["first", "second"], "Node": ["left", "right"]}.get(type(root).__name__, ["b", "w"])
    assert sorted(found) == expected
    for name, value in found.items():
        assert value is (root[name] if isinstance(root, dict) else getattr(root, name))


@pytest.mark.parametrize(
    "root",
    [[1, 2], (1,), "text", b"bytes", 1, 1.5, np.ones(2), jnp.ones(2), {1: 2}, StateObject(), lambda: 0],
    ids=lambda root: type(root).__name__,
)
def test_roots_without_names(root: Any) -> None:
    with pytest.raises(TypeError):
        roots.expand_root(root)


def test_a_checkpoint_as_root_is_never_silently_empty() -> None:
    """TensorFlow nests Checkpoints. Either the values are there, or it is refused."""
    inner = jaxckpt.Checkpoint(w=np.ones(2))
    try:
        outer = jaxckpt.Checkpoint(inner)
    except TypeError:
        return
    np.testing.assert_array_equal(outer.w, np.ones(2))
