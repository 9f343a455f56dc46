"""Directories of Orbax's managers: their latest step, and the item that a program means."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from orbax.checkpoint import v1

import jaxckpt

pytestmark = pytest.mark.sampled

Completed = Any


def tree(step: int) -> dict[str, Any]:
    return {"w": jnp.full((2, 3), float(step)), "step": step}


def run(directory: Path, *, items: bool = False, handler: bool = False, **options: Any) -> Path:
    """Saves the steps 5 and 10."""
    handlers: Any = jaxckpt.orbax.PyTreeHandler() if handler else None
    names: Any = {}
    if items:
        names = {"item_names": ("state", "metrics", "ema")}
        handlers = handlers and {"state": handlers}
    with ocp.CheckpointManager(
        directory, item_handlers=handlers, options=ocp.CheckpointManagerOptions(**options), metadata={"a": 1}, **names
    ) as manager:
        for step in (5, 10):
            args: Any = ocp.args.PyTreeSave(tree(step))
            if items:
                ema = ocp.args.StandardSave({"w": jnp.full((2, 3), -1.0)})
                args = ocp.args.Composite(state=args, metrics=ocp.args.JsonSave({"loss": 1.0}), ema=ema)
            manager.save(step, args=args)
    return directory


def v1_run(directory: Path) -> Path:
    with v1.training.Checkpointer(directory) as checkpointer:
        for step in (5, 10):
            checkpointer.save(step, tree(step))
    return directory


RUNS: dict[str, Callable[[Path], Path]] = {
    "plain": run,
    "handler": lambda directory: run(directory, handler=True),
    "prefix": lambda directory: run(directory, step_prefix="run_a"),
    "fixed_length": lambda directory: run(directory, step_prefix="step", step_format_fixed_length=8),
    "v1": v1_run,
}
runs = pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)


@runs
def test_the_directory_stands_for_its_latest_step(
    tmp_path: Path, make: Callable[[Path], Path], call: Callable[..., Completed]
) -> None:
    root = make(tmp_path / "run")
    (step,) = root.glob("*10")
    checkpoint = jaxckpt.Checkpoint(w=jnp.zeros((2, 3)), step=0)
    checkpoint.restore(root).assert_consumed()
    assert checkpoint.step == 10
    reader = jaxckpt.load_checkpoint(root)
    assert reader.path == str(step)
    assert reader.get_tensor("step") == 10
    assert dict(jaxckpt.list_variables(root)).keys() == {"w", "step"}
    np.testing.assert_array_equal(jaxckpt.load_variable(root, "w"), np.full((2, 3), 10.0))
    assert jaxckpt.verify(root).ok
    assert json.loads(call("inspect", root, "--json").stdout)["path"] == str(step)
    assert call("verify", root).returncode == 0
    listed = json.loads(call("list", root, "--json").stdout)
    assert [Path(each["path"]).name[-2:].lstrip("0_") for each in listed["checkpoints"]] == ["5", "10"]
    assert listed["latest"] == str(step)


def test_steps_that_were_not_finished_are_left_out(tmp_path: Path) -> None:
    root = run(tmp_path)
    shutil.copytree(root / "10", root / "20.orbax-checkpoint-tmp")
    shutil.copytree(root / "10", root / "30")
    (root / "30" / "_CHECKPOINT_METADATA").unlink()
    (root / "40").mkdir()
    (root / "50").write_text("")
    assert jaxckpt.load_checkpoint(root).path == str(root / "10")


def test_steps_of_two_runs_are_ambiguous(tmp_path: Path) -> None:
    run(tmp_path, step_prefix="a")
    run(tmp_path, step_prefix="b")
    with pytest.raises(jaxckpt.CheckpointError, match=r"a_5, a_10, b_5, b_10"):
        jaxckpt.load_checkpoint(tmp_path)


def test_checkpoints_of_jaxckpt_are_not_steps(tmp_path: Path) -> None:
    for name in ("5", "10"):
        jaxckpt.Checkpoint(a=1).write(tmp_path / name)
    with pytest.raises(jaxckpt.CheckpointError, match=r"a directory of checkpoints \(5, 10\)"):
        jaxckpt.load_checkpoint(tmp_path)


@pytest.mark.parametrize("handler", [False, True], ids=["plain", "handler"])
@pytest.mark.parametrize("place", ["", "10"], ids=["root", "step"])
def test_the_item_with_the_names_of_the_values_is_read(tmp_path: Path, handler: bool, place: str) -> None:
    path = run(tmp_path, items=True, handler=handler) / place
    checkpoint = jaxckpt.Checkpoint(w=jnp.zeros((2, 3)), step=0)
    checkpoint.restore(path).assert_consumed()
    assert checkpoint.step == 10
    # The values may have the names of items.
    checkpoint = jaxckpt.Checkpoint(ema={"w": jnp.zeros((2, 3))})
    checkpoint.read(path).assert_consumed()
    np.testing.assert_array_equal(checkpoint.ema["w"], np.full((2, 3), -1.0))
    checkpoint = jaxckpt.Checkpoint(state=tree(0))
    checkpoint.read(path).assert_consumed()
    assert checkpoint.state["step"] == 10


def test_an_item_must_be_named_where_names_do_not_tell(tmp_path: Path, call: Callable[..., Completed]) -> None:
    path = run(tmp_path, items=True) / "5"
    with pytest.raises(
        ValueError, match="holds several items: ema, state. Several of them fit your values equally well"
    ):
        jaxckpt.Checkpoint(w=jnp.zeros((2, 3))).restore(path)
    with pytest.raises(ValueError, match="holds several items: ema, state. None has the names of your values"):
        jaxckpt.Checkpoint(other=1).restore(path)
    with pytest.raises(ValueError, match="holds several items: ema, state. Name one: "):
        jaxckpt.load_checkpoint(path)
    assert f"Name one: '{path}/ema'" in call("inspect", path).stderr
    assert jaxckpt.load_checkpoint(path / "state").get_tensor("step") == 5
    assert call("inspect", path / "state").returncode == 0
    checkpoint = jaxckpt.Checkpoint(w=jnp.zeros((2, 3)))
    checkpoint.restore(path / "ema").assert_consumed()


def test_the_only_item_is_a_value_of_its_name(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path, item_names=("model",)) as manager:
        manager.save(1, args=ocp.args.Composite(model=ocp.args.StandardSave([jnp.ones(2), {"a": jnp.zeros(1)}])))
    checkpoint = jaxckpt.Checkpoint(model=[jnp.zeros(2), {"a": jnp.ones(1)}])
    checkpoint.restore(tmp_path).assert_consumed()
    np.testing.assert_array_equal(checkpoint.model[0], np.ones(2))


class Model(nnx.Module):
    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])


def _leaves(model: Model) -> list[Any]:
    return jax.tree.leaves(nnx.state(model))


def test_nnx_targets_have_the_names_of_nnx_state(tmp_path: Path) -> None:
    saved = Model(0)
    with ocp.CheckpointManager(tmp_path, item_names=("model",)) as manager:
        manager.save(1, args=ocp.args.Composite(model=ocp.args.StandardSave(nnx.state(saved))))
    names = jaxckpt.load_checkpoint(tmp_path).keys()
    assert "layers/0/kernel/value" in names
    for target in (Model(1), nnx.state(Model(1))):
        checkpoint = jaxckpt.Checkpoint(model=target)
        checkpoint.restore(tmp_path).assert_consumed()
        found = checkpoint.model if isinstance(target, Model) else nnx.merge(nnx.graphdef(Model(1)), checkpoint.model)
        for one, other in zip(_leaves(found), _leaves(saved), strict=True):
            np.testing.assert_array_equal(one, other)


def test_names_of_plain_orbax_find_what_a_checkpoint_saved(tmp_path: Path) -> None:
    saved = Model(0)
    path = jaxckpt.Checkpoint(model=saved).write(tmp_path / "x")
    # What plain Orbax restores of an nnx.State without a target.
    target = {
        "layers": {
            str(n): {
                name: {"value": jnp.zeros_like(leaf)}
                for name, leaf in (("kernel", layer.kernel[...]), ("bias", layer.bias[...]))
            }
            for n, layer in enumerate(saved.layers)
        }
    }
    checkpoint = jaxckpt.Checkpoint(model=target)
    checkpoint.restore(path).assert_consumed()
    np.testing.assert_array_equal(checkpoint.model["layers"]["0"]["kernel"]["value"], saved.layers[0].kernel[...])


def test_a_manager_of_jaxckpt_says_what_it_found(tmp_path: Path) -> None:
    run(tmp_path, handler=True)
    with pytest.warns(UserWarning, match="holds Orbax checkpoints") as caught:
        manager = jaxckpt.CheckpointManager(jaxckpt.Checkpoint(**tree(0)), tmp_path, 3)
    assert f"checkpoint.restore('{tmp_path}/10/default')" in str(caught[0].message)
    assert manager.restore_or_initialize() is None
    manager.checkpoint.restore(tmp_path).assert_consumed()
    assert manager.checkpoint.step == 10
    manager.save()
    assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-1")


def test_flax_and_old_orbax_are_recognised(tmp_path: Path, call: Callable[..., Completed]) -> None:
    state = {"w": np.ones(2), "step": 3}
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax" / "checkpoint_3").write_bytes(serialization.msgpack_serialize(state))
    old = tmp_path / "old" / "default"
    old.mkdir(parents=True)
    (old / "checkpoint").write_bytes(serialization.msgpack_serialize(state))
    found = {
        tmp_path
        / "flax": "a directory of Flax checkpoints (checkpoint_3). To convert it, load it with flax.training.checkpoints",
        tmp_path
        / "flax"
        / "checkpoint_3": "a checkpoint of flax.training.checkpoints (msgpack). To convert it, load it with",
        old: f"of Orbax before 0.5 (one msgpack file called checkpoint). To convert it, load it with "
        f"orbax.checkpoint.PyTreeCheckpointer().restore({str(old)!r})",
        tmp_path / "old": "of Orbax before 0.5 (one msgpack file called checkpoint). To convert it, load it",
    }
    for path, said in found.items():
        with pytest.raises(jaxckpt.CheckpointError) as raised:
            jaxckpt.Checkpoint(w=np.zeros(2)).restore(path)
        assert said in str(raised.value)
        assert "Then put the values into a jaxckpt.Checkpoint, and save that." in str(raised.value)
        assert said[:30] in call("inspect", path).stderr
    # The way that is named works.
    converted = ocp.PyTreeCheckpointer().restore(old)
    np.testing.assert_array_equal(converted["w"], np.ones(2))


@pytest.mark.parametrize("linked", ["state/_METADATA", "metrics/metrics"])
def test_a_link_that_leads_out_of_a_step(linked: str, tmp_path: Path) -> None:
    """Every reader says which file it is."""
    with ocp.CheckpointManager(tmp_path / "run", item_names=("state", "metrics")) as manager:
        state = ocp.args.StandardSave({"w": np.zeros(3)})
        manager.save(1, args=ocp.args.Composite(state=state, metrics=ocp.args.JsonSave({"loss": 1.0})))
    path = tmp_path / "run" / "1" / linked
    (tmp_path / "outside").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(jaxckpt.CorruptCheckpointError, match=f"{linked}.*leads out of the checkpoint"):
        if linked == "metrics/metrics":
            jaxckpt.load_checkpoint(tmp_path / "run" / "1").metrics  # noqa: B018
        else:
            jaxckpt.Checkpoint(w=np.ones(3)).restore(tmp_path / "run" / "1")
