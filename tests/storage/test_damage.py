"""Nothing corrupt loads: flips, truncation, deletion and swaps of every file end in an error or in the very same values."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxckpt

pytestmark = pytest.mark.slow

FLIPS = int(os.environ.get("JAXCKPT_FLIPS", "200"))
SETTINGS = {
    "plain": None,
    "zstd": jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(compression="zstd", chunk_byte_size=100_000)),
    "zstd files": jaxckpt.CheckpointOptions(
        experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(200_000),
        orbax=jaxckpt.OrbaxSettings(compression="zstd"),
    ),
    "files": jaxckpt.CheckpointOptions(experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(200_000)),
}


def values(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "large": jnp.asarray(rng.standard_normal((300, 200), dtype=np.float32)),
        "small": {str(n): jnp.asarray(rng.standard_normal(5, dtype=np.float32)) for n in range(20)},
        "middle": rng.integers(0, 255, 3000, dtype=np.uint8),
        "int": int(rng.integers(1, 1000)),
        "text": f"seed {seed}",
        "bytes": bytes(rng.integers(0, 255, 10, dtype=np.uint8)),
        "key": jax.random.key(seed),
    }


def zeros() -> dict[str, Any]:
    return jax.tree.map(
        lambda leaf: (
            type(leaf)()
            if isinstance(leaf, (int, str, bytes))
            else leaf * 0
            if leaf.dtype != jax.random.key(0).dtype
            else jax.random.key(99)
        ),
        values(0),
    )


def same(left: Any, right: Any) -> bool:
    def plain(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(leaf)
        return leaf

    return all(
        np.array_equal(plain(a), plain(b)) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_damage_in_the_index_names_its_file(tmp_path: Path) -> None:
    """The index holds very small arrays itself, hundreds of them under one checksum, so no leaf is known to be the damaged one."""
    saved = {f"w{number}": np.full(8, number, np.int32) for number in range(9)}
    path = Path(jaxckpt.Checkpoint(model=saved).write(tmp_path / "c"))
    (file,) = [file for file in files_of(path) if saved["w7"].tobytes() in file.read_bytes()]
    content = bytearray(file.read_bytes())
    content[content.index(saved["w7"].tobytes())] ^= 1
    file.write_bytes(content)
    checkpoint = jaxckpt.Checkpoint(model={name: value * 0 for name, value in saved.items()})
    text = f"a part of its index, in {file.relative_to(path)}, is damaged: its checksum does not match"
    with pytest.raises(jaxckpt.CorruptCheckpointError, match=text):
        checkpoint.read(path)
    report = jaxckpt.verify(path)
    assert not report.ok
    assert all(text in problem.what for problem in report.problems if problem.where != str(file))


def outcome(path: Path, expected: Any) -> str:
    """Restores: "detected" (nothing changed) or "harmless" (the right values); anything else fails the test."""
    checkpoint = jaxckpt.Checkpoint(value=zeros())
    before = checkpoint.value
    try:
        checkpoint.restore(path).assert_consumed()
    except (jaxckpt.CheckpointError, FileNotFoundError) as error:
        assert checkpoint.value is before
        assert checkpoint.save_counter == 0
        assert str(path) in str(error)
        return "detected"
    assert same(checkpoint.value, expected), "loaded wrong values"
    assert checkpoint.save_counter == 1
    return "harmless"


@pytest.fixture(scope="module", params=SETTINGS)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    return Path(jaxckpt.Checkpoint(value=values(1)).save(directory / "ckpt", SETTINGS[request.param]))


def test_flipped_bits(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "ckpt-1"
    shutil.copytree(good, path)
    assert outcome(path, values(1)) == "harmless"
    rng = random.Random(7)
    files = files_of(path)
    found = {"detected": 0, "harmless": 0}
    for turn in range(FLIPS // len(SETTINGS)):
        file = files[turn % len(files)] if turn % 2 else rng.choices(files, [f.stat().st_size for f in files])[0]
        content = file.read_bytes()
        position = rng.randrange(len(content))
        bit = 1 << rng.randrange(8)
        file.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
        result = outcome(path, values(1))
        found[result] += 1
        if result == "detected" and turn % 5 == 0:
            report = jaxckpt.verify(path)
            assert not report.ok
            assert all(problem.where and problem.what for problem in report.problems)
        file.write_bytes(content)
    assert found["detected"] > FLIPS // len(SETTINGS) // 4, found


def test_verify_notices_every_flip_of_live_bytes(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "ckpt-1"
    shutil.copytree(good, path)
    assert jaxckpt.verify(path).ok
    for file in files_of(path):
        if file.parent.name == "d" or "ocdbt" in str(file):
            # OCDBT files may hold superseded nodes.
            continue
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        assert not jaxckpt.verify(path).ok, file
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    assert jaxckpt.verify(path).ok


def test_the_file_that_is_cut_is_named(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "ckpt-1"
    shutil.copytree(good, path)
    (file,) = path.rglob("array_metadatas/process_0")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="array_metadatas/process_0"):
        jaxckpt.Checkpoint(**values(1)).restore(str(path))


@pytest.mark.parametrize("damage", ["delete", "empty", "half", "longer", "zeros"])
def test_damaged_files(damage: str, good: Path, tmp_path: Path) -> None:
    for number, original in enumerate(files_of(good)):
        path = tmp_path / str(number) / "ckpt-1"
        shutil.copytree(good, path)
        file = path / original.relative_to(good)
        content = file.read_bytes()
        if damage == "delete":
            file.unlink()
        else:
            size = len(content)
            new = {"empty": b"", "half": content[: size // 2], "longer": content + b"x", "zeros": bytes(size)}[damage]
            file.write_bytes(new)
        if outcome(path, values(1)) == "detected":
            assert not jaxckpt.verify(path).ok
        shutil.rmtree(path.parent)


def test_files_of_another_checkpoint(good: Path, tmp_path: Path) -> None:
    options = next(SETTINGS[name] for name in SETTINGS if f"[{name}]" in os.environ["PYTEST_CURRENT_TEST"])
    other = Path(jaxckpt.Checkpoint(value=values(2)).save(tmp_path / "other", options))
    swapped = 0
    for original in files_of(good):
        replacement = other / original.relative_to(good)
        if not replacement.exists():
            continue
        path = tmp_path / "swap" / "ckpt-1"
        shutil.copytree(good, path)
        shutil.copy(replacement, path / original.relative_to(good))
        outcome(path, values(1))
        swapped += 1
        shutil.rmtree(path.parent)
    assert swapped > 4


def test_half_a_checkpoint_and_foreign_files(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "ckpt-1"
    shutil.copytree(good, path)
    (path / "notes.txt").write_text("added by a user")
    (path / "more").mkdir()
    (path / "more" / "x").write_text("y")
    assert outcome(path, values(1)) == "harmless"
    assert jaxckpt.verify(path).ok
    for mark in ("_METADATA", "_JAXCKPT", "_CHECKPOINT_METADATA"):
        half = tmp_path / mark / "ckpt-1"
        half.mkdir(parents=True)
        shutil.copy(path / mark, half)
        with pytest.raises(jaxckpt.CheckpointError):
            jaxckpt.Checkpoint(value=zeros()).restore(half)


def test_managers_skip_what_is_damaged(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(value=np.arange(5), step=0)
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, 5)
    for step in (1, 2, 3):
        checkpoint.step = step
        manager.save()
    for number in (2, 3):
        for file in (tmp_path / f"ckpt-{number}" / "d").iterdir():
            file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        manager.restore_or_initialize()
    assert checkpoint.step == 3
    with pytest.warns(UserWarning, match="Skipping the damaged checkpoint"):
        assert manager.restore_or_initialize(skip_corrupt=True) == str(tmp_path / "ckpt-1")
    assert checkpoint.step == 1
