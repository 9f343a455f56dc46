"""TensorFlow's names of arguments and methods, as its programs use them."""

import inspect
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxckpt


@pytest.fixture
def latest(tmp_path: Path) -> str:
    checkpoint = jaxckpt.Checkpoint(model={"kernel": jnp.ones((2, 3), jnp.bfloat16), "name": "text"}, step=4)
    checkpoint.save(tmp_path / "ckpt")
    return checkpoint.save(tmp_path / "ckpt")


def test_checkpoint_dir(latest: str, tmp_path: Path) -> None:
    assert jaxckpt.latest_checkpoint(checkpoint_dir=tmp_path) == latest
    state = jaxckpt.get_checkpoint_state(checkpoint_dir=tmp_path)
    assert state == jaxckpt.get_checkpoint_state(directory=tmp_path) == jaxckpt.get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.model_checkpoint_path == latest
    assert next(jaxckpt.checkpoints_iterator(checkpoint_dir=tmp_path, timeout=0)) == latest
    assert next(jaxckpt.checkpoints_iterator(directory=tmp_path, timeout=0)) == latest


def test_ckpt_dir_or_file(latest: str, tmp_path: Path) -> None:
    for path in (latest, tmp_path):
        assert jaxckpt.load_checkpoint(ckpt_dir_or_file=path).path == latest
        assert jaxckpt.list_variables(ckpt_dir_or_file=path) == jaxckpt.list_variables(path=path)
        assert jaxckpt.load_variable(ckpt_dir_or_file=path, name="step") == jaxckpt.load_variable(path, "step") == 4
        assert jaxckpt.load_variable(name="step", path=path) == 4


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        *(
            (name, "directory", "checkpoint_dir")
            for name in ("latest_checkpoint", "get_checkpoint_state", "checkpoints_iterator")
        ),
        *((name, "path", "ckpt_dir_or_file") for name in ("load_checkpoint", "list_variables", "load_variable")),
    ],
)
def test_one_name_of_an_argument(name: str, ours: str, theirs: str) -> None:
    function = getattr(jaxckpt, name)
    both = rf"{name}\(\) got both {ours} and {theirs}"
    with pytest.raises(TypeError, match=both):
        function("/d", **{theirs: "/d"})
    with pytest.raises(TypeError, match=both):
        function(**{ours: "/d", theirs: "/d"})
    with pytest.raises(TypeError, match=rf"{name}\(\) missing .*{ours}"):
        function()
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        function("/d", wrong=1)
    # What help() and editors show.
    assert next(iter(inspect.signature(function).parameters)) == ours
    assert function.__doc__ is not None


def test_another_state_file(latest: str, tmp_path: Path) -> None:
    """TensorFlow lets a program choose the name of the state file."""
    first = f"{tmp_path}/ckpt-1"
    (tmp_path / "best").write_text('model_checkpoint_path: "ckpt-1"\nall_model_checkpoint_paths: "ckpt-1"\n')
    for found in (
        jaxckpt.latest_checkpoint(tmp_path, "best"),
        jaxckpt.latest_checkpoint(tmp_path, latest_filename="best"),
        jaxckpt.latest_checkpoint(checkpoint_dir=tmp_path, latest_filename="best"),
        jaxckpt.latest_checkpoint(tmp_path, jaxckpt.CheckpointOptions(), latest_filename="best"),
    ):
        assert found == first
    state = jaxckpt.get_checkpoint_state(tmp_path, latest_filename="best")
    assert state == jaxckpt.get_checkpoint_state(tmp_path, "best")
    assert state is not None
    assert state.all_model_checkpoint_paths == [first]
    assert jaxckpt.latest_checkpoint(tmp_path, latest_filename=None) == latest
    assert jaxckpt.latest_checkpoint(tmp_path, latest_filename="missing") is None
    assert jaxckpt.get_checkpoint_state(tmp_path, "missing") is None
    with pytest.raises(TypeError, match="latest_filename was given twice"):
        jaxckpt.latest_checkpoint(tmp_path, "best", latest_filename="best")
    with pytest.raises(TypeError, match="latest_filename must be a str or None, got int"):
        jaxckpt.get_checkpoint_state(tmp_path, latest_filename=3)  # type: ignore[call-overload]
    for name in ("", "a\0b"):
        with pytest.raises(ValueError, match="latest_filename must be the name of a file"):
            jaxckpt.latest_checkpoint(tmp_path, latest_filename=name)


def test_the_reader(latest: str) -> None:
    reader = jaxckpt.load_checkpoint(latest)
    assert reader.has_tensor("model/kernel")
    assert not reader.has_tensor("model/kernel/.ATTRIBUTES/VARIABLE_VALUE")
    shapes = reader.get_variable_to_shape_map()
    assert list(shapes) == reader.keys()
    assert shapes["model/kernel"] == [2, 3]
    assert shapes["step"] == shapes["model/name"] == []
    dtypes = reader.get_variable_to_dtype_map()
    assert dtypes["model/kernel"] == jnp.bfloat16
    assert {name: reader.get_tensor(name).dtype for name in reader.keys()} == dtypes


def test_names_with_tensorflows_suffix_get_a_hint(latest: str) -> None:
    with pytest.raises(KeyError) as info:
        jaxckpt.load_variable(latest, "model/kernel/.ATTRIBUTES/VARIABLE_VALUE")
    assert info.value.args[0] == (
        f"{latest} has no leaf 'model/kernel/.ATTRIBUTES/VARIABLE_VALUE'. Did you mean 'model/kernel'?"
    )
    with pytest.raises(KeyError, match="Did you mean 'model/kernel'"):
        jaxckpt.load_variable(latest, "model/kernl/.ATTRIBUTES/VARIABLE_VALUE")


def test_run_restore_ops(latest: str) -> None:
    checkpoint = jaxckpt.Checkpoint(model={"kernel": jnp.zeros((2, 3), jnp.bfloat16), "name": ""}, step=0)
    status = checkpoint.restore(latest)
    assert status.assert_consumed().run_restore_ops() is None
    assert status.run_restore_ops(session=None) is None
    assert checkpoint.step == 4


def foreign_class(name: str) -> object:
    """An object of TensorFlow's class of that name."""
    module = types.ModuleType("tensorflow.python.checkpoint")
    kind = type(name, (), {"__module__": module.__name__})
    return kind()


def test_another_librarys_options(tmp_path: Path) -> None:
    options: object = foreign_class("CheckpointOptions")
    checkpoint = jaxckpt.Checkpoint(x=np.ones(2))
    path = checkpoint.write(tmp_path / "x")
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, max_to_keep=1)
    before = sorted(each.name for each in tmp_path.iterdir())
    calls = [
        lambda: checkpoint.save(tmp_path / "ckpt", options),
        lambda: checkpoint.write(tmp_path / "ckpt", options=options),
        lambda: checkpoint.restore(path, options),
        lambda: checkpoint.read(path, options),
        lambda: manager.save(options=options),
        lambda: jaxckpt.CheckpointManager(checkpoint, tmp_path, max_to_keep=1, options=options),
        lambda: jaxckpt.latest_checkpoint(tmp_path, options),
        lambda: jaxckpt.checkpoints_iterator(tmp_path, options=options),
        lambda: jaxckpt.to_orbax(options),
    ]
    for call in calls:
        with pytest.raises(TypeError) as info:
            call()
        assert "got tensorflow.python.checkpoint.CheckpointOptions; import it from jaxckpt" in str(info.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == before
    with pytest.raises(TypeError, match=r"got the class jaxckpt\.CheckpointOptions; write CheckpointOptions\(\)"):
        checkpoint.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions)
    with pytest.raises(
        TypeError, match=r"must be a jaxckpt\.Checkpoint, got tensorflow\.python\.checkpoint\.Checkpoint"
    ):
        jaxckpt.CheckpointManager(foreign_class("Checkpoint"), tmp_path, max_to_keep=1)
    assert "tensorflow" not in sys.modules
