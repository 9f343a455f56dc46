"""Training loops that keep their Orbax code, as programs: ``python training_loops.py LOOP DIRECTORY ENGINE STEPS [KILL_AT]``.

ENGINE is "plain", or "jaxckpt" for the one line of difference. A loop goes on from its latest checkpoint, prints the loss of every step,
and with KILL_AT dies by SIGKILL right after it has begun to save that step.
"""

import os
import signal
import sys
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen, nnx
from flax.training import checkpoints, train_state

import jaxckpt

EVERY = 3
FEATURES = 16


class Killed:
    """Tells when the loop is to die."""

    def __init__(self, at: int | None) -> None:
        self._at = at

    def after(self, step: int) -> None:
        if step == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def batches() -> Any:
    """An endless data set. Its iterator has a state."""
    source = grain.MapDataset.range(1000).shuffle(seed=3).repeat()
    return iter(source.map(lambda number: np.sin(np.arange(FEATURES) * (1 + number))).to_iter_dataset().batch(4))


def report(step: int, loss: Any) -> None:
    print(step, float(loss).hex(), flush=True)


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(1)(linen.relu(linen.Dense(64)(x)))


def new_state() -> train_state.TrainState:
    model = Dense()
    params = model.init(jax.random.key(0), jnp.ones((1, FEATURES)))
    return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(1e-2))


@jax.jit
def train_step(state: train_state.TrainState, batch: Any) -> tuple[train_state.TrainState, Any]:
    def loss_fn(params: Any) -> Any:
        return jnp.mean((state.apply_fn(params, batch)[:, 0] - batch.sum(1)) ** 2)

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss


def maxtext(directory: str, engine: str, steps: int, killed: Killed) -> None:
    """As MaxText: sharded state and data iterator in named items, asynchronous; and the best steps are kept."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))

    def sharding(leaf: Any) -> Any:
        divided = leaf.ndim > 0 and leaf.shape[0] % 2 == 0
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*(("data",) if divided else ())))

    state = jax.tree.map(lambda leaf: jax.device_put(jnp.asarray(leaf), sharding(jnp.asarray(leaf))), new_state())
    iterator = batches()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=3, best_fn=lambda metrics: metrics["loss"], best_mode="min", keep_checkpoints_without_metrics=False
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    if engine == "jaxckpt":
        handler = jaxckpt.orbax.PyTreeHandler()
    handlers = {"items": handler, "iter": grain.checkpoint.CheckpointHandler()}
    with ocp.CheckpointManager(
        directory, item_names=("items", "iter"), item_handlers=handlers, options=options
    ) as manager:
        if (latest := manager.latest_step()) is not None:
            arguments = ocp.checkpoint_utils.construct_restore_args(state)
            restored = manager.restore(
                latest,
                args=ocp.args.Composite(
                    items=ocp.args.PyTreeRestore(state, restore_args=arguments),
                    iter=grain.checkpoint.CheckpointRestore(iterator),
                ),
            )
            state, iterator = restored["items"], restored["iter"]
        for step in range(int(state.step) + 1, steps + 1):
            state, loss = train_step(state, next(iterator))
            report(step, loss)
            if step % EVERY == 0:
                items = ocp.args.Composite(
                    items=ocp.args.PyTreeSave(state), iter=grain.checkpoint.CheckpointSave(iterator)
                )
                manager.save(step, args=items, metrics={"loss": -float(step)})
                killed.after(step)


def flax_linen(directory: str, engine: str, steps: int, killed: Killed) -> None:
    """As Flax's imagenet example: `flax.training.checkpoints`, with one argument more."""
    more = {}
    if engine == "jaxckpt":
        more = {"orbax_checkpointer": jaxckpt.to_orbax(jaxckpt.CheckpointOptions(enable_async=True)).checkpointer()}
    state = checkpoints.restore_checkpoint(directory, new_state(), **more)
    iterator = batches()
    for _ in range(int(state.step)):
        next(iterator)
    for step in range(int(state.step) + 1, steps + 1):
        state, loss = train_step(state, next(iterator))
        report(step, loss)
        if step % EVERY == 0:
            checkpoints.save_checkpoint(directory, state, step, keep=2, **more)
            killed.after(step)
    if more:
        more["orbax_checkpointer"].close()


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(FEATURES, 64, rngs=rngs), nnx.Linear(64, 1, rngs=rngs)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        first, second = self.layers
        return second(self.dropout(nnx.relu(first(x))))


@nnx.jit
def nnx_step(model: Model, optimizer: Any, batch: Any) -> Any:
    loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(batch)[:, 0] - batch.sum(1)) ** 2))(model)
    optimizer.update(model, gradients)
    return loss


def flax_nnx(directory: str, engine: str, steps: int, killed: Killed) -> None:
    """As Flax's NNX examples: `nnx.state`, saved with StandardSave by a manager without named items."""
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    whole = (model, optimizer)
    handler = jaxckpt.orbax.StandardHandler() if engine == "jaxckpt" else ocp.StandardCheckpointHandler()
    first = 1
    with ocp.CheckpointManager(directory, item_handlers=handler) as manager:
        if (latest := manager.latest_step()) is not None:
            nnx.update(whole, manager.restore(latest, args=ocp.args.StandardRestore(nnx.state(whole))))
            first = latest + 1
        iterator = batches()
        for _ in range(first - 1):
            next(iterator)
        for step in range(first, steps + 1):
            report(step, nnx_step(model, optimizer, jnp.asarray(next(iterator), jnp.float32)))
            if step % EVERY == 0:
                manager.save(step, args=ocp.args.StandardSave(nnx.state(whole)))
                killed.after(step)


LOOPS = {each.__name__: each for each in (maxtext, flax_linen, flax_nnx)}

if __name__ == "__main__":
    name, path, kind, last, *rest = sys.argv[1:]
    LOOPS[name](path, kind, int(last), Killed(int(rest[0]) if rest else None))
