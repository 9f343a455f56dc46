"""Managers in directories where another program keeps its checkpoints: Orbax's manager, Flax, TensorFlow."""

import os
import warnings
from pathlib import Path
from typing import Any

import flax.training.checkpoints
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxckpt

STATE = {"value": np.arange(4.0)}


def checkpoint() -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(value=np.zeros(4))


def orbax_run(directory: Path, args: Any, **options: Any) -> None:
    with ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step in (9, 10):
            manager.save(step, args=args)


def flax_run(directory: Path, **arguments: Any) -> None:
    for step in (9, 10):
        flax.training.checkpoints.save_checkpoint(directory, STATE, step, keep=5, **arguments)


def composite() -> Any:
    return ocp.args.Composite(params=ocp.args.StandardSave(STATE), extra=ocp.args.JsonSave({"a": 1}))


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "args", "newest"),
    [
        ({}, ocp.args.StandardSave(STATE), "10/default"),
        ({}, composite(), "10/params"),
        ({"step_prefix": "step"}, ocp.args.StandardSave(STATE), "step_10/default"),
        ({"step_format_fixed_length": 8}, ocp.args.StandardSave(STATE), "00000010/default"),
    ],
    ids=["default", "composite", "prefix", "padded"],
)
def test_a_run_of_orbax(options: dict[str, Any], args: Any, newest: str, tmp_path: Path) -> None:
    orbax_run(tmp_path, args, **options)
    before = snapshot(tmp_path)
    with pytest.warns(UserWarning, match="holds Orbax checkpoints") as caught:
        manager = jaxckpt.CheckpointManager(checkpoint(), tmp_path, 3)
    (text,) = [str(warning.message) for warning in caught]
    assert f"checkpoint.restore('{tmp_path}/{newest}')" in text
    assert repr(newest.split("/")[0]) in text
    assert snapshot(tmp_path) == before
    assert manager.latest_checkpoint is None
    # The warning is not repeated.
    assert manager.restore_or_initialize() is None
    # What the warning says works.
    manager.checkpoint.restore(f"{tmp_path}/{newest}").assert_existing_objects_matched()
    np.testing.assert_array_equal(manager.checkpoint.value, STATE["value"])
    assert manager.save() == str(tmp_path / "ckpt-1")
    assert before.items() <= snapshot(tmp_path).items()
    # The directory has a checkpoint of its own now, so there is nothing to warn of.
    jaxckpt.CheckpointManager(checkpoint(), tmp_path, 3)


def test_a_run_of_flax(tmp_path: Path) -> None:
    flax_run(tmp_path / "orbax", orbax_checkpointer=ocp.PyTreeCheckpointer())
    with pytest.warns(UserWarning, match=r"holds Flax checkpoints.*'checkpoint_9', 'checkpoint_10'") as caught:
        manager = jaxckpt.CheckpointManager(checkpoint(), tmp_path / "orbax", 3)
    path = f"{tmp_path}/orbax/checkpoint_10"
    assert f"checkpoint.restore({path!r})" in str(caught[0].message)
    manager.checkpoint.restore(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(manager.checkpoint.value, STATE["value"])


def test_a_run_of_flax_in_single_files(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint_{step}").write_bytes(b"msgpack")
    with pytest.warns(UserWarning, match=r"holds Flax checkpoints.*restore_checkpoint\('"):
        manager = jaxckpt.CheckpointManager(checkpoint(), tmp_path, 3)
    assert manager.restore_or_initialize() is None


def test_one_that_appears_later(tmp_path: Path) -> None:
    manager = jaxckpt.CheckpointManager(checkpoint(), tmp_path, 3)
    orbax_run(tmp_path, ocp.args.StandardSave(STATE))
    with pytest.warns(UserWarning, match="holds Orbax checkpoints"):
        assert manager.restore_or_initialize() is None
    assert manager.restore_or_initialize() is None


def test_nothing_is_said_about_other_things(tmp_path: Path) -> None:
    for name in ("5", "run_3", "checkpoint_7", "logs_2024"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").touch()
    (tmp_path / "2024").touch()
    # The file with the data is missing.
    (tmp_path / "ckpt-3.index").touch()
    # A checkpoint of jaxckpt, under a name that the program chose.
    checkpoint().write(tmp_path / "12")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager = jaxckpt.CheckpointManager(checkpoint(), tmp_path, 3)
        assert manager.restore_or_initialize() is None


def tensorflow_run(directory: Path, *, absolute: bool = False, state: bool = True) -> None:
    """Files with the names that TensorFlow gives them; and its state file."""
    directory.mkdir(exist_ok=True)
    start = f"{directory}/" if absolute else ""
    lines = [f'model_checkpoint_path: "{start}ckpt-10"']
    for number in (1, 9, 10):
        (directory / f"ckpt-{number}.index").write_bytes(b"index")
        (directory / f"ckpt-{number}.data-00000-of-00001").write_bytes(b"data")
        lines.append(f'all_model_checkpoint_paths: "{start}ckpt-{number}"')
    if state:
        (directory / "checkpoint").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("name", ["ckpt", "mine"])
def test_nothing_is_changed_beside_tensorflows(state: bool, absolute: bool, name: str, tmp_path: Path) -> None:
    tensorflow_run(tmp_path, absolute=absolute, state=state)
    before = snapshot(tmp_path)
    with pytest.warns(UserWarning, match=r"holds TensorFlow checkpoints.*choose another directory"):
        manager = jaxckpt.CheckpointManager(
            checkpoint(), tmp_path, 1, checkpoint_name=name, init_fn=lambda: pytest.fail("initialized")
        )
    calls = [
        manager.restore_or_initialize,
        manager.save,
        lambda: manager.save(10),
        lambda: manager.save(77),
        lambda: manager.save(options=jaxckpt.CheckpointOptions(enable_async=True)),
        lambda: checkpoint().save(tmp_path / name),
    ]
    for call in calls:
        with pytest.raises(jaxckpt.CheckpointError, match="TensorFlow checkpoints") as caught:
            call()
        assert "choose another directory" in str(caught.value)
        assert f"{tmp_path}/ckpt-10" in str(caught.value)
    assert manager.checkpoint.save_counter == 0
    assert (manager.checkpoints, manager.latest_checkpoint) == ([], None)
    assert snapshot(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == sorted(before)


def test_the_prefix_of_a_tensorflow_checkpoint_is_never_written(tmp_path: Path) -> None:
    """Also where the state file does not name it."""
    checkpoint().save(tmp_path / "ckpt")
    for name in ("ckpt-2", "ckpt-3", "weights"):
        (tmp_path / f"{name}.index").touch()
    before = sorted(os.listdir(tmp_path))
    for call in (
        lambda: checkpoint().write(tmp_path / "weights"),
        lambda: jaxckpt.CheckpointManager(checkpoint(), tmp_path, 1).save(3),
        lambda: checkpoint().save(tmp_path / "ckpt"),
    ):
        with pytest.raises(jaxckpt.CheckpointError, match="TensorFlow checkpoints"):
            call()
    assert sorted(os.listdir(tmp_path)) == before


def test_what_tensorflow_takes_over_during_a_save_is_left_alone(tmp_path: Path) -> None:
    """The state file is looked at again at the moment when it would be replaced."""
    before: dict[str, bytes] = {}

    class Late:
        def serialize(self) -> str:
            tensorflow_run(tmp_path)
            before.update(snapshot(tmp_path))
            return ""

        def deserialize(self, value: str) -> None: ...

    manager = jaxckpt.CheckpointManager(jaxckpt.Checkpoint(late=Late()), tmp_path, 1, checkpoint_name="mine")
    with pytest.raises(jaxckpt.CheckpointError, match="TensorFlow checkpoints"):
        manager.save()
    assert snapshot(tmp_path) == before


def test_the_latest_of_tensorflows(tmp_path: Path) -> None:
    tensorflow_run(tmp_path)
    assert jaxckpt.latest_checkpoint(tmp_path) == f"{tmp_path}/ckpt-10"
    state = jaxckpt.get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.model_checkpoint_path == f"{tmp_path}/ckpt-10"
