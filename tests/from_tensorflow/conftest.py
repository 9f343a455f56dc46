"""Checkpoints of TensorFlow for the tests of this directory: golden ones, and new ones, which need TensorFlow."""

from pathlib import Path

import pytest
from from_tensorflow import written


@pytest.fixture(scope="session", params=["golden", pytest.param("new", marks=pytest.mark.slow)])
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the checkpoints. Tests must not change it."""
    if request.param == "golden":
        return written.GOLDEN
    base = tmp_path_factory.getbasetemp()
    # The processes of one test run have directories below one.
    return written.write(base.parent if base.name.startswith("popen-") else base)
