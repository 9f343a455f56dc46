"""Checkpoint: names, roots, paths, the counter, and that a call that fails has not done anything."""

import copy
import dataclasses
import os
import pathlib
import pickle
import random
from pathlib import Path
from typing import Any, ClassVar

import flax.nnx as nnx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from examples import examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import jaxckpt

ASYNC = jaxckpt.CheckpointOptions(enable_async=True)


def files(directory: Path) -> dict[str, bytes]:
    """Everything below a directory; how a call that failed is known to have left it alone."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b"dir"
        for path in directory.rglob("*")
    }


class Machine(RuleBasedStateMachine):
    """Any order of saves, restores and deletions, against a model of what has to be there."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory(prefix="jaxckpt-machine-")
        self.directory = Path(self.folder.name)
        self.checkpoint = jaxckpt.Checkpoint(value=np.zeros(3), number=0)
        self.number = 0
        self.counter = 0
        # Value and counter by the number in the name.
        self.saved: dict[int, tuple[int, int]] = {}
        self.highest = 0

    def teardown(self) -> None:
        self.checkpoint.close()
        self.folder.cleanup()

    @rule(asynchronous=st.booleans())
    def save(self, asynchronous: bool) -> None:
        self.number += 1
        self.checkpoint.value[:] = self.number
        self.checkpoint.number = self.number
        path = self.checkpoint.save(self.directory / "ckpt", ASYNC if asynchronous else None)
        taken = int(path.rpartition("-")[2])
        assert taken > self.counter
        assert taken not in self.saved
        assert taken == self.checkpoint.save_counter
        if self.counter + 1 not in self.saved and self.counter >= self.highest:
            assert taken == self.counter + 1
        self.counter = taken
        self.highest = max(self.highest, taken)
        self.saved[taken] = (self.number, taken)

    @rule()
    def fail(self) -> None:
        self.checkpoint.bad = object()
        with pytest.raises(TypeError, match="bad"):
            self.checkpoint.save(self.directory / "ckpt")
        del self.checkpoint.bad

    @rule(asynchronous=st.booleans())
    def write(self, asynchronous: bool) -> None:
        self.checkpoint.write(self.directory / "exact", ASYNC if asynchronous else None)

    @rule(seed=st.integers(0, 99), counted=st.booleans())
    def restore(self, seed: int, counted: bool) -> None:
        if not self.saved:
            return
        number = random.Random(seed).choice(sorted(self.saved))
        value, counter = self.saved[number]
        load = self.checkpoint.restore if counted else self.checkpoint.read
        load(self.directory / f"ckpt-{number}").assert_consumed()
        assert (self.checkpoint.value == value).all()
        assert self.checkpoint.number == value
        if counted:
            self.counter = counter

    @rule(new=st.booleans())
    def start_again(self, new: bool) -> None:
        self.checkpoint.sync()
        if new:
            self.checkpoint = jaxckpt.Checkpoint(value=np.zeros(3), number=0)
            self.counter = 0
        else:
            self.checkpoint = copy.deepcopy(self.checkpoint)

    @rule()
    def sync(self) -> None:
        self.checkpoint.sync()
        assert {int(name.rpartition("-")[2]) for name in os.listdir(self.directory) if name.startswith("ckpt-")} == set(
            self.saved
        )

    @invariant()
    def counter_is_known(self) -> None:
        assert self.checkpoint.save_counter == self.counter


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = hypothesis.settings(max_examples=examples(15), stateful_step_count=15, deadline=None)


class TestFailedSaves:
    BAD: ClassVar[dict[str, Any]] = {
        "object": object(),
        "function": lambda: 0,
        "set": {1},
        "huge int": 2**64,
        "object array": np.array([None]),
        "text array": np.array(["a"]),
        "dates": np.array(["2020"], "datetime64[D]"),
        "structured": np.zeros(2, [("a", int)]),
        "longdouble": np.zeros(2, np.longdouble),
        "masked": np.ma.array([1, 2], mask=[True, False]),
        "abstract": jax.ShapeDtypeStruct((2,), jnp.float32),
        "colliding": {"x": {"y": 1}, "x.y": 2},
        "mixed keys": {1: 1, "a": 2},
        "bytearray": bytearray(b"x"),
        "subclass": type("Text", (str,), {})("x"),
        "path": pathlib.PurePosixPath("x"),
    }

    @pytest.mark.parametrize("asynchronous", [False, True])
    @pytest.mark.parametrize("kind", BAD)
    def test_a_value_that_cannot_be_stored(self, kind: str, asynchronous: bool, tmp_path: Path) -> None:
        options = jaxckpt.CheckpointOptions(enable_async=asynchronous)
        checkpoint = jaxckpt.Checkpoint(a=np.arange(3), z={"deep": [self.BAD[kind]]})
        for save in (checkpoint.save, checkpoint.write):
            # Before save returns, also when it is asynchronous.
            with pytest.raises((TypeError, ValueError), match=r"z/deep/0|^z: a mapping"):
                save(tmp_path / "new" / "ckpt", options)
        assert os.listdir(tmp_path) == []
        assert checkpoint.save_counter == 0
        checkpoint.z = 1
        assert checkpoint.save(tmp_path / "new" / "ckpt", options).endswith("-1")
        checkpoint.sync()

    @pytest.mark.parametrize("transform", ["jit", "grad", "vmap", "eval_shape"])
    def test_traced_values(self, transform: str, tmp_path: Path) -> None:
        def function(x: Any) -> Any:
            checkpoint = jaxckpt.Checkpoint(ok=np.ones(2), model={"w": x})
            checkpoint.save(tmp_path / "ckpt")
            return x.sum()

        with pytest.raises(TypeError, match=r"model/w.*traced"):
            (jax.eval_shape if transform == "eval_shape" else getattr(jax, transform)(function))(
                *((function,) if transform == "eval_shape" else ()), jnp.ones(3)
            )
        assert os.listdir(tmp_path) == []

    def test_deleted_arrays(self, tmp_path: Path) -> None:
        array = jnp.ones(3)
        array.delete()
        with pytest.raises(ValueError, match="model.*deleted"):
            jaxckpt.Checkpoint(model=array).save(tmp_path / "ckpt")
        assert os.listdir(tmp_path) == []

    def test_an_existing_checkpoint_survives_a_failed_write(self, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=np.arange(3))
        path = checkpoint.write(tmp_path / "c")
        before = files(tmp_path)
        checkpoint.bad = object()
        with pytest.raises(TypeError):
            checkpoint.write(path)
        assert files(tmp_path) == before

    @pytest.mark.parametrize("content", ["file", "directory", "dangling link"])
    def test_write_does_not_replace_what_is_no_checkpoint(self, content: str, tmp_path: Path) -> None:
        target = tmp_path / "c"
        if content == "file":
            target.write_text("mine")
        elif content == "directory":
            target.mkdir()
            (target / "notes").write_text("mine")
        else:
            target.symlink_to("nowhere")
        with pytest.raises(FileExistsError):
            jaxckpt.Checkpoint(a=1).write(target)
        assert os.listdir(tmp_path) == ["c"]
        assert content != "file" or target.read_text() == "mine"


class TestFailedRestores:
    STORED: ClassVar[dict[str, Any]] = {
        "b": jnp.arange(6.0).reshape(2, 3),
        "c": np.arange(3),
        "d": 5,
        "e": 2.5,
        "f": "text",
        "g": b"bytes",
        "h": True,
        "i": [np.float32(1)],
    }
    BAD: ClassVar[dict[str, Any]] = {
        "shape": ("b", jnp.zeros((3, 2))),
        "rank": ("b", jnp.zeros((2, 3, 1))),
        "numpy shape": ("c", np.zeros(4, int)),
        "size": ("c", np.zeros(2, int)),
        "dtype": ("b", jnp.zeros((2, 3), jnp.bfloat16)),
        "numpy dtype": ("c", np.zeros(3, np.int32)),
        "numpy float": ("c", np.zeros(3)),
        "unsigned": ("c", np.zeros(3, np.uint64)),
        "int of float": ("e", 1),
        "float of int": ("d", 1.5),
        "bool of int": ("d", True),
        "int of bool": ("h", 1),
        "str of int": ("d", "x"),
        "int of str": ("f", 1),
        "bytes of str": ("f", b"x"),
        "str of bytes": ("g", "x"),
        "array of bytes": ("g", np.zeros(5, np.uint8)),
        "scalar of array": ("c", 1),
        "array of str": ("f", np.zeros(3)),
        "key of array": ("b", jax.random.key(0)),
        "object": ("d", object()),
        "numpy scalar": ("i", [np.float64(1)]),
        "abstract shape": ("b", jax.ShapeDtypeStruct((6,), jnp.float32)),
    }

    @pytest.mark.parametrize("bad", BAD)
    def test_nothing_changes(self, bad: str, tmp_path: Path) -> None:
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        saved = jaxckpt.Checkpoint(a=model, z=np.ones(2), **self.STORED)
        path = saved.save(tmp_path / "ckpt")
        name, target = self.BAD[bad]
        fresh = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
        kernel = np.array(fresh.kernel.get_value())
        values = {**self.STORED, "z": np.zeros(2), name: target}
        checkpoint = jaxckpt.Checkpoint(a=fresh, **values)
        for load in (checkpoint.restore, checkpoint.read):
            with pytest.raises((ValueError, TypeError), match=rf"^{name}"):
                load(path)
        assert all(getattr(checkpoint, key) is value for key, value in values.items())
        assert not checkpoint.z.any()
        np.testing.assert_array_equal(fresh.kernel.get_value(), kernel)
        assert checkpoint.save_counter == 0

    def test_a_wrong_shape_names_both_shapes(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(model={"layers": [{"w": jnp.ones((2, 3))}]}).save(tmp_path / "ckpt")
        with pytest.raises(ValueError, match=r"model/layers/0/w.*\(3, 2\).*\(2, 3\)"):
            jaxckpt.Checkpoint(model={"layers": [{"w": jnp.ones((3, 2))}]}).restore(path)

    def test_another_kind_of_key(self, tmp_path: Path) -> None:
        path = jaxckpt.Checkpoint(key=jax.random.key(1, impl="rbg")).save(tmp_path / "ckpt")
        for target in (jax.random.key(0), jax.random.key(0, impl="unsafe_rbg"), jnp.zeros(4, jnp.uint32)):
            with pytest.raises(ValueError, match="key"):
                jaxckpt.Checkpoint(key=target).restore(path)

    def test_a_missing_path_mentions_the_number(self, tmp_path: Path) -> None:
        jaxckpt.Checkpoint(a=1).save(tmp_path / "ckpt")
        for missing in (tmp_path / "ckpt", tmp_path / "nowhere" / "ckpt-1"):
            with pytest.raises(FileNotFoundError, match="-1") as caught:
                jaxckpt.Checkpoint(a=1).restore(missing)
            assert str(missing) in str(caught.value)


class TestNamesAndRoots:
    def test_reserved_names(self) -> None:
        public = [name for name in dir(jaxckpt.Checkpoint) if not name.startswith("_")]
        assert {"save", "write", "restore", "read", "save_counter", "sync", "close"} <= set(public)
        for name in set(public) - {"save_counter"}:
            with pytest.raises(ValueError, match=name):
                jaxckpt.Checkpoint(**{name: 1})
            with pytest.raises(ValueError, match=name):
                jaxckpt.Checkpoint({name: 1})
            with pytest.raises(ValueError, match=name):
                setattr(jaxckpt.Checkpoint(), name, 1)
        with pytest.raises(ValueError, match="save_counter"):
            jaxckpt.Checkpoint(save_counter=1)

    @pytest.mark.parametrize("name", ["mro", "model", "root", "options", "Checkpoint", "x" * 500, "läyer", "a.b"])
    def test_other_names(self, name: str, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(**{name: np.arange(2)} if name != "root" else {})
        setattr(checkpoint, name, np.arange(3))
        path = checkpoint.save(tmp_path / "ckpt")
        setattr(checkpoint, name, np.zeros(3, int))
        checkpoint.restore(path).assert_consumed()
        np.testing.assert_array_equal(getattr(checkpoint, name), np.arange(3))
        assert name in dir(checkpoint)
        delattr(checkpoint, name)
        with pytest.raises(AttributeError, match=name):
            getattr(checkpoint, name)

    def test_root_and_names_are_interchangeable(self, tmp_path: Path) -> None:
        @dataclasses.dataclass
        class Root:
            w: Any
            b: Any

        root = Root(np.arange(3), {"x": 1})
        by_root = jaxckpt.Checkpoint(root).write(tmp_path / "root")
        by_name = jaxckpt.Checkpoint(w=root.w, b=root.b).write(tmp_path / "names")
        for path in (by_root, by_name):
            fresh = Root(np.zeros(3, int), {"x": 0})
            for checkpoint in (jaxckpt.Checkpoint(fresh), jaxckpt.Checkpoint(w=fresh.w, b=fresh.b)):
                checkpoint.read(path).assert_consumed()
                np.testing.assert_array_equal(checkpoint.w, root.w)
                assert checkpoint.b == root.b
            # The restore has not written into this object.
            assert fresh.b == {"x": 0}

    def test_the_same_name_in_root_and_keywords(self) -> None:
        value = np.ones(2)
        assert jaxckpt.Checkpoint({"a": value}, a=value).a is value
        with pytest.raises(ValueError, match="'a'"):
            jaxckpt.Checkpoint({"a": value}, a=np.ones(2))

    def test_a_roots_fields_are_read_when_it_is_saved(self, tmp_path: Path) -> None:
        root = {"a": 1}
        checkpoint = jaxckpt.Checkpoint(root)
        root["a"] = 2
        root["added"] = 3
        path = checkpoint.save(tmp_path / "ckpt")
        assert {name: int(jaxckpt.load_variable(path, name)) for name in ("a", "added")} == {"a": 2, "added": 3}
        root["a"] = 7
        checkpoint.restore(path).assert_consumed()
        assert (checkpoint.a, root["a"]) == (2, 7)
        # The program goes on with its own object.
        root["a"] = 8
        assert checkpoint.a == 8
        root["save"] = 1
        with pytest.raises(ValueError, match="save"):
            checkpoint.save(tmp_path / "ckpt")


class TestPaths:
    @pytest.mark.parametrize(
        "name", ["a b", "ü🦀", "a%20b", "a?b", "a#b", "[x]*", "a\nb", "-", "--x", "~", "$HOME", "a.b", "...", "x" * 180]
    )
    def test_unusual_names(self, name: str, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=1)
        for options in (None, ASYNC):
            path = checkpoint.save(f"{tmp_path}/{name}", options)
            assert path == f"{tmp_path}/{name}-{checkpoint.save_counter}"
            checkpoint.restore(path).assert_consumed()
            assert jaxckpt.latest_checkpoint(tmp_path) == path

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        """A name that is not UTF-8 is legal on Linux: it works, or the error names it and leaves nothing."""
        name = os.fsdecode(os.fsencode(tmp_path) + b"/not-\xff-utf8")
        try:
            path = jaxckpt.Checkpoint(a=np.arange(3)).save(name)
        except (ValueError, OSError) as error:
            assert "not-" in str(error)
            assert os.listdir(tmp_path) == []
        else:
            assert jaxckpt.Checkpoint(a=np.zeros(3, int)).restore(path).assert_consumed()

    def test_a_name_that_orbax_takes_for_a_leftover(self, tmp_path: Path) -> None:
        """Refused, or a checkpoint like any other; not one that is written and then never found."""
        try:
            path = jaxckpt.Checkpoint(a=1).save(tmp_path / "x.orbax-checkpoint-tmp")
        except ValueError as error:
            assert "orbax-checkpoint-tmp" in str(error)
            assert os.listdir(tmp_path) == []
        else:
            assert jaxckpt.latest_checkpoint(tmp_path) == path

    @pytest.mark.parametrize("huge", ["9" * 20, "9" * 200, str(2**63)])
    def test_numbers_beyond_64_bits(self, huge: str, tmp_path: Path) -> None:
        """A foreign directory with a long number does not prevent a save."""
        for number in ("1", huge):
            (tmp_path / f"ckpt-{number}").mkdir()
        path = jaxckpt.Checkpoint(a=1).save(tmp_path / "ckpt")
        assert jaxckpt.verify(path).ok

    def test_relative_paths_follow_the_directory_of_the_call(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        checkpoint = jaxckpt.Checkpoint(a=np.zeros(500_000))
        for options in (None, ASYNC):
            monkeypatch.chdir(tmp_path / "one")
            path = checkpoint.save("ckpt", options)
            monkeypatch.chdir(tmp_path / "two")
            checkpoint.sync()
            assert not os.path.isabs(path)
            assert jaxckpt.verify(tmp_path / "one" / path).ok
        assert os.listdir(tmp_path / "two") == []

    def test_links(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        checkpoint = jaxckpt.Checkpoint(a=1)
        path = checkpoint.save(tmp_path / "link" / "ckpt")
        checkpoint.restore(path).assert_consumed()
        (tmp_path / "latest").symlink_to(path)
        checkpoint.restore(tmp_path / "latest").assert_consumed()
        checkpoint.a = 2
        checkpoint.write(tmp_path / "latest")
        # Where the link led is not what was written.
        assert jaxckpt.load_variable(path, "a") == 1
        assert jaxckpt.load_variable(tmp_path / "latest", "a") == 2

    @pytest.mark.parametrize("bad", [5, None, b"/x", ["x"], object()])
    def test_prefixes_of_a_wrong_type(self, bad: Any, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=1)
        for call in (
            checkpoint.save,
            checkpoint.write,
            *([] if bad is None else [checkpoint.restore, checkpoint.read]),
        ):
            with pytest.raises(TypeError):
                call(bad)

    @pytest.mark.parametrize("bad", [5, "async", {"enable_async": True}, True])
    def test_options_of_a_wrong_type(self, bad: Any, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=1)
        for call in (checkpoint.save, checkpoint.write, checkpoint.restore, checkpoint.read):
            with pytest.raises(TypeError, match="CheckpointOptions"):
                call(tmp_path / "x", bad)
        assert os.listdir(tmp_path) == []


class TestCounter:
    @pytest.mark.parametrize("value", [5, np.int64(5), np.uint8(5), jnp.int32(5)])
    def test_it_can_be_set(self, value: Any, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=1)
        checkpoint.save_counter = value
        assert type(checkpoint.save_counter) is int
        assert checkpoint.save(tmp_path / "ckpt").endswith("-6")

    @pytest.mark.parametrize("value", [1.0, "1", None, True, -1, 2**63])
    def test_not_to_anything(self, value: Any) -> None:
        checkpoint = jaxckpt.Checkpoint(a=1)
        with pytest.raises((TypeError, ValueError), match="save_counter"):
            checkpoint.save_counter = value
        assert checkpoint.save_counter == 0

    @pytest.mark.parametrize("stored", [-5, 2.5, "text", np.arange(3)], ids=str)
    def test_what_others_store_under_that_name(self, stored: Any, tmp_path: Path) -> None:
        """Never a counter that the setter would refuse."""
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "c", {"a": np.ones(2), "save_counter": stored})
        checkpoint = jaxckpt.Checkpoint(a=np.zeros(2))
        checkpoint.read(tmp_path / "c").assert_existing_objects_matched()
        checkpoint.a = np.zeros(2)
        try:
            checkpoint.restore(tmp_path / "c").expect_partial()
        except ValueError as error:
            assert "save_counter" in str(error)
            assert not checkpoint.a.any()
        assert checkpoint.save_counter == 0


class TestCopies:
    def test_a_deep_copy_is_independent(self, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint({"r": [np.zeros(2)]}, a=np.zeros(2))
        checkpoint.save(tmp_path / "ckpt", ASYNC)
        other = copy.deepcopy(checkpoint)
        other.a[:] = 1
        other.r[0][:] = 1
        other.b = 1
        assert other.save(tmp_path / "ckpt").endswith("-2")
        assert checkpoint.save_counter == 1
        assert not checkpoint.a.any()
        assert not checkpoint.r[0].any()
        assert not hasattr(checkpoint, "b")
        checkpoint.sync()

    def test_it_is_not_pickled(self) -> None:
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(jaxckpt.Checkpoint(a=1))

    def test_closing(self, tmp_path: Path) -> None:
        with jaxckpt.Checkpoint(a=1) as checkpoint:
            path = checkpoint.save(tmp_path / "ckpt", ASYNC)
        assert os.path.isdir(path)
        checkpoint.close()
        checkpoint.close()


def test_write_and_read_leave_the_counter(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(a=1)
    checkpoint.save(tmp_path / "ckpt")
    path = checkpoint.write(tmp_path / "exact")
    assert path == str(tmp_path / "exact")
    assert checkpoint.save_counter == 1
    assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-1")
    checkpoint.save_counter = 9
    checkpoint.read(path).assert_consumed()
    assert checkpoint.save_counter == 9
    checkpoint.restore(path).assert_consumed()
    assert checkpoint.save_counter == 1
