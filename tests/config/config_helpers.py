"""What the tests of config files share: functions that import paths name, and the problems of a config."""

import errno
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from examples import examples
from orbax.checkpoint import checkpoint_managers

from jaxckpt import CheckpointConfig, CheckpointOptions, ConfigError, load_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
COUNT = "checkpoint_interval: expected a positive whole number, or null, got "
MINIMAL = {"directory": "ckpts", "max_to_keep": 3}
EXAMPLES = hypothesis.settings(
    max_examples=examples(200), suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


def upload(path: str) -> None:
    """A write callback that an import path can name."""


def no_argument() -> None:
    """A write callback, an init_fn."""


def two_arguments(one: object, two: object) -> None:
    """Not a write callback."""


def step() -> int:
    return 7


STEP = np.array(12)


class Notifier:
    """A factory of write callbacks; equal to its like, and a record of its arguments."""

    def __init__(self, channel: str, mention: bool = False) -> None:
        self.channel, self.mention = channel, mention

    def __call__(self, path: str) -> None:
        """The write callback."""

    @classmethod
    def quiet(cls) -> "Notifier":
        return cls("quiet")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Notifier) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def nothing() -> None:
    """A factory that forgot its return."""


def failing() -> None:
    raise OSError(errno.EIO, "no connection")


def exiting() -> None:
    sys.exit(3)


HERE = __name__


def config_of(**values: Any) -> CheckpointConfig:
    return load_config({**MINIMAL, **values})


def options_of(**options: Any) -> CheckpointOptions:
    return config_of(options=options).options


def problems_of(source: Any, overrides: Any = (), **arguments: Any) -> list[str]:
    """The problems, one by one."""
    with pytest.raises(ConfigError) as info:
        load_config(source, overrides, **arguments)
    lines = str(info.value).splitlines()
    if len(lines) == 1:
        return lines
    assert re.match(rf"{len(lines) - 1} problems in ", lines[0])
    return [line.removeprefix("  ") for line in lines[1:]]


def written(directory: Path, text: str, name: str = "run.yaml") -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(text))
    return path


def yaml_problems(directory: Path, text: str) -> list[str]:
    """The problems of a YAML file, with the name of its directory left out."""
    path = written(directory, text)
    return [line.replace(f"{directory}{os.sep}", "") for line in problems_of(path)]


def best() -> object:
    return checkpoint_managers.BestN(n=2, get_metric_fn=lambda metrics: metrics["loss"])


KEEPS_ALL = checkpoint_managers.LatestN()
