"""The command line, called in the process of the tests, which is much faster than starting a process."""

import subprocess
from collections.abc import Callable

import pytest

from jaxckpt.cli import main


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Calls the command line: ``call("inspect", path)``. Returns what a process would have returned and printed."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        capsys.readouterr()
        code = main([*map(str, arguments)])
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return run
