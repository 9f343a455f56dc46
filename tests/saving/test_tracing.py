"""Calls inside functions that JAX traces."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import jaxckpt

pytestmark = pytest.mark.sampled

TRACED: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "jit": lambda call: jax.jit(lambda x: (call(), x)[1])(1.0),
    "jit, no argument": lambda call: jax.jit(lambda: (call(), 0)[1])(),
    "scan": lambda call: jax.lax.scan(lambda carry, x: (call(), (carry, x))[1], 1.0, jnp.ones(2)),
    "cond": lambda call: jax.lax.cond(True, lambda: (call(), 1)[1], lambda: 2),
    "eval_shape": lambda call: jax.eval_shape(lambda: (call(), 1)[1]),
    "make_jaxpr": lambda call: jax.make_jaxpr(lambda: (call(), 1)[1])(),
    "vmap of jit": lambda call: jax.vmap(jax.jit(lambda x: (call(), x)[1]))(jnp.ones(2)),
    "jit of grad": lambda call: jax.jit(jax.grad(lambda x: (call(), x)[1]))(1.0),
}


def disabled(call: Callable[[], Any]) -> None:
    with jax.disable_jit():
        jax.jit(lambda x: (call(), x)[1])(1.0)


def compile_time(call: Callable[[], Any]) -> None:
    @jax.jit
    def function(x: Any) -> Any:
        with jax.ensure_compile_time_eval():
            call()
        return x

    function(1.0)


def with_callback(callback: Callable[..., Any]) -> Callable[[Callable[[], Any]], None]:
    def run(call: Callable[[], Any]) -> None:
        jax.block_until_ready(jax.jit(lambda x: callback(call, x))(jnp.ones(())))
        jax.effects_barrier()

    return run


SHAPE = jax.ShapeDtypeStruct((), np.float32)
# Here the function is called each time.
NOT_TRACED: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "nothing": lambda call: call(),
    "grad": lambda call: jax.grad(lambda x: (call(), x)[1])(1.0),
    "vmap": lambda call: jax.vmap(lambda x: (call(), x)[1])(jnp.ones(2)),
    "disable_jit": disabled,
    "ensure_compile_time_eval": compile_time,
    "debug.callback": with_callback(lambda call, x: (jax.debug.callback(lambda _: call() and None, x), x)[1]),
    "io_callback": with_callback(
        lambda call, x: io_callback(lambda y: (call(), np.asarray(y))[1], SHAPE, x, ordered=True)
    ),
    "pure_callback": with_callback(lambda call, x: jax.pure_callback(lambda y: (call(), np.asarray(y))[1], SHAPE, x)),
}


def calls(directory: Path) -> dict[str, Callable[[], Any]]:
    path = jaxckpt.Checkpoint(x=jnp.ones(2)).write(directory / "there")
    checkpoint = jaxckpt.Checkpoint(x=jnp.zeros(2))
    manager = jaxckpt.CheckpointManager(checkpoint, directory / "m", 3)
    steps = jaxckpt.CheckpointManager(
        jaxckpt.Checkpoint(x=1), directory / "s", 3, step_counter=lambda: 1, checkpoint_interval=10
    )
    steps.save()
    return {
        "save": lambda: checkpoint.save(directory / "c"),
        "write": lambda: checkpoint.write(directory / "w"),
        "restore": lambda: checkpoint.restore(path),
        "read": lambda: checkpoint.read(path),
        "manager.save": manager.save,
        "manager.save, not due": steps.save,
        "manager.restore_or_initialize": manager.restore_or_initialize,
    }


@pytest.mark.parametrize("transform", TRACED)
def test_concrete_values_in_a_function_that_is_traced(transform: str, tmp_path: Path) -> None:
    for name, call in calls(tmp_path).items():
        action = name.split(".")[-1].split(",")[0]
        with pytest.raises(TypeError, match=rf"^{action} was called inside a function that JAX traces.*once") as raised:
            TRACED[transform](call)
        assert "io_callback" in str(raised.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s", "there"]


@pytest.mark.parametrize("context", NOT_TRACED)
def test_where_it_happens_each_time(context: str, tmp_path: Path) -> None:
    done: list[str] = []
    possible = calls(tmp_path)
    possible["restore"] = lambda: jaxckpt.Checkpoint(x=np.zeros(2, np.float32)).restore(str(tmp_path / "there"))
    for name in ("save", "restore", "manager.save"):

        def call(name: str = name) -> Any:
            done.append(name)
            return possible[name]()

        NOT_TRACED[context](call)
    assert done == ["save", "restore", "manager.save"]
    assert (tmp_path / "c-1").is_dir()
    assert (tmp_path / "m").is_dir()


def test_a_transfer_guard(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(x=np.ones(2))

    def function(x: Any) -> Any:
        checkpoint.save(tmp_path / "c")
        return x

    with jax.transfer_guard("disallow"):
        jax.vmap(function)(jax.device_put(np.ones(2)))
    assert (tmp_path / "c-1").is_dir()
