"""Real loops with jaxckpt's handlers: killed, resumed, the same losses bit for bit; and plain Orbax goes on from their checkpoints."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import jaxckpt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROGRAM = Path(__file__).parent / "training_loops.py"


def run(loop: str, directory: Path, engine: str, steps: int, *kill_at: int) -> dict[int, str]:
    """Runs a loop; returns the loss of each step."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(PROGRAM),
        loop,
        str(directory),
        engine,
        str(steps),
        *map(str, kill_at),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
    return {int(step): loss for step, loss in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize("loop", ["maxtext", "flax_linen", "flax_nnx"])
def test_a_killed_loop_resumes_bit_for_bit_and_plain_orbax_goes_on(tmp_path: Path, loop: str) -> None:
    expected = run(loop, tmp_path / "plain", "plain", 11)
    assert sorted(expected) == list(range(1, 12))
    killed = run(loop, tmp_path / "ours", "jaxckpt", 11, 6)
    assert killed == {step: expected[step] for step in range(1, 7)}
    resumed = run(loop, tmp_path / "ours", "jaxckpt", 11)
    # Whether the save of step 6 was committed when the kill came is not known.
    assert min(resumed) in (4, 7)
    assert resumed == {step: expected[step] for step in range(min(resumed), 12)}
    found = {each.parent.relative_to(tmp_path / "ours").parts[0] for each in (tmp_path / "ours").rglob("_JAXCKPT")}
    newest = max(found, key=lambda name: int(name.rpartition("_")[2]))
    assert newest.endswith("9")
    # Plain Orbax goes on from there, with the program's own target.
    assert run(loop, tmp_path / "ours", "plain", 11) == {10: expected[10], 11: expected[11]}
    step = tmp_path / "ours" / newest
    assert jaxckpt.verify(step).ok
    _assert_same(step, tmp_path / "plain" / newest)


def _assert_same(ours: Path, theirs: Path) -> None:
    """Everything that reads them finds the same values, bit for bit, in what jaxckpt and what plain Orbax have written."""
    one, other = jaxckpt.load_checkpoint(ours), jaxckpt.load_checkpoint(theirs)
    assert one.keys() == other.keys()
    for name in one.keys():
        np.testing.assert_array_equal(one.get_tensor(name), other.get_tensor(name))
    item = next(ours.rglob("_METADATA")).parent.relative_to(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (_v0, _v1):
            left, right = read(ours, item), read(theirs, item)
            for (path, here), (_, there) in zip(
                ocp.tree.to_flat_dict(left).items(), ocp.tree.to_flat_dict(right).items(), strict=True
            ):
                np.testing.assert_array_equal(_data(here), _data(there), str(path))


def _data(value: Any) -> np.ndarray:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def _v0(step: Path, item: Path) -> object:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(step / item)


def _v1(step: Path, item: Path) -> object:
    return v1.load(step, checkpointable_name=item.name or None)
