"""The demo's config file: a section `training` for the demo itself, and a section `checkpoint` for jaxckpt."""

import importlib.resources
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_type_hints

from jaxckpt import CheckpointConfig, load_config
from jaxckpt.config.kinds import Only, PositiveFloat, PositiveInt, fits, words
from jaxckpt.config.problems import UNUSABLE, close_name, config_error
from jaxckpt.config.sources import Source

Count = Annotated[int, Only("a whole number that is not negative", lambda value: value >= 0)]
Rate = Annotated[float, Only("a number from 0 up to, but not including, 1", lambda value: 0 <= value < 1)]


@dataclass(frozen=True)
class TrainingConfig:
    """How the demo trains.

    Attributes:
      steps: total number of training steps, including those of earlier runs.
      seed: seed of the initial weights, of dropout, and of the order of the data.
      batch_size: number of examples in a step.
      hidden: number of units of the hidden layer.
      dropout: fraction of the hidden units that a training step leaves out.
      peak_learning_rate: the highest learning rate.
      warmup_steps: number of steps until the learning rate reaches its peak.
      decay_steps: number of steps until it has fallen to nearly 0.
      weight_decay: weight decay of AdamW.
    """

    steps: PositiveInt = 600
    seed: Count = 0
    batch_size: PositiveInt = 256
    hidden: PositiveInt = 512
    dropout: Rate = 0.2
    peak_learning_rate: PositiveFloat = 0.003
    warmup_steps: PositiveInt = 50
    decay_steps: PositiveInt = 600
    weight_decay: Rate = 0.001


def load(
    path: str | None, *, steps: int | None, directory: str | None, io_device: str | int | None = None
) -> tuple[TrainingConfig, CheckpointConfig]:
    """Loads a config of the demo.

    Args:
      path: path of a YAML or TOML file; None for the file that comes with jaxckpt.
      steps: overrides ``training.steps``, unless it is None.
      directory: overrides ``checkpoint.directory``, unless it is None.
      io_device: overrides ``checkpoint.options.experimental_io_device``, unless it is None.

    Raises:
      ConfigError: the file has mistakes.
      OSError: the file cannot be read.
    """
    if path is None:
        with importlib.resources.as_file(importlib.resources.files(__package__) / "demo.yaml") as file:
            return load(str(file), steps=steps, directory=directory, io_device=io_device)
    training = _training(Source(path, {} if steps is None else {"steps": steps}, "training"))
    overrides: dict[str, Any] = {"directory": directory, "options.experimental_io_device": io_device}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    return training, load_config(path, overrides, section="checkpoint")


def divisible(training: TrainingConfig, devices: int) -> TrainingConfig:
    """Returns a config whose batches and hidden layer can be divided evenly over devices.

    Batches become smaller, by as little as possible, and the hidden layer larger.

    Args:
      training: the config.
      devices: number of devices.

    Raises:
      ValueError: there are more devices than examples in a batch.
    """
    batch_size = training.batch_size - training.batch_size % devices
    if batch_size == 0:
        raise ValueError(
            f"training.batch_size is {training.batch_size}: too small for {devices} processes, which share each batch."
        )
    return replace(training, batch_size=batch_size, hidden=training.hidden + -training.hidden % devices)


def _training(source: Source) -> TrainingConfig:
    known = get_type_hints(TrainingConfig, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in source.data.items():
        path = (key,)
        if value is UNUSABLE:
            continue
        if not isinstance(key, str) or key not in known:
            source.add(path, f"unknown key{close_name(str(key), known)}; the keys here are {', '.join(known)}")
        elif not fits(known[key], value):
            source.add(path, f"expected {words(known[key])}, got {source.got(path, value)}")
        else:
            values[key] = value
    training = TrainingConfig(**values)
    if training.decay_steps <= training.warmup_steps:
        source.add(
            ("decay_steps",),
            f"expected more than warmup_steps, got {source.got(('decay_steps',), training.decay_steps)}",
        )
    if source.problems:
        raise config_error(source.problems, source.name)
    return training
