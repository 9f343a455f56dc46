"""Reading without targets, also what plain Orbax wrote."""

import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxckpt


@pytest.fixture
def value() -> dict[str, Any]:
    return {
        "dict": {"a": jnp.arange(6.0).reshape(2, 3), "b/c": np.zeros((0, 2), np.int8)},
        "list": [1, 2.5, True, 1 + 2j, None],
        "tuple": ((), [], {}),
        "text": "ünï\n",
        "bytes": b"\x00\xff",
        "scalar": np.float16(1.5),
        "low": ml_dtypes.bfloat16(2),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "optimizer": optax.adam(0.1).init({"w": jnp.ones(2)}),
        "int_keys": {1: 5, 10: 6},
    }


def test_keys_shapes_and_dtypes(value: dict[str, Any], tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(value).save(tmp_path / "ckpt")
    reader = jaxckpt.load_checkpoint(path)
    assert isinstance(reader, jaxckpt.Reader)
    assert reader.keys() == sorted(reader.keys())
    assert {"dict/a", "dict/b~1c", "list/0", "list/3", "key", "optimizer/0/mu/w", "int_keys/10", "save_counter"} <= set(
        reader.keys()
    )
    assert "list/4" not in reader
    assert "dict/a" in reader
    assert len(reader) == len(reader.keys())
    assert jaxckpt.list_variables(path) == [(name, reader.shape(name)) for name in reader.keys()]
    for name in reader.keys():
        array = reader.get_tensor(name)
        assert isinstance(array, np.ndarray)
        assert array.shape == reader.shape(name)
        assert array.dtype == reader.dtype(name)
        assert array.flags.writeable or array.dtype.kind == "U"
        np.testing.assert_array_equal(jaxckpt.load_variable(path, name), array)
    assert reader.get_tensor("text") == "ünï\n"
    assert reader.get_tensor("bytes").tobytes() == b"\x00\xff"
    assert reader.dtype("low") == ml_dtypes.bfloat16
    np.testing.assert_array_equal(reader.get_tensor("keys"), jax.random.key_data(value["keys"]))


def test_metadata(value: dict[str, Any], tmp_path: Path) -> None:
    value["sharded"] = jax.device_put(
        jnp.zeros((8, 2)),
        jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices()[:4], ("x",)), jax.sharding.PartitionSpec("x")),
    )
    reader = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(value).save(tmp_path / "ckpt"))
    kinds = {name: reader.metadata(name).kind for name in reader.keys()}
    assert kinds["dict/a"] == "jax.Array"
    assert kinds["dict/b~1c"] == "np.ndarray"
    assert kinds["list/0"] == "scalar"
    assert kinds["scalar"] == "numpy scalar"
    assert (kinds["text"], kinds["bytes"], kinds["key"]) == ("str", "bytes", "PRNG key")
    assert reader.metadata("key").key_impl is not None
    assert reader.metadata("keys").key_impl == "rbg"
    assert reader.metadata("dict/a").nbytes == 24
    assert reader.metadata("text").nbytes == len("ünï\n".encode())
    assert "PartitionSpec" in str(reader.metadata("sharded").sharding) or "x" in str(
        reader.metadata("sharded").sharding
    )
    assert reader.metadata("list/0").sharding is None


def test_tree(value: dict[str, Any], tmp_path: Path) -> None:
    tree = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(value).save(tmp_path / "ckpt")).tree()
    assert list(map(type, tree["list"])) == [int, float, bool, complex, type(None)]
    assert tree["list"] == value["list"]
    assert tree["text"] == "ünï\n"
    assert tree["bytes"] == b"\x00\xff"
    assert type(tree["scalar"]) is np.float16
    assert tree["int_keys"] == {"1": 5, "10": 6}
    assert list(tree["tuple"]) == [(), [], {}]
    assert set(tree["dict"]) == {"a", "b/c"}
    assert tree["dict"]["b/c"].shape == (0, 2)
    assert set(tree["optimizer"][0]) == {"count", "mu", "nu"}
    assert tree["save_counter"] == 1


@pytest.mark.parametrize("text", ["", "a\0", "\0", "trailing\0\0", " ", "🦀" * 1000])
def test_strings_are_themselves(text: str, tmp_path: Path) -> None:
    reader = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(value=text, deep=[{"x": text}]).save(tmp_path / "ckpt"))
    assert reader.tree()["value"] == text
    assert reader.tree()["deep"] == [{"x": text}]
    assert reader.get_tensor("value").shape == ()
    assert reader.get_tensor("value").item() == text


def test_a_missing_variable(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(kernel=1).save(tmp_path / "ckpt")
    reader = jaxckpt.load_checkpoint(path)
    for ask in (
        reader.get_tensor,
        reader.shape,
        reader.dtype,
        reader.metadata,
        lambda name: jaxckpt.load_variable(path, name),
    ):
        with pytest.raises(KeyError, match="kernel"):
            ask("kernal")


def test_a_directory_means_its_latest(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(n=1)
    checkpoint.save(tmp_path / "ckpt")
    checkpoint.n = 2
    checkpoint.save(tmp_path / "ckpt")
    assert jaxckpt.load_variable(tmp_path, "n") == 2
    assert jaxckpt.load_checkpoint(tmp_path).path.endswith("ckpt-2")
    assert dict(jaxckpt.list_variables(tmp_path)) == {"n": (), "save_counter": ()}


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for read in (jaxckpt.load_checkpoint, jaxckpt.list_variables, jaxckpt.verify, jaxckpt.Checkpoint(a=1).restore):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing-1")
        for name in ("file", "empty"):
            with pytest.raises(jaxckpt.CheckpointError):
                read(tmp_path / name)


def test_a_reader_can_be_used_for_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is one for each wait, not for the life of a reader in a notebook."""
    reader = jaxckpt.load_checkpoint(jaxckpt.Checkpoint(a=np.arange(3), b=np.zeros(100_000)).save(tmp_path / "ckpt"))
    assert reader.shape("a") == (3,)
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 3 * 3600)
    np.testing.assert_array_equal(reader.get_tensor("a"), np.arange(3))
    assert reader.get_tensor("b").shape == (100_000,)
    assert reader.shape("save_counter") == ()


def test_a_reader_never_mixes_two_checkpoints(tmp_path: Path) -> None:
    """One that is replaced while it is open: the old values, the new ones, or an error; not some of each."""
    for options in (None, jaxckpt.CheckpointOptions(experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(1000))):
        checkpoint = jaxckpt.Checkpoint(a=np.arange(3.0), b=np.arange(5000.0), text="old")
        path = checkpoint.write(tmp_path / "c", options)
        reader = jaxckpt.load_checkpoint(path)
        first = reader.get_tensor("a")
        np.testing.assert_array_equal(first, np.arange(3.0))
        checkpoint.a, checkpoint.b, checkpoint.text = np.arange(3.0) + 100, np.arange(5000.0) + 100, "new"
        checkpoint.write(path, options)
        try:
            tree = reader.tree()
        except FileNotFoundError as error:
            assert "another one was saved under its name" in str(error)
            continue
        assert {tree["text"] == "new", tree["a"][0] == 100, tree["b"][0] == 100} in ({True}, {False})


@pytest.mark.parametrize("items", [["default"], ["default", "extra"]])
def test_items_of_a_composite_checkpoint(items: list[str], tmp_path: Path) -> None:
    arguments = {name: ocp.args.PyTreeSave({"a": np.arange(3), "n": [1, {"s": "t"}]}) for name in items}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", args=ocp.args.Composite(**arguments))
    if len(items) == 1:
        assert jaxckpt.load_checkpoint(tmp_path / "c").tree()["n"] == [1, {"s": "t"}]
    else:
        with pytest.raises(ValueError, match="several items"):
            jaxckpt.load_checkpoint(tmp_path / "c")
    for name in items:
        assert jaxckpt.load_checkpoint(tmp_path / "c" / name).keys() == ["a", "n/0", "n/1/s"]


def test_a_checkpoint_manager_of_orbax(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path / "m", options=ocp.CheckpointManagerOptions()) as manager:
        manager.save(3, args=ocp.args.StandardSave({"w": jnp.arange(4.0)}), metrics={"loss": 1.0})
        manager.wait_until_finished()
    np.testing.assert_array_equal(jaxckpt.load_variable(tmp_path / "m" / "3", "w"), np.arange(4.0))
    checkpoint = jaxckpt.Checkpoint(w=jnp.zeros(4))
    checkpoint.restore(tmp_path / "m" / "3").assert_consumed()
    np.testing.assert_array_equal(checkpoint.w, np.arange(4.0))


def test_a_moved_checkpoint(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(a=np.arange(3)).save(tmp_path / "one" / "ckpt")
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert not Path(path).exists()
    np.testing.assert_array_equal(jaxckpt.load_variable(tmp_path / "two", "a"), np.arange(3))
    assert jaxckpt.verify(tmp_path / "two" / "ckpt-1").ok
