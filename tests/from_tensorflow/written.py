"""Finds checkpoints of TensorFlow: the golden ones, and those that the installed TensorFlow writes now."""

import fcntl
import functools
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
# The names of the checkpoints that TensorFlow's reader has read; see write.py.
NAMES = [*("tree", "keras3", "keras2", "keras2_legacy", "dtypes", "strings", "partitioned", "small_shards", "sharded")]
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Not in the environment of the tests: Flax imports TensorFlow where it finds it, and the tests must show that jaxckpt does not need it.
PYTHON = HERE.parents[1] / ".venv-tensorflow/bin/python"


@dataclass
class Written:
    """A checkpoint, and what TensorFlow reads from it.

    Attributes:
      prefix: path of the checkpoint.
      values: a numpy array for each key; for strings a list of bytes.
      dtypes: TensorFlow's name of each dtype.
    """

    prefix: Path
    values: dict[str, Any]
    dtypes: dict[str, str]


def read(directory: Path) -> Written:
    """Returns the checkpoint in a directory that write.py has written."""
    document = json.loads((directory / "expected.json").read_text())
    keys = {key: value for key, value in document["keys"].items() if key != GRAPH}
    return Written(
        directory / document["prefix"],
        {key: _value(**found) for key, found in keys.items()},
        {key: found["dtype"] for key, found in keys.items()},
    )


def _value(dtype: str, shape: list[int], content: Any) -> Any:
    if dtype == "string":
        array = np.empty(len(content), object)
        array[:] = [bytes.fromhex(text) for text in content]
        return array.reshape(shape)
    kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype.replace("qint8", "int8"))
    return np.frombuffer(bytes.fromhex(content), kind).reshape(shape)


def python() -> str:
    """Returns the Python that has TensorFlow. Without one, the test is skipped, but fails under `make test`."""
    found = os.environ.get("TENSORFLOW_PYTHON", str(PYTHON))
    if os.path.exists(found):
        return found
    what = f"there is no Python with TensorFlow at {found}; `make {PYTHON.parts[-3]}/installed` makes it"
    if os.environ.get("REQUIRE_TENSORFLOW"):
        pytest.fail(what)
    pytest.skip(what)


def write(directory: Path) -> Path:
    """Lets TensorFlow write all checkpoints, once for all processes of a test run.

    Args:
      directory: a directory that all processes share.

    Returns:
      The directory of the checkpoints.
    """
    program = python()
    target = directory / "tensorflow"
    with open(directory / "tensorflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "done").exists():
            done = subprocess.run(
                [program, HERE / "write.py", target],
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=280,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            (target / "done").touch()
    return target


@functools.cache
def golden(name: str) -> Written:
    """Returns a golden checkpoint."""
    return read(GOLDEN / name)
