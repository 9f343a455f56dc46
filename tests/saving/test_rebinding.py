"""The warning for a program that updates its variables, and not the Checkpoint."""

import gc
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxckpt

pytestmark = pytest.mark.sampled

ASYNC = jaxckpt.CheckpointOptions(enable_async=True)


def state() -> dict[str, Any]:
    params = {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}
    return {"params": params, "opt": optax.adam(0.1).init(params), "key": jax.random.key(0)}


def update(values: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.number) else leaf, values)


class Position:
    def __init__(self) -> None:
        self.at = 0

    def get_state(self) -> int:
        return self.at

    def set_state(self, state: int) -> None:
        self.at = state


def with_step(checkpoint: jaxckpt.Checkpoint, directory: Path) -> Iterator[None]:
    """Saves with a step of the Checkpoint's own."""
    for step in itertools.count():
        checkpoint.step = step
        checkpoint.save(directory / "c")
        yield


def with_array_step(checkpoint: jaxckpt.Checkpoint, directory: Path) -> Iterator[None]:
    for step in itertools.count():
        checkpoint.global_step = jnp.asarray(step)
        checkpoint.write(directory / f"c{step}", ASYNC)
        yield


def with_manager(checkpoint: jaxckpt.Checkpoint, directory: Path) -> Iterator[None]:
    steps = itertools.count()
    manager = jaxckpt.CheckpointManager(checkpoint, directory, 2, step_counter=lambda: next(steps))
    while True:
        manager.save()
        yield


def with_interval(checkpoint: jaxckpt.Checkpoint, directory: Path) -> Iterator[None]:
    step = 0
    manager = jaxckpt.CheckpointManager(checkpoint, directory, 2, step_counter=lambda: step, checkpoint_interval=1)
    while True:
        step += 1
        manager.save(options=ASYNC)
        yield


WAYS = [with_step, with_array_step, with_manager, with_interval]


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_forgot_to_tell(way: Callable[..., Iterator[None]], tmp_path: Path) -> None:
    values = state()
    checkpoint = jaxckpt.Checkpoint(**values, loss=0.5)
    saves = way(checkpoint, tmp_path)
    next(saves)
    values = update(values)
    checkpoint.loss = 0.25
    with pytest.warns(UserWarning, match=r"checkpoint.params = params") as caught:
        next(saves)
    assert [warning.filename for warning in caught] == [__file__]
    # Once.
    for _ in range(2):
        next(saves)
    checkpoint.close()
    stored = jaxckpt.load_checkpoint(max(tmp_path.glob("c*[0-9]")))
    np.testing.assert_array_equal(stored.get_tensor("params/b"), np.zeros(2))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["told", "one leaf", "numpy", "iterator", "restored", "nnx"])
def test_no_false_alarm(way: Callable[..., Iterator[None]], case: str, tmp_path: Path) -> None:
    values = state()
    iterator = Position()
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    if case == "nnx":
        values = {"model": model}
    if case == "iterator":
        values["data"] = iterator
    if case == "numpy":
        values["ema"] = np.zeros(2)
    checkpoint = jaxckpt.Checkpoint(**values)
    path = checkpoint.write(tmp_path / "first")
    saves = way(checkpoint, tmp_path)
    next(saves)
    for _ in range(2):
        match case:
            case "told":
                checkpoint.params = values["params"] = update(values["params"])
            case "one leaf":
                checkpoint.opt = (checkpoint.opt[0]._replace(count=checkpoint.opt[0].count + 1), *checkpoint.opt[1:])
            case "numpy":
                values["ema"] += 1
            case "iterator":
                iterator.at += 1
            case "restored":
                checkpoint.read(path).expect_partial()
            case "nnx":
                model.bias.set_value(model.bias.get_value() + 1)
        next(saves)
    checkpoint.close()


def test_no_false_alarm_without_a_step_that_moves(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(**state(), step=3, note="x")
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, 3, step_counter=lambda: 3)
    for _ in range(3):
        manager.save()
        checkpoint.write(tmp_path / "copy")
    plain = jaxckpt.Checkpoint(**state())
    counters = jaxckpt.Checkpoint(steps_of_all=jnp.arange(3), step=0)
    for step in range(3):
        plain.save(tmp_path / "plain")
        counters.step = step
        counters.save(tmp_path / "counters")


@pytest.mark.slow
def test_arrays_at_the_addresses_of_others(tmp_path: Path) -> None:
    """What has died is not taken for what has its address now."""
    checkpoint = jaxckpt.Checkpoint(params=None, step=0)
    for step in range(50):
        checkpoint.params = None
        checkpoint.params = jnp.full(2, float(step))
        checkpoint.step = step
        checkpoint.write(tmp_path / "c")


def test_nothing_is_kept_alive(tmp_path: Path) -> None:
    array = jnp.ones(2)
    checkpoint = jaxckpt.Checkpoint(params=array, step=0)
    checkpoint.save(tmp_path / "c")
    kept = weakref.ref(array)
    del array, checkpoint.params
    gc.collect()
    assert kept() is None


def test_the_checkpoint_is_saved_where_the_warning_is_an_error(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(params=jnp.ones(2), step=0)
    checkpoint.save(tmp_path / "c")
    checkpoint.step = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="very same object"):
            checkpoint.save(tmp_path / "c")
    assert checkpoint.save_counter == 2
    assert jaxckpt.load_variable(tmp_path / "c-2", "step") == 1
    checkpoint.step = 2
    assert checkpoint.save(tmp_path / "c").endswith("c-3")
