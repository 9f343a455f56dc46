"""What every test relies on: JAX on the CPU, and no time limits for examples of Hypothesis (machines may be busy)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# Before JAX is imported. Several devices, so that shardings can be tested in one process.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

hypothesis.settings.register_profile("jaxckpt", deadline=None, print_blob=True)
hypothesis.settings.load_profile("jaxckpt")

Completed = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def cli_command() -> tuple[list[str], dict[str, str]]:
    """The command line as users run it: how its arguments begin, and its environment. Warnings are errors in it."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", "XLA_FLAGS": ""}
    return [sys.executable, "-m", "jaxckpt"], environment


@pytest.fixture(scope="session")
def cli(cli_command: tuple[list[str], dict[str, str]]) -> Callable[..., Completed]:
    """Runs the command line in a process of its own: ``cli("inspect", path)``."""
    command, environment = cli_command

    def run(*arguments: object, **options: object) -> Completed:
        return subprocess.run(
            [*command, *map(str, arguments)],
            env={**os.environ, **environment},  # A test may have set something since.
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    return run
