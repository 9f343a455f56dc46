"""Nothing corrupt loads: whatever is flipped, cut, deleted or swapped, the values are right or there is an error.

`JAXCKPT_FLIPS` is the number of random damages per checkpoint (for long runs).
"""

import contextlib
import gc
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import jaxckpt
from jaxckpt.storage.arrays import database

pytestmark = pytest.mark.slow

FLIPS = int(os.environ.get("JAXCKPT_FLIPS", "24"))
MIB = 1 << 20
Options = jaxckpt.CheckpointOptions
LAYOUTS = {
    "packed": None,
    "small files": Options(orbax=jaxckpt.OrbaxSettings(target_data_file_size=1)),
    "file per chunk": Options(experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(3000)),
    "compressed": Options(orbax=jaxckpt.OrbaxSettings(compression="zstd", chunk_byte_size=4096)),
    "compressed file per chunk": Options(
        experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(3000), orbax=jaxckpt.OrbaxSettings(compression="zstd")
    ),
}


def values(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices()[:2], ("x",)), jax.sharding.PartitionSpec("x"))
    return {
        # Several of one shape: their files are of one size, and could be mistaken for each other.
        "model": {name: jnp.asarray(rng.standard_normal((16, 40)), jnp.float32) for name in "abc"},
        "sharded": jax.device_put(rng.standard_normal((8, 200)).astype(np.float32), sharding),
        "host": rng.integers(0, 2**60, 700),
        "small": [jnp.asarray(rng.integers(0, 9, 3), jnp.int8) for _ in range(3)],
        "large": jnp.asarray(rng.standard_normal(40_000), jnp.float32),
        "text": f"text {seed}",
        "bytes": rng.bytes(20),
        "number": seed,
        "key": jax.random.key(seed),
    }


def bits(value: Any) -> list[Any]:
    found: list[Any] = []
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found.append(leaf if isinstance(leaf, (str, bytes)) else (np.asarray(leaf).shape, np.asarray(leaf).tobytes()))
    return found


def current(checkpoint: jaxckpt.Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint, name) for name in values(0)}


@pytest.fixture(scope="module", params=LAYOUTS)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "ckpt"
    checkpoint = jaxckpt.Checkpoint(**values(1))
    checkpoint.save_counter = 3
    checkpoint.write(path, LAYOUTS[request.param])
    return path


def files(path: Path) -> list[Path]:
    return sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())


def assert_harmless_or_detected(path: Path, what: str, good_values: dict[str, Any]) -> bool:
    """Restores. Returns whether the damage was detected."""
    checkpoint = jaxckpt.Checkpoint(**values(2))
    before = current(checkpoint)
    report: Any
    try:
        report = jaxckpt.verify(path)
    except (jaxckpt.CheckpointError, FileNotFoundError) as error:
        report = error
    sound = getattr(report, "ok", False)
    try:
        tree = jaxckpt.load_checkpoint(path).tree()
    except (jaxckpt.CheckpointError, FileNotFoundError):
        assert not sound, f"{what}: verify found nothing, but the reader did"
    else:
        assert bits(tree["model"]) == bits(good_values["model"]), f"{what}: the reader returned wrong values"
        assert bits(tree["host"]) == bits(good_values["host"]), f"{what}: the reader returned wrong values"
        assert tree["text"] == good_values["text"]
    try:
        checkpoint.restore(path).assert_consumed()
    except jaxckpt.CheckpointError as error:
        assert isinstance(error, jaxckpt.CorruptCheckpointError) or _no_longer_one(path), f"{what}: {error!r}"
        assert str(path) in str(error) or any(name in str(error) for name in good_values), (
            f"{what}: names nothing: {error}"
        )
        assert all(one is two for one, two in zip(current(checkpoint).values(), before.values(), strict=True)), what
        assert bits(current(checkpoint)) == bits(values(2))
        assert checkpoint.save_counter == 0
        assert not sound, f"{what}: verify found nothing, but restore did: {error}"
        return True
    assert bits(current(checkpoint)) == bits(good_values), f"{what}: wrong values were restored"
    assert checkpoint.save_counter == 3, what
    return False


def _no_longer_one(path: Path) -> bool:
    return not any((path / mark).exists() for mark in ("_METADATA", "_JAXCKPT", "_CHECKPOINT_METADATA"))


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def damaged_copies(good: Path, directory: Path, damages: list[tuple[str, Callable[[Path], None]]]) -> Any:
    """Yields one copy after the other, damaged."""
    copy = directory / "copy"
    for what, damage in damages:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good, copy)
        damage(copy)
        yield copy, what


def test_flipped_bits(good: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    names = files(good)
    weights = [max(1.0, (good / name).stat().st_size ** 0.5) for name in names]
    damages: list[Any] = []
    for index in range(FLIPS):
        # Every file, then random ones, so that small ones are not overlooked.
        name = names[index % len(names)] if index < FLIPS // 2 else rng.choices(names, weights)[0]
        size = (good / name).stat().st_size
        if size:
            bit = rng.randrange(size * 8)
            damages.append((f"{name} bit {bit}", lambda copy, name=name, bit=bit: flip(copy / name, bit)))
    detected = sum(
        assert_harmless_or_detected(copy, what, values(1)) for copy, what in damaged_copies(good, tmp_path, damages)
    )
    assert detected > len(damages) // 3


def test_every_bit_of_an_arrays_metadata(tmp_path: Path) -> None:
    """Where every array has files of its own, its zarr.json is a file like any other."""
    path = tmp_path / "c"
    options = LAYOUTS["file per chunk"]
    jaxckpt.Checkpoint(a=np.arange(3.0), b=np.arange(12).reshape(6, 2)).write(path, options)
    for name in ("a", "b"):
        file = path / name / "zarr.json"
        original = file.read_bytes()
        start = original.index(b'"shape"')
        for bit in range(start * 8, (start + 20) * 8):
            flip(file, bit)
            try:
                found = jaxckpt.load_variable(path, name)
            except jaxckpt.CorruptCheckpointError:
                assert not jaxckpt.verify(path).ok
            else:
                expected = np.arange(3.0) if name == "a" else np.arange(12).reshape(6, 2)
                np.testing.assert_array_equal(found, expected, strict=True)
            checkpoint = jaxckpt.Checkpoint(a=np.zeros(3), b=np.zeros((6, 2), int))
            try:
                checkpoint.read(path)
            except jaxckpt.CorruptCheckpointError:
                assert not checkpoint.a.any()
                assert not checkpoint.b.any()
            file.write_bytes(original)


def test_truncated_and_deleted_files(good: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    damages: list[Any] = []
    for name in files(good):
        size = (good / name).stat().st_size
        for length in {0, size // 2, max(0, size - 1)} if len(files(good)) < 30 else {rng.randrange(max(1, size))}:
            damages.append(
                (f"{name} cut to {length}", lambda copy, name=name, length=length: os.truncate(copy / name, length))
            )
        damages.append((f"{name} grown", lambda copy, name=name: grow(copy / name)))
        damages.append((f"{name} deleted", lambda copy, name=name: (copy / name).unlink()))
    rng.shuffle(damages)
    for copy, what in damaged_copies(good, tmp_path, damages[: FLIPS * 2]):
        assert_harmless_or_detected(copy, what, values(1))


def swap(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def test_swapped_files(good: Path, tmp_path: Path) -> None:
    """Two files of one checkpoint in each other's place, those of equal size first."""
    rng = random.Random(3)
    names = files(good)
    pairs = [(one, two) for index, one in enumerate(names) for two in names[index + 1 :]]
    rng.shuffle(pairs)
    pairs.sort(key=lambda pair: abs((good / pair[0]).stat().st_size - (good / pair[1]).stat().st_size))
    damages = [
        (f"{one} swapped with {two}", lambda copy, one=one, two=two: swap(copy / one, copy / two))
        for one, two in pairs[:FLIPS]
    ]
    for copy, what in damaged_copies(good, tmp_path, damages):
        assert_harmless_or_detected(copy, what, values(1))


def test_files_of_another_checkpoint(good: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A file of the same name and size, from a checkpoint of the same model with other values."""
    other = tmp_path / "other"
    checkpoint = jaxckpt.Checkpoint(**values(5))
    checkpoint.save_counter = 3
    checkpoint.write(other, LAYOUTS[request.node.callspec.params["good"]])
    common = [name for name in files(good) if (other / name).exists()]
    damages = [
        (f"{name} of another checkpoint", lambda copy, name=name: shutil.copy(other / name, copy / name))
        for name in common
    ]
    random.Random(4).shuffle(damages)
    for copy, what in damaged_copies(good, tmp_path, damages[:FLIPS]):
        assert_harmless_or_detected(copy, what, values(1))


def test_large_files_of_equal_size_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    path = Path(
        jaxckpt.Checkpoint(a=np.zeros(MIB, np.uint8), b=np.ones(MIB, np.uint8)).write(
            tmp_path / "c", LAYOUTS["small files"]
        )
    )
    one, two = sorted(path.glob("d/*"), key=lambda file: -file.stat().st_size)[:2]
    assert one.stat().st_size == two.stat().st_size
    swap(one, two)
    checkpoint = jaxckpt.Checkpoint(a=np.full(MIB, 7, np.uint8), b=np.full(MIB, 7, np.uint8))
    assert not jaxckpt.verify(path).ok
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        checkpoint.read(path)
    assert (checkpoint.a == 7).all()


def test_a_data_file_of_another_checkpoint_that_differs_in_one_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checksums in it are right, and hardly anything tells the files apart."""
    # Two writers would take the chunks in any order.
    monkeypatch.setattr(database, "_WRITERS", 1)
    first = np.random.default_rng(7).standard_normal(MIB).astype(np.float32)
    second = first.copy()
    second[MIB // 3] += 1
    options = Options(orbax=jaxckpt.OrbaxSettings(chunk_byte_size=MIB // 4))
    one, two = (
        max(Path(jaxckpt.Checkpoint(w=w).write(tmp_path / name, options), "d").iterdir(), key=os.path.getsize)
        for name, w in (("one", first), ("two", second))
    )
    swap(one, two)
    for path in (tmp_path / "one", tmp_path / "two"):
        checkpoint = jaxckpt.Checkpoint(w=np.zeros_like(first))
        with pytest.raises(jaxckpt.CorruptCheckpointError, match="it is not the one that was written"):
            checkpoint.read(path)
        assert not checkpoint.w.any()
        (problem,) = jaxckpt.verify(path).problems
        assert problem.where.startswith(str(path / "d"))


@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring")
# Orbax leaves coroutines behind when a load fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("api", ["v0", "v1"])
def test_plain_orbax_detects_flips_of_array_bytes(api: str, layout: str, tmp_path: Path) -> None:
    """No load by an unmodified Orbax returns a wrong value."""
    rng = random.Random(6)
    array = np.random.default_rng(6).standard_normal(50_000).astype(np.float32)
    path = Path(jaxckpt.Checkpoint(array=jnp.asarray(array)).write(tmp_path / "c", LAYOUTS[layout]))
    data = [
        file
        for file in path.rglob("*")
        if file.is_file() and file.stat().st_size > 2000 and not file.name.startswith("_")
    ]
    target = {"array": np.zeros_like(array)}
    detected = 0
    for _ in range(FLIPS // 3):
        file = rng.choice(data)
        original = file.read_bytes()
        flip(file, rng.randrange(len(original) * 8))
        try:
            if api == "v0":
                with ocp.PyTreeCheckpointer() as checkpointer:
                    found = checkpointer.restore(path)
            else:
                found = v1.load(path, target)
        # Orbax may raise anything here.
        except Exception:
            detected += 1
        else:
            assert np.asarray(found["array"]).tobytes() == array.tobytes()
        file.write_bytes(original)
    gc.collect()
    assert detected >= FLIPS // 6


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_to_what_plain_orbax_wrote_is_no_crash(damage: str, tmp_path: Path) -> None:
    """Without checksums a flip may go unnoticed, but the error, if there is one, is a documented one."""
    rng = random.Random(7)
    good = tmp_path / "good"
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(
            good, {"a": np.arange(2000.0), "b": {"c": jnp.arange(5), "s": "text"}, "k": jax.random.key(1)}
        )
    names = files(good)
    for name in names * (2 if damage == "flip" else 1):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good, copy)
        size = (copy / name).stat().st_size
        if damage == "delete":
            (copy / name).unlink()
        elif size == 0:
            continue
        elif damage == "cut":
            os.truncate(copy / name, rng.randrange(size))
        else:
            flip(copy / name, rng.randrange(size * 8))
        target = {"a": np.zeros(2000), "b": {"c": jnp.zeros(5, int), "s": ""}, "k": jax.random.key(2)}
        checkpoint = jaxckpt.Checkpoint(target)
        try:
            checkpoint.read(copy).expect_partial()
        except (jaxckpt.CheckpointError, ValueError):
            assert not checkpoint.a.any()
        with contextlib.suppress(jaxckpt.CheckpointError):
            jaxckpt.verify(copy)


def test_verify_agrees_with_a_good_checkpoint(good: Path) -> None:
    report = jaxckpt.verify(good)
    assert report.ok
    assert report.checksummed
    assert report.problems == ()
    assert report.leaves == len(jaxckpt.load_checkpoint(good).keys())
    assert "ok" in str(report)
