"""``jaxckpt inspect``."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxckpt
from jaxckpt.cli import main


@pytest.fixture
def directory(tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec("x", None)
    values = {
        "layers": [jnp.full((2, 3), number, jnp.bfloat16) for number in range(11)],
        "sharded": jax.device_put(np.arange(32, dtype=np.float32).reshape(8, 4), jax.NamedSharding(mesh, spec)),
        "host": np.zeros((5,), np.int8),
        "key": jax.random.key(0),
        "name": "grüß",
        "raw": b"\0\1\2",
        "a/b": 1.5,
    }
    jaxckpt.Checkpoint(model=values, step=7).save(tmp_path / "ckpt")
    return tmp_path


def test_text(call, directory):
    done = call("inspect", directory / "ckpt-1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{directory}/ckpt-1"
    cells = {line.split()[0]: line.split() for line in lines[1:]}
    assert cells["sharded"][1:4] == ["(8,", "4)", "float32"]
    assert "NamedSharding(x=4, y=2; PartitionSpec('x', None))" in done.stdout
    assert cells["host"] == ["host", "(5,)", "int8", "5", "B", "np.ndarray"]
    assert cells["key"][-3:] == ["PRNG", "key", "(threefry2x32)"]
    assert cells["name"] == ["name", "6", "B", "str"]
    assert cells["raw"][-1] == "bytes"
    assert cells["a~1b"][-1] == "scalar"
    assert [line.strip().split()[0] for line in lines if "bfloat16" in line] == [str(index) for index in range(11)]
    total = 11 * 12 + 128 + 5 + 8 + 6 + 3 + 8 + 8 + 8
    assert lines[-1].startswith(f"19 leaves, {total} B ({total} bytes)")


def test_json(directory, capsys):
    assert main(["inspect", "--json", str(directory)]) == 0  # The directory stands for its latest.
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == f"{directory}/ckpt-1"
    leaves = {leaf["name"]: leaf for leaf in found["leaves"]}
    assert set(leaves) == set(jaxckpt.load_checkpoint(directory / "ckpt-1").keys())
    assert leaves["model/layers/10"]["shape"] == [2, 3]
    assert leaves["model/layers/10"]["dtype"] == "bfloat16"
    assert leaves["model/layers/10"]["bytes"] == 12
    assert leaves["model/sharded"]["sharding"]["partition_spec"] == ["x", None]
    assert leaves["model/key"]["key_impl"] == "threefry2x32"
    assert leaves["model/name"]["dtype"] is None
    assert found["total"]["leaves"] == len(leaves)
    assert found["total"]["bytes"] == sum(leaf["bytes"] for leaf in leaves.values())
    assert found["total"]["bytes_on_disk"] > found["total"]["bytes"]


def test_a_checkpoint_of_plain_orbax(tmp_path, capsys):
    path = tmp_path / "plain"
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, {"w": jnp.ones((3,)), "n": 4})
    assert main(["inspect", "--json", str(path)]) == 0
    leaves = {leaf["name"]: leaf for leaf in json.loads(capsys.readouterr().out)["leaves"]}
    assert leaves["w"]["shape"] == [3]
    assert set(leaves) == {"w", "n"}


def test_an_empty_checkpoint(tmp_path, capsys):
    path = jaxckpt.Checkpoint().write(tmp_path / "empty")
    assert main(["inspect", path]) == 0
    assert "1 leaf, 8 B" in capsys.readouterr().out  # save_counter


def test_a_directory_without_checkpoints(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
