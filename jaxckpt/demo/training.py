"""The model that the demo trains: a small classifier of handwritten digits.

This is ordinary Flax NNX and optax code, which knows nothing about checkpoints.
"""

from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxckpt.demo.settings import TrainingConfig

_TEST_EXAMPLES = 360


@dataclass(frozen=True)
class Examples:
    """Images and their digits.

    Attributes:
      images: float32 of shape (examples, 64), from 0 to 1.
      labels: the digits, int32 of shape (examples,).
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def digits() -> tuple[Examples, Examples]:
    """Returns the training examples and the test examples, which are always the same."""
    # Imported here, because it takes longer than the rest of the program, and only those who train need it.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    parts = order[:-_TEST_EXAMPLES], order[-_TEST_EXAMPLES:]
    train, test = (Examples((images[part] / 16).astype(np.float32), labels[part].astype(np.int32)) for part in parts)
    return train, test


class Batches:
    """An endless stream of shuffled batches, whose position can be saved and restored.

    `get_state` and `set_state` make the stream part of a checkpoint, so that a resumed run sees the same examples in the
    same order as an uninterrupted run. The order of an epoch depends only on the seed and the number of the epoch.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        """Starts at the first batch of the first epoch.

        Args:
          examples: the training examples.
          batch_size: number of examples in a batch.
          seed: seed of the order.

        Raises:
          ValueError: a batch is larger than the number of examples.
        """
        if batch_size > len(examples):
            raise ValueError(
                f"training.batch_size must be at most the number of examples, {len(examples)}; got {batch_size}."
            )
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self._examples))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        # The last examples of an epoch are skipped if they do not fill a batch.
        if self._position + self._batch_size > len(self._examples):
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._shuffled()
        chosen = self._order[self._position : self._position + self._batch_size]
        self._position += self._batch_size
        return self._examples.images[chosen], self._examples.labels[chosen]

    def get_state(self) -> dict[str, int]:
        """Returns the position of the stream."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves the stream to a position.

        Args:
          state: the result of `get_state` of a stream with the same seed.

        Raises:
          ValueError: the position is that of a stream with another seed.
        """
        if state["seed"] != self._seed:
            raise ValueError(
                f"The checkpoint comes from a run with seed {state['seed']}, but training.seed is {self._seed}. "
                "Use that seed, or another --dir."
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffled()


class Classifier(nnx.Module):
    """A network: 64 pixels → hidden units → 10 digits."""

    def __init__(self, hidden: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        """Makes the layers.

        Args:
          hidden: number of hidden units.
          dropout: fraction of the hidden units that a training step leaves out.
          rngs: random numbers for the initial weights and for dropout.
        """
        self.hidden = nnx.Linear(64, hidden, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.output = nnx.Linear(hidden, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits, of shape (examples, 10), for images of shape (examples, 64)."""
        return self.output(self.dropout(nnx.relu(self.hidden(images))))


def mesh() -> Mesh:
    """Returns the devices to train on: those of all processes, or only the first one if there is a single process."""
    return Mesh(np.array(jax.devices() if jax.process_count() > 1 else jax.devices()[:1]), ("data",))


def spread(values: np.ndarray, mesh: Mesh) -> jax.Array:
    """Returns a batch, which every process has in full, as an array whose examples are divided over the devices of `mesh`."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _constrain(node: nnx.Module | nnx.Optimizer[Any], mesh: Mesh) -> None:
    """Divides weights and moments over the devices along an axis that is divisible by their number. Others are on all devices."""
    if mesh.size == 1:
        return

    def constrained(value: jax.Array) -> jax.Array:
        sizes = [size if size % mesh.size == 0 else 0 for size in value.shape]
        longest = sizes.index(max(sizes)) if any(sizes) else -1
        spec = PartitionSpec(*("data" if axis == longest else None for axis in range(value.ndim)))
        placed: jax.Array = jax.lax.with_sharding_constraint(value, NamedSharding(mesh, spec))
        return placed

    nnx.update(node, jax.tree.map(constrained, nnx.state(node)))


# Compiled once as a whole, instead of once for every operation.
@nnx.jit(static_argnums=(0, 1))
def new_model(config: TrainingConfig, mesh: Mesh) -> tuple[Classifier, nnx.Optimizer[Classifier]]:
    """Returns a model with initial weights, and its optimizer, divided over the devices of `mesh`."""
    model = Classifier(config.hidden, config.dropout, rngs=nnx.Rngs(config.seed))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.peak_learning_rate,
        config.warmup_steps,
        config.decay_steps,
        end_value=config.peak_learning_rate / 100,
    )
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=config.weight_decay), wrt=nnx.Param)
    _constrain(model, mesh)
    _constrain(optimizer, mesh)
    return model, optimizer


@nnx.jit(static_argnums=4, donate_argnums=(0, 1))
def train_step(
    model: Classifier, optimizer: nnx.Optimizer[Classifier], images: Any, labels: Any, mesh: Mesh
) -> jax.Array:
    """Does one training step in place, and returns the loss. Old weights and moments are donated, so their memory is reused."""

    def mean_loss(model: Classifier) -> jax.Array:
        mean: jax.Array = optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()
        return mean

    loss: jax.Array
    loss, gradients = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradients)
    _constrain(model, mesh)
    _constrain(optimizer, mesh)
    return loss


def accuracy(model: Classifier, examples: Examples, mesh: Mesh) -> float:
    """Returns the fraction of the examples that the model classifies correctly. Switches dropout off."""
    # Flax does not annotate this method.
    model.eval()  # type: ignore[no-untyped-call]
    return float(np.mean(_right(model, examples.images, examples.labels, mesh)))


@nnx.jit(static_argnums=3)
def _right(model: Classifier, images: Any, labels: Any, mesh: Mesh) -> jax.Array:
    right: jax.Array = jnp.argmax(model(images), axis=-1) == labels
    # Every process computes the fraction, so each needs the whole array.
    return right if mesh.size == 1 else jax.lax.with_sharding_constraint(right, NamedSharding(mesh, PartitionSpec()))
