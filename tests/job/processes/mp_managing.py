"""Programs with a manager, callbacks and saves in the background."""

from typing import Any

import jax
import mp_values
import numpy as np
from mp_programs import options, outcome, simple

import jaxckpt


def manage(directory: str, io: int | None, asynchronous: bool) -> dict[str, Any]:
    """The life of a manager: retention, numbers, intervals, and what its files say."""
    called: list[str] = []
    given = options(io, asynchronous=asynchronous, experimental_write_callbacks=[called.append])
    checkpoint = simple()
    started: list[int] = []
    manager = jaxckpt.CheckpointManager(
        checkpoint,
        directory,
        2,
        step_counter=lambda: checkpoint.step,
        checkpoint_interval=10,
        init_fn=lambda: started.append(1),
        options=given,
    )
    found: dict[str, Any] = {"first": manager.restore_or_initialize(), "latest of none": manager.latest_checkpoint}
    found["iterated none"] = list(jaxckpt.checkpoints_iterator(directory, timeout=0, options=given))
    saved = []
    for step in range(0, 45, 5):
        checkpoint.step = step
        checkpoint.w = mp_values.spread(np.full((mp_values.SIDE, 4), step, np.float32), "rows")
        saved.append(manager.save())
    manager.sync()
    found |= {"started": started, "saved": saved, "counter": checkpoint.save_counter}
    # The step was saved already.
    found["explicit"] = manager.save(checkpoint_number=70, check_interval=False)
    checkpoint.step = 41
    found["numbered"] = manager.save(checkpoint_number=70, check_interval=False)
    manager.sync()
    found["after"] = checkpoint.save_counter, manager.checkpoints, manager.latest_checkpoint
    state = jaxckpt.get_checkpoint_state(directory, given)
    found["state"] = state.model_checkpoint_path, list(state.all_model_checkpoint_paths)
    found["latest"] = jaxckpt.latest_checkpoint(directory, given)
    found["iterated"] = list(jaxckpt.checkpoints_iterator(directory, timeout=0, options=given))
    found["called"] = called
    return found


def resume(directory: str, io: int | None) -> list[Any]:
    """A later job goes on where the one before ended."""
    checkpoint = simple()
    manager = jaxckpt.CheckpointManager(checkpoint, directory, 2, options=options(io))
    restored = manager.restore_or_initialize()
    assert all((np.asarray(shard.data) == 40).all() for shard in checkpoint.w.addressable_shards)
    saved = manager.save()
    return [restored, checkpoint.step, checkpoint.save_counter, saved, manager.checkpoints]


def manage_by_save(directory: str, io: int, asynchronous: bool) -> list[Any]:
    """A manager made without options, whose saves name the process that has the disk."""
    checkpoint = simple()
    manager = jaxckpt.CheckpointManager(checkpoint, directory, 2, init_fn=lambda: 1 / 0)
    given = options(io, asynchronous=asynchronous)
    seen = []
    for step in range(4):
        checkpoint.step = step
        manager.save(options=given)
        manager.sync()
        seen.append((manager.checkpoints, manager.latest_checkpoint))
    checkpoint.step = -1
    restored = manager.restore_or_initialize()
    return [seen, restored, checkpoint.step]


def failing_callbacks(directory: str, io: int | None, asynchronous: bool, count: int) -> list[Any]:
    """Callbacks that raise: the checkpoint is saved all the same, and every process learns of it."""
    called: list[str] = []

    def bad(path: str) -> None:
        called.append(path)
        raise KeyError(f"told to fail {len(called)}")

    given = options(io, asynchronous=asynchronous, experimental_write_callbacks=[bad] * count + [called.append])
    checkpoint = simple()

    def save() -> None:
        checkpoint.save(directory + "/ckpt", given)
        assert asynchronous
        checkpoint.sync()

    raised = outcome(save)
    latest = jaxckpt.latest_checkpoint(directory, options(0 if io is None else io))
    again = checkpoint.save(directory + "/ckpt", options(io))
    return [raised, called, latest, checkpoint.save_counter, again]


def train_while_saving(directory: str, io: int | None, saves: int = 3) -> int:
    """Steps with collectives and donated buffers go on while a save is under way; it has the values of its step."""
    import functools

    where = mp_values.sharding("rows")
    shape = (240, 512)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=where)
    def step(w: jax.Array) -> jax.Array:
        return w + 1 + 0 * jax.numpy.sum(w)

    w = mp_values.spread(np.zeros(shape, np.float32), "rows")
    host = np.zeros(1000)
    checkpoint = jaxckpt.Checkpoint(w=w, host=host)
    given = options(io, asynchronous=True)
    paths = []
    steps = 0
    for _ in range(saves):
        for _ in range(10):
            checkpoint.w = step(checkpoint.w)
            steps += 1
            host += 1
        paths.append((checkpoint.save(directory + "/ckpt", given), steps))
    for _ in range(10):
        checkpoint.w = step(checkpoint.w)
        host += 1
    checkpoint.sync()
    for path, expected in paths:
        target = jaxckpt.Checkpoint(w=jax.ShapeDtypeStruct(shape, np.float32, sharding=where), host=np.zeros(1000))
        target.restore(path, given).assert_consumed()
        assert all((np.asarray(shard.data) == expected).all() for shard in target.w.addressable_shards), (
            path,
            expected,
        )
        assert (target.host == expected).all()
    return steps


def _zeros() -> jax.Array:
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    return jax.make_array_from_callback(
        (jax.device_count(), 3), sharding, lambda index: np.zeros((jax.device_count(), 3), np.float32)[index]
    )


def example_of_the_documentation(directory: str) -> list[tuple[int, float]]:
    """Runs the first example of docs/processes.md twice, for more steps the second time; returns steps and states at the ends."""
    import re
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "processes.md").read_text(encoding="utf-8")
    (code, *_) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "/local/disk/of/process/2" in code
    found = []
    for steps in (2, 5):
        names: dict[str, Any] = {
            "jaxckpt": jaxckpt,
            "state": {"w": _zeros()},
            "steps": steps,
            "train_step": lambda state: {"w": state["w"] + 1},
        }
        exec(code.replace("/local/disk/of/process/2", directory), names)
        checkpoint = names["checkpoint"]
        found.append((checkpoint.step, float(checkpoint.state["w"].addressable_shards[0].data.ravel()[0])))
    return found
