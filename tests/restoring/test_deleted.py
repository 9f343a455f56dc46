"""A checkpoint that goes away while it is read: FileNotFoundError that says so, never "damaged", and never values of two checkpoints."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import race

import jaxckpt
from jaxckpt import storage

pytestmark = pytest.mark.sampled

Away = Callable[[Path], None]


class Trap:
    """Calls a function when Python is about to open the N-th file of a checkpoint."""

    def __init__(self) -> None:
        self.path = ""
        self.countdown = -1
        self.action: Callable[[], None] = lambda: None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: Any) -> None:
        if self.countdown < 0 or event not in ("open", "os.listdir", "os.scandir"):
            return
        if isinstance(arguments[0], str) and arguments[0].startswith(self.path):
            self.countdown -= 1
            if self.countdown < 0:
                self.action()


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    # Audit hooks stay: one for all tests, which does nothing between them.
    trap = Trap()
    yield trap
    trap.countdown = -1


def delete(path: Path) -> None:
    storage.delete(storage.CheckpointPath.of(str(path)))


def remove_tree(path: Path) -> None:
    shutil.rmtree(path)


def remove_data_first(path: Path) -> None:
    """As another program's deletion looks half way: the data is gone, what marks the checkpoint follows."""
    for file in sorted(path.rglob("*"), key=lambda file: -len(file.parts)):
        if file.is_file() and file.name not in ("_METADATA", "_CHECKPOINT_METADATA", "_JAXCKPT"):
            file.unlink()
    (path / "_METADATA").unlink()


def replace(path: Path) -> None:
    """As `write` over a checkpoint: there is always one."""
    shutil.copytree(another(path), path.with_name("new"))
    path.rename(path.with_name("old"))
    path.with_name("new").rename(path)
    shutil.rmtree(path.with_name("old"))


def remove_and_save_anew(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(another(path), path)


def another(path: Path) -> Path:
    """Another checkpoint of the same values, saved once for a test."""
    found = path.with_name("another")
    if not found.exists():
        jaxckpt.Checkpoint(**race.values(2)).write(found)
    return found


AWAY = (delete, remove_tree, remove_data_first, replace, remove_and_save_anew)


@pytest.mark.parametrize("stored", race.STORED)
@pytest.mark.parametrize("away", AWAY, ids=lambda away: away.__name__)
def test_at_every_moment_of_every_way_to_read(stored: str, away: Away, trap: Trap, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    jaxckpt.Checkpoint(**race.values(1)).write(whole, jaxckpt.CheckpointOptions(**race.STORED[stored]))
    path = tmp_path / "ckpt"
    messages = set()
    for read in (race.restore, race.read_tree, race.verify):
        trap.path, trap.countdown = str(whole), 10_000
        read(str(whole))
        opened = 10_000 - trap.countdown
        trap.path = str(path)
        # The first ones, where the metadata is read, and some of the others.
        for moment in sorted({*range(min(5, opened)), *range(0, opened, max(1, opened // 4)), opened - 1}):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(whole, path)
            trap.action, trap.countdown = lambda: away(path), moment
            try:
                read(str(path))
            except FileNotFoundError as error:
                assert (error.errno, error.filename) == (errno.ENOENT, str(path))
                messages.add(error.strerror)
            assert trap.countdown < 0
    assert any("deleted while it was read" in message for message in messages)
    assert any("another one" in message for message in messages) == (away in (replace, remove_and_save_anew))


@pytest.mark.parametrize("away", AWAY, ids=lambda away: away.__name__)
def test_an_open_reader_says_so(away: Away, tmp_path: Path) -> None:
    for stored, options in race.STORED.items():
        path = tmp_path / stored
        jaxckpt.Checkpoint(**race.values(1)).write(path, jaxckpt.CheckpointOptions(**options))
        reader = jaxckpt.load_checkpoint(path)
        assert reader.get_tensor("step") == 1
        away(path)
        for name in ("large", "small/3", "text"):
            with pytest.raises(FileNotFoundError, match="deleted while it was read"):
                reader.get_tensor(name)
        with pytest.raises(FileNotFoundError, match="deleted while it was read"):
            reader.tree()


def test_what_is_there_and_damaged_is_still_damaged(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(**race.values(1))
    path = Path(checkpoint.write(tmp_path / "ckpt"))
    for file in (path / "d").iterdir():
        file.unlink()
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        race.restore(str(path))
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        jaxckpt.load_checkpoint(path).get_tensor("large")
    assert not jaxckpt.verify(path).ok


def test_the_command_line_says_so_in_one_line(trap: Trap, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jaxckpt import cli

    for command in ("verify", "inspect"):
        path = Path(jaxckpt.Checkpoint(**race.values(1)).write(tmp_path / command))
        trap.path, trap.action, trap.countdown = str(path), lambda path=path: delete(path), 4  # type: ignore[misc]
        assert cli.main([command, str(path)]) == 1
        captured = capsys.readouterr()
        assert f"{path}: This checkpoint was deleted while it was read" in captured.err
        assert len(captured.err.splitlines()) == 1


@pytest.mark.slow
def test_a_trainer_that_keeps_one_and_an_evaluator_beside_it(tmp_path: Path) -> None:
    counts, errors = race.run(tmp_path, 4.0)
    assert errors == []
    assert counts["reads"]


@pytest.mark.slow
def test_a_leaf_whose_computation_failed_is_named_when_it_is_saved(tmp_path: Path) -> None:
    # In a process of its own: JAX reports such a computation once more when the process ends.
    program = f"""
import os
os.environ["JAX_PLATFORMS"], os.environ["XLA_FLAGS"] = "cpu", "--xla_force_host_platform_device_count=8"
import time, jax, jax.numpy as jnp, jaxckpt
from jax.sharding import NamedSharding, PartitionSpec

def fail(x):
    time.sleep(0.5)
    raise RuntimeError("no such luck")

rows = jax.device_put(jnp.ones((8, 1000)), NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x")))
shape = jax.ShapeDtypeStruct(rows.shape, rows.dtype)
bad = jax.jit(lambda x: jax.pure_callback(fail, shape, x))(rows)
try:
    jaxckpt.Checkpoint(model={{"bad": bad, "good": rows}}).save({str(tmp_path / "ckpt")!r})
except Exception as error:
    assert str(error).startswith("model/bad: "), str(error)[:100]
    assert "no such luck" in str(error)
    assert type(error) is type(error.__cause__) is jax.errors.JaxRuntimeError
    print("named")
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert found.stdout == "named\n", found.stderr[-2000:]
    assert not list(tmp_path.iterdir())


def test_values_of_a_write_over_are_of_one_save(trap: Trap, tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    trap.path, trap.action = str(path), lambda: replace(path)
    whole = jaxckpt.Checkpoint(**race.values(1)).write(tmp_path / "whole")
    another(path)
    seen = set()
    for moment in range(60):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        trap.countdown = moment
        checkpoint = jaxckpt.Checkpoint(**race.values(0))
        try:
            checkpoint.restore(path).assert_consumed()
        except FileNotFoundError:
            assert checkpoint.step == 0
            assert not np.any(checkpoint.large - race.values(0)["large"])
        else:
            race.check({name: getattr(checkpoint, name) for name in race.values(0)})
            seen.add(checkpoint.step)
        sprung = trap.countdown < 0
        trap.countdown = -1
        if not sprung:
            break
    assert 1 in seen


@pytest.mark.parametrize("stored", race.STORED)
def test_what_another_checkpoint_holds_is_never_taken_for_this_one(stored: str, tmp_path: Path) -> None:
    """Also below the methods of a Reader: a restore reads in several steps, and TensorStore opens files whenever it likes."""
    path = tmp_path / "ckpt"
    options = jaxckpt.CheckpointOptions(**race.STORED[stored])
    jaxckpt.Checkpoint(**race.values(1)).write(path, options)
    opened = storage.StoredCheckpoint(str(path))
    leaves = {leaf.name: leaf for leaf in opened.tree.leaves}
    opened.infos([leaves["step"]])
    jaxckpt.Checkpoint(**race.values(2)).write(path, options)
    with pytest.raises(FileNotFoundError, match="another one was saved under its name"):
        opened.infos([leaves["large"]])
    with pytest.raises(FileNotFoundError, match="another one was saved under its name"):
        opened.read([("step", None)])
