"""With JAXCKPT_ENGINE=tensorstore everything is the same without the own code for arrays: what either writes, either reads."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engines import use_tensorstore
from test_golden import ALL, as_read, assert_same, blank, identifier, read_tree, tree_directory, values

import jaxckpt

pytestmark = pytest.mark.sampled

OPTIONS = {
    "plain": None,
    "small chunks": jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(chunk_byte_size=5000)),
    "zstd": jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(compression="zstd")),
    "files": jaxckpt.CheckpointOptions(experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(20_000)),
    "groups": jaxckpt.CheckpointOptions(experimental_sharding_callback=jaxckpt.ShardByTaskPolicy()),
}


def state(seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(4, 2), ("x", "y"))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    return {
        "large": jnp.asarray(rng.standard_normal((300, 200), dtype=np.float32)),
        "sharded": jax.device_put(jnp.asarray(rng.standard_normal((64, 32), dtype=np.float32)), rows),
        "small": [rng.standard_normal(5) for _ in range(20)],
        "host": rng.integers(0, 255, 3000, dtype=np.uint8),
        "nothing": np.zeros((0, 3), np.int16),
        "point": np.asarray(2.5),
        "int": 7,
        "text": "a text",
        "bytes": b"bytes",
        "key": jax.random.key(seed),
        "empty": {},
    }


def targets(value: Any) -> Any:
    return jax.tree.map(blank, value)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(
    ("writer", "reader"), [("own", "tensorstore"), ("tensorstore", "own"), ("tensorstore", "tensorstore")]
)
def test_either_reads_what_either_writes(
    writer: str, reader: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = state()
    with monkeypatch.context() as patch:
        if writer == "tensorstore":
            use_tensorstore(patch)
        path = jaxckpt.Checkpoint(value=value).save(tmp_path / "c", OPTIONS[kind])
    with monkeypatch.context() as patch:
        if reader == "tensorstore":
            use_tensorstore(patch)
        checkpoint = jaxckpt.Checkpoint(value=targets(value))
        checkpoint.restore(path).assert_consumed()
        assert_same(checkpoint.value, value)
        tree = jaxckpt.load_checkpoint(path).tree()["value"]
        assert_same(tree, as_read(value))
        report = jaxckpt.verify(path)
        assert report.ok, str(report)
        assert report.checksummed


@pytest.mark.parametrize("golden", ALL, ids=identifier)
def test_golden_checkpoints_without_the_own_code(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tensorstore(monkeypatch)
    expected = values(golden)
    checkpoint = jaxckpt.Checkpoint(**jax.tree.map(blank, expected))
    checkpoint.read(tree_directory(golden)).assert_consumed()
    assert_same({name: getattr(checkpoint, name) for name in expected}, expected)
    tree = read_tree(tree_directory(golden))
    tree.pop("save_counter", None)
    assert_same(tree, as_read(expected))


def test_nothing_at_all(engine: str, tmp_path: Path) -> None:
    """A database without any key."""
    path = jaxckpt.Checkpoint(value={"text": "only this"}).write(tmp_path / "c")
    checkpoint = jaxckpt.Checkpoint(value={"text": ""})
    checkpoint.read(path).assert_consumed()
    assert checkpoint.value == {"text": "only this"}
    assert jaxckpt.verify(path).ok


def _flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _cut(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def _delete(file: Path, rng: random.Random) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [_flip, _cut, _delete], ids=["flip", "cut", "delete"])
@pytest.mark.parametrize("kind", ["plain", "files"])
def test_damage_without_the_own_code(
    kind: str, damage: Callable[[Path, random.Random], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing wrong is read, whoever wrote it."""
    value = state()
    rng = random.Random(kind)
    jaxckpt.Checkpoint(value=value).write(tmp_path / "own", OPTIONS[kind])
    use_tensorstore(monkeypatch)
    jaxckpt.Checkpoint(value=value).write(tmp_path / "tensorstore", OPTIONS[kind])
    found = 0
    for turn in range(16):
        good = tmp_path / ("own", "tensorstore")[turn % 2]
        shutil.copytree(good, tmp_path / "bad")
        damage(rng.choice([file for file in sorted((tmp_path / "bad").rglob("*")) if file.is_file()]), rng)
        checkpoint = jaxckpt.Checkpoint(value=targets(value))
        before = checkpoint.value
        try:
            checkpoint.read(tmp_path / "bad").assert_consumed()
        except (jaxckpt.CheckpointError, FileNotFoundError) as error:
            assert str(tmp_path / "bad") in str(error)
            assert checkpoint.value is before
            found += 1
        else:
            assert_same(checkpoint.value, value)
        shutil.rmtree(tmp_path / "bad")
    assert found


def test_a_name_that_no_engine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jaxckpt.Checkpoint(value=np.ones(3)).write(tmp_path / "c")
    monkeypatch.setenv("JAXCKPT_ENGINE", "TensorStore")
    checkpoint = jaxckpt.Checkpoint(value=np.zeros(3))
    with pytest.raises(ValueError, match="JAXCKPT_ENGINE is 'TensorStore'.*Set it to 'tensorstore'"):
        checkpoint.read(path)
    with pytest.raises(ValueError, match="JAXCKPT_ENGINE is 'TensorStore'"):
        checkpoint.write(tmp_path / "d")
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
