"""The program that is preempted, and the values that it computes."""

import os

import jax
import jax.numpy as jnp
import numpy as np

import jaxckpt

ELEMENTS = 1 << 18
_INTERVAL = 5


def expected(step: int) -> np.ndarray:
    """Returns the values after so many steps."""
    values = np.arange(ELEMENTS, dtype=np.uint32)
    for _ in range(step):
        values = values * np.uint32(1664525) + np.uint32(1013904223)
    return values


@jax.jit
def _step(values: jax.Array) -> jax.Array:
    return values * jnp.uint32(1664525) + jnp.uint32(1013904223)


def train(directory: str, log: str) -> None:
    """Trains until SIGTERM ends it.

    Args:
      directory: of the checkpoints.
      log: path of a file, to whose name the index of the process is added. It gets a line when a step is complete, or -1 and the step of
        the restored checkpoint when the program is ready.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    start = expected(0)
    values = jax.make_array_from_callback(start.shape, sharding, lambda index: start[index])
    checkpoint = jaxckpt.Checkpoint(values=values, step=0)
    manager = jaxckpt.CheckpointManager(
        checkpoint,
        directory,
        2,
        step_counter=lambda: checkpoint.step,
        checkpoint_interval=_INTERVAL,
        numbers="step",
        options=jaxckpt.CheckpointOptions(enable_async=True),
    )
    handler = jaxckpt.PreemptionCheckpointHandler(manager)
    manager.restore_or_initialize()
    file = os.open(f"{log}-{jax.process_index()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"-1 {checkpoint.step}\n".encode())
    while True:
        checkpoint.values = _step(checkpoint.values)
        jax.block_until_ready(checkpoint.values)
        checkpoint.step += 1
        os.write(file, f"{checkpoint.step}\n".encode())
        manager.save()
        handler.save_checkpoint_if_preempted()


def ended_by(status: int) -> str:
    """Returns a text for the exit status of a process."""
    return f"signal {-status}" if status < 0 else f"status {status}"
