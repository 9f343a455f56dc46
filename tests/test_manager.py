"""CheckpointManager: numbers, intervals, retention, what it finds when it starts, and what it restores."""

import errno
import functools
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import abc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import jaxckpt
from jaxckpt import storage
from jaxckpt.directory import latest, on_disk, registration, series, state_file
from jaxckpt.directory.state_file import Records
from jaxckpt.storage.commit import temporary

HOUR = 3600.0
ASYNC = functools.partial(jaxckpt.CheckpointOptions, enable_async=True)


def make_checkpoint(value: float = 0.0) -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(value=np.full(4, value), step=0)


def make_manager(directory: Path, max_to_keep: int | None = 3, **arguments: Any) -> jaxckpt.CheckpointManager:
    checkpoint = arguments.pop("checkpoint", None)
    return jaxckpt.CheckpointManager(checkpoint or make_checkpoint(), directory, max_to_keep, **arguments)


def names(paths: list[str]) -> list[str]:
    return [os.path.basename(path) for path in paths]


def names_in(directory: Path) -> list[str]:
    """Everything in the directory but the state file, by number where there is one."""
    found = [name for name in os.listdir(directory) if name != "checkpoint"]
    return sorted(found, key=lambda name: (len(name), name))


def restored(path: str | None) -> float:
    """The value that a checkpoint made by `make_checkpoint` holds."""
    checkpoint = make_checkpoint(-1.0)
    checkpoint.restore(path).assert_consumed()
    return float(checkpoint.value[0])


def state_of(directory: Path) -> latest.CheckpointState:
    state = jaxckpt.get_checkpoint_state(directory)
    assert state is not None
    return state


def damage(path: str) -> None:
    """Flips one bit in every file that holds data."""
    for folder, _, files in os.walk(path):
        for name in files:
            file = Path(folder, name)
            data = bytearray(file.read_bytes())
            if "d" in Path(folder).parts[-2:] and data:
                data[len(data) // 2] ^= 1
                file.write_bytes(data)


def run_python(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], text=True, capture_output=True, timeout=120
    )


class Clock:
    """Stands for the module `time` where the manager and the state file ask for the time of day."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: float, *, goes_on: bool = False) -> None:
        self.now = now
        self._goes_on = goes_on
        for module in (series, registration):
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return self.now + (time.time() if self._goes_on else 0.0)


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"max_to_keep": 0}, ValueError, "max_to_keep"),
            ({"max_to_keep": -1}, ValueError, "max_to_keep"),
            ({"max_to_keep": 1.0}, TypeError, "max_to_keep"),
            ({"max_to_keep": True}, TypeError, "max_to_keep"),
            ({"max_to_keep": "3"}, TypeError, "max_to_keep"),
            ({"keep_checkpoint_every_n_hours": 0}, ValueError, "every_n_hours"),
            ({"keep_checkpoint_every_n_hours": -1.0}, ValueError, "every_n_hours"),
            ({"keep_checkpoint_every_n_hours": float("nan")}, ValueError, "every_n_hours"),
            ({"keep_checkpoint_every_n_hours": float("inf")}, ValueError, "every_n_hours"),
            ({"keep_checkpoint_every_n_hours": True}, TypeError, "every_n_hours"),
            ({"keep_checkpoint_every_n_hours": "1"}, TypeError, "every_n_hours"),
            ({"checkpoint_name": ""}, ValueError, "checkpoint_name"),
            ({"checkpoint_name": "a/b"}, ValueError, "checkpoint_name"),
            ({"checkpoint_name": "a\0"}, ValueError, "checkpoint_name"),
            ({"checkpoint_name": None}, TypeError, "checkpoint_name"),
            ({"checkpoint_name": b"ckpt"}, TypeError, "checkpoint_name"),
            ({"checkpoint_interval": 5}, ValueError, "step_counter"),
            ({"checkpoint_interval": 0, "step_counter": lambda: 1}, ValueError, "checkpoint_interval"),
            ({"checkpoint_interval": 1.5, "step_counter": lambda: 1}, TypeError, "checkpoint_interval"),
            ({"checkpoint_interval": True, "step_counter": lambda: 1}, TypeError, "checkpoint_interval"),
            ({"step_counter": "5"}, TypeError, "step_counter"),
            ({"step_counter": object()}, TypeError, "step_counter"),
            ({"step_counter": True}, TypeError, "step_counter"),
            ({"step_counter": 1.5}, TypeError, "step_counter"),
            ({"step_counter": float("nan")}, TypeError, "step_counter"),
            ({"step_counter": np.ones(1, np.int32)}, TypeError, "step_counter"),
            ({"step_counter": jnp.ones(3)}, TypeError, "step_counter"),
            ({"last_checkpoint_step": 1.0}, TypeError, "last_checkpoint_step"),
            ({"last_checkpoint_step": True}, TypeError, "last_checkpoint_step"),
            ({"init_fn": 3}, TypeError, "init_fn"),
            ({"options": {"enable_async": True}}, TypeError, "options"),
            ({"options": jaxckpt.CheckpointOptions(experimental_io_device=99)}, ValueError, "99"),
            ({"directory": None}, TypeError, "directory"),
            ({"directory": b"/tmp"}, TypeError, "directory"),
            ({"checkpoint": {"value": 1}}, TypeError, "checkpoint must be"),
        ],
    )
    def test_wrong_ones(self, arguments: dict[str, Any], error: type[Exception], text: str, tmp_path: Path) -> None:
        good: dict[str, Any] = {"checkpoint": make_checkpoint(), "directory": tmp_path / "new", "max_to_keep": 3}
        with pytest.raises(error, match=text):
            jaxckpt.CheckpointManager(**{**good, **arguments})
        assert not os.listdir(tmp_path)

    def test_max_to_keep_is_required(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="max_to_keep"):
            jaxckpt.CheckpointManager(make_checkpoint(), tmp_path)  # type: ignore[call-arg]

    def test_tensorflows_positions(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint()
        calls: list[int] = []
        manager = jaxckpt.CheckpointManager(
            checkpoint, tmp_path, np.int64(2), 1.5, "name", lambda: 7, 5, lambda: calls.append(1), 3
        )
        assert manager.directory == str(tmp_path)
        assert manager.checkpoint is checkpoint
        assert (manager.checkpoint_interval, manager.last_checkpoint_step) == (5, 3)
        assert manager.save() is None
        assert manager.restore_or_initialize() is None
        assert calls == [1]

    def test_wrong_arguments_of_save(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path)
        for number in (1.0, "1", True, np.ones(2, int)):
            with pytest.raises(TypeError):
                manager.save(number)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="checkpoint_number"):
            manager.save(-1)
        with pytest.raises(TypeError, match="options"):
            manager.save(options=3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="99"):
            manager.save(options=jaxckpt.CheckpointOptions(experimental_io_device=99))
        assert not os.listdir(tmp_path)
        assert manager.checkpoint.save_counter == 0

    def test_a_directory_that_is_a_file_is_an_oserror_when_it_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        calls: list[int] = []
        manager = make_manager(tmp_path / "file", init_fn=lambda: calls.append(1))
        uses: list[Callable[[], object]] = [
            manager.save,
            manager.restore_or_initialize,
            lambda: manager.checkpoints,
            lambda: manager.latest_checkpoint,
        ]
        for use in uses:
            with pytest.raises(OSError, match=r".") as caught:
                use()
            assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
        assert not calls
        assert (tmp_path / "file").read_text() == "mine"


class TestNumbers:
    def test_names_and_returned_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        manager = jaxckpt.CheckpointManager(make_checkpoint(), "a/b", 3, checkpoint_name="name")
        assert not os.path.exists("a")
        assert manager.save() == "a/b/name-1"
        assert manager.save() == "a/b/name-2"
        assert manager.checkpoints == ["a/b/name-1", "a/b/name-2"]
        assert manager.latest_checkpoint == "a/b/name-2" == jaxckpt.latest_checkpoint("a/b")
        assert manager.checkpoint.save_counter == 2

    @pytest.mark.parametrize("number", [7, np.int32(7), jnp.int32(7), nnx.Variable(jnp.int32(7))])
    def test_a_number_of_ones_own(self, number: Any, tmp_path: Path) -> None:
        manager = make_manager(tmp_path)
        assert manager.save(checkpoint_number=number) == str(tmp_path / "ckpt-7")
        assert manager.latest_checkpoint == str(tmp_path / "ckpt-7")

    def test_numbers_of_ones_own_leave_the_counter_to_count_saves(self, tmp_path: Path) -> None:
        """TensorFlow's testCustomNumbering."""
        manager = make_manager(tmp_path, 2)
        for step in (0, 2, 4, 6, 8):
            path = manager.save(checkpoint_number=jnp.int32(step))
            assert path == str(tmp_path / f"ckpt-{step}")
        assert manager.checkpoint.save_counter == 5
        last = manager.save(checkpoint_number=32)
        assert last == manager.latest_checkpoint == jaxckpt.latest_checkpoint(tmp_path)
        assert state_of(tmp_path).all_model_checkpoint_paths == [path, last]

    def test_the_latest_is_the_last_saved_and_saving_again_moves_to_the_end(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path)
        for value, number in enumerate([5, 2, 9, 2]):
            manager.checkpoint.value = np.full(4, float(value))
            manager.save(number)
        assert names(manager.checkpoints) == ["ckpt-5", "ckpt-9", "ckpt-2"]
        assert restored(manager.latest_checkpoint) == 3.0
        assert names(make_manager(tmp_path).checkpoints) == ["ckpt-5", "ckpt-9", "ckpt-2"]
        manager.save(0)
        assert names_in(tmp_path) == ["ckpt-0", "ckpt-2", "ckpt-9"]

    def test_a_new_program_takes_the_number_after_the_highest(self, tmp_path: Path) -> None:
        make_manager(tmp_path).save(4)
        manager = make_manager(tmp_path)
        assert manager.save() == str(tmp_path / "ckpt-1")
        manager.checkpoint.save_counter = 3
        assert manager.save() == str(tmp_path / "ckpt-5")


class TestRetention:
    def test_oldest_go_first_and_only_after_the_new_one_is_committed(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, 2)
        seen: list[list[str]] = []
        options = jaxckpt.CheckpointOptions(experimental_write_callbacks=[lambda: seen.append(names_in(tmp_path))])
        for _ in range(4):
            manager.save(options=options)
        assert names_in(tmp_path) == ["ckpt-3", "ckpt-4"] == names(manager.checkpoints)
        assert seen[-1] == ["ckpt-2", "ckpt-3", "ckpt-4"]
        assert names(state_of(tmp_path).all_model_checkpoint_paths) == ["ckpt-3", "ckpt-4"]

    def test_none_keeps_all(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, None)
        for _ in range(6):
            manager.save()
        assert names(manager.checkpoints) == [f"ckpt-{number}" for number in range(1, 7)]

    def test_a_later_manager_goes_on_with_its_own_limit(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, None)
        for _ in range(4):
            manager.save()
        later = make_manager(tmp_path, 2)
        assert len(later.checkpoints) == 4  # Nothing is deleted before there is something new.
        later.save()
        assert names_in(tmp_path) == ["ckpt-4", "ckpt-5"] == names(manager.checkpoints)

    def test_externally_deleted_ones_disappear(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, 3)
        for _ in range(3):
            manager.save()
        shutil.rmtree(tmp_path / "ckpt-2")
        assert names(manager.checkpoints) == ["ckpt-1", "ckpt-3"]
        manager.save()
        assert names(manager.checkpoints) == ["ckpt-1", "ckpt-3", "ckpt-4"]
        shutil.rmtree(tmp_path / "ckpt-4")
        assert names([manager.latest_checkpoint or ""]) == ["ckpt-3"]
        assert jaxckpt.latest_checkpoint(tmp_path) is None
        assert make_manager(tmp_path, 3).restore_or_initialize() == str(tmp_path / "ckpt-3")
        assert jaxckpt.latest_checkpoint(tmp_path) is None  # The file is changed by the next save only.
        for name in ("ckpt-1", "ckpt-3"):
            shutil.rmtree(tmp_path / name)
        assert manager.checkpoints == []
        assert manager.latest_checkpoint is None
        manager.save()
        assert names(manager.checkpoints) == ["ckpt-5"]

    def test_plain_saves_are_managed_too(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, 2)
        other = make_checkpoint()
        manager.save()
        assert other.save(tmp_path / "ckpt") == str(tmp_path / "ckpt-2")
        assert names(manager.checkpoints) == ["ckpt-1", "ckpt-2"]
        manager.checkpoint.save_counter = 2
        manager.save()
        assert names_in(tmp_path) == ["ckpt-2", "ckpt-3"]

    def test_other_names_are_never_touched(self, tmp_path: Path) -> None:
        make_checkpoint().save(tmp_path / "ckpt-best")
        make_checkpoint().save(tmp_path / "other")
        make_checkpoint().write(tmp_path / "ckpt-07")
        (tmp_path / "ckpt-3").write_text("a file")
        (tmp_path / "ckpt-2").mkdir()
        (tmp_path / "notes.txt").touch()
        before = set(os.listdir(tmp_path))
        manager = make_manager(tmp_path, 1)
        for number in (5, 6, 7):
            manager.save(number)
        assert set(os.listdir(tmp_path)) == before | {"ckpt-7"}
        assert names(manager.checkpoints) == ["ckpt-7"]
        listed = names(state_of(tmp_path).all_model_checkpoint_paths)
        assert listed == ["ckpt-best-1", "other-1", "ckpt-7"]

    def test_two_managers_of_one_directory(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint()
        first = make_manager(tmp_path, 2, checkpoint=checkpoint)
        best = make_manager(tmp_path, 1, checkpoint=checkpoint, checkpoint_name="best")
        for _ in range(3):
            first.save()
            best.save()
        assert names(first.checkpoints) == ["ckpt-3", "ckpt-5"]
        assert names(best.checkpoints) == ["best-6"]
        assert names([first.latest_checkpoint or ""]) == ["ckpt-5"]
        assert names(state_of(tmp_path).all_model_checkpoint_paths) == ["ckpt-3", "ckpt-5", "best-6"]

    def test_continues_after_plain_saves_of_another_name(self, tmp_path: Path) -> None:
        """TensorFlow's testContinueFromUnmanaged."""
        checkpoint = make_checkpoint()
        checkpoint.save(tmp_path / "unusual")
        checkpoint.save(tmp_path / "unusual")
        manager = make_manager(tmp_path, 2)
        assert manager.latest_checkpoint == str(tmp_path / "unusual-2")
        assert manager.checkpoints == []
        assert manager.restore_or_initialize() == str(tmp_path / "unusual-2")
        assert manager.checkpoint.save_counter == 2
        for _ in range(3):
            manager.save()
        assert names(manager.checkpoints) == ["ckpt-4", "ckpt-5"]
        assert names_in(tmp_path) == ["ckpt-4", "ckpt-5", "unusual-1", "unusual-2"]

    def test_one_that_cannot_be_deleted_stays_listed_and_is_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        manager = make_manager(tmp_path, 1)
        manager.save()

        def fail(path: object, expected: object = None) -> None:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "delete", fail)
            assert manager.save() == str(tmp_path / "ckpt-2")
        assert "Could not delete the old checkpoint" in caplog.text
        assert names(manager.checkpoints) == ["ckpt-1", "ckpt-2"]
        manager.save()
        assert names_in(tmp_path) == ["ckpt-3"]

    def test_a_raising_callback_changes_nothing(self, tmp_path: Path) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        manager = make_manager(tmp_path, 1, step_counter=lambda: 5, checkpoint_interval=1)
        manager.save(check_interval=False)
        other = make_manager(tmp_path, 1, step_counter=lambda: 6, checkpoint_interval=1, checkpoint=manager.checkpoint)
        with pytest.raises(ZeroDivisionError):
            other.save(options=jaxckpt.CheckpointOptions(experimental_write_callbacks=[fail]))
        assert names_in(tmp_path) == ["ckpt-2"] == names(other.checkpoints)
        assert other.last_checkpoint_step == 6
        assert other.save() is None


class TestPreserving:
    """keep_checkpoint_every_n_hours, after TensorFlow's tests."""

    def test_one_per_period_for_ever(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock(monkeypatch, 10 * HOUR)
        manager = make_manager(tmp_path, 2, keep_checkpoint_every_n_hours=3)
        for _ in range(12):
            clock.now += HOUR
            manager.save()
        preserved = ["ckpt-3", "ckpt-6", "ckpt-9"]
        assert names_in(tmp_path) == ["ckpt-3", "ckpt-6", "ckpt-9", "ckpt-11", "ckpt-12"]
        assert names(manager.checkpoints) == ["ckpt-11", "ckpt-12"]
        assert state_of(tmp_path).last_preserved_timestamp == 19 * HOUR
        assert sorted(names(state_of(tmp_path).preserved_checkpoint_paths)) == preserved
        # Later managers, with or without periods, and plain saves, leave them alone.
        for hours in (None, 100, None):
            manager = make_manager(tmp_path, 1, keep_checkpoint_every_n_hours=hours)
            assert not set(names(manager.checkpoints)) & set(preserved)
            manager.checkpoint.save_counter = 100
            manager.save()
            manager.checkpoint.save(tmp_path / "ckpt")
            manager.save()
            assert set(preserved) < set(names_in(tmp_path))
            assert len(names_in(tmp_path)) == 4

    def test_the_state_goes_on_in_a_later_manager(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """TensorFlow's testSaveRestoreState."""
        clock = Clock(monkeypatch, 3.0)
        first = make_manager(tmp_path, 2)
        clock.now = 10000.0
        first.save()
        clock.now = 10000.0 + HOUR
        first.save()
        assert state_of(tmp_path).all_model_checkpoint_timestamps == [10000.0, 10000.0 + HOUR]
        assert state_of(tmp_path).last_preserved_timestamp == 2.0
        second = make_manager(tmp_path, 2, keep_checkpoint_every_n_hours=1.5)
        assert names(second.checkpoints) == ["ckpt-1", "ckpt-2"]
        second.checkpoint.save_counter = 2
        clock.now += HOUR / 2
        second.save()
        assert names_in(tmp_path) == ["ckpt-1", "ckpt-2", "ckpt-3"]
        assert names(second.checkpoints) == ["ckpt-2", "ckpt-3"]
        assert state_of(tmp_path).last_preserved_timestamp == 10000.0
        second.save()
        assert names_in(tmp_path) == ["ckpt-1", "ckpt-3", "ckpt-4"]

    def test_a_clock_set_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """TensorFlow's testClockReset; besides, what is there stays listed."""
        clock = Clock(monkeypatch, 10000.0)
        first = make_manager(tmp_path, 1, keep_checkpoint_every_n_hours=1)
        for _ in range(3):
            first.save()
            clock.now += HOUR
        assert names_in(tmp_path) == ["ckpt-2", "ckpt-3"]
        assert state_of(tmp_path).last_preserved_timestamp == 10000.0 + HOUR
        clock.now = 5000.0
        with pytest.warns(UserWarning, match="behind the time at which a checkpoint"):
            second = make_manager(tmp_path, 1)
        assert names(second.checkpoints) == ["ckpt-3"]
        second.checkpoint.save_counter = 3
        for number in (4, 5):
            clock.now += 10
            assert second.save() == str(tmp_path / f"ckpt-{number}")
            assert names(second.checkpoints) == [f"ckpt-{number}"]
        assert names_in(tmp_path) == ["ckpt-2", "ckpt-3", "ckpt-5"]
        assert state_of(tmp_path).last_preserved_timestamp == 5010.0
        assert state_of(tmp_path).all_model_checkpoint_timestamps == [5020.0]
        make_manager(tmp_path, 1)  # Warned once.

    def test_a_reader_whose_clock_is_behind_writes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An evaluator on another machine, beside a trainer that preserves checkpoints."""
        clock = Clock(monkeypatch, 10 * HOUR)
        trainer = make_manager(tmp_path, 1, keep_checkpoint_every_n_hours=1)
        for _ in range(3):
            clock.now += HOUR
            trainer.save()
        make_checkpoint().write(tmp_path / "ckpt-4")  # A crash of the trainer. The evaluator has no business with it.
        before = (tmp_path / "checkpoint").read_bytes()
        clock.now -= HOUR + 120
        with pytest.warns(UserWarning, match=r"clock is 120 s behind.*registered nothing"):
            evaluator = make_manager(tmp_path, 1)
        assert evaluator.restore_or_initialize() == str(tmp_path / "ckpt-4") == evaluator.latest_checkpoint
        assert (tmp_path / "checkpoint").read_bytes() == before
        assert state_of(tmp_path).preserved_checkpoint_paths == [str(tmp_path / f"ckpt-{number}") for number in (1, 2)]

    def test_a_clock_set_back_while_a_manager_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = Clock(monkeypatch, 10 * HOUR)
        manager = make_manager(tmp_path, 1, keep_checkpoint_every_n_hours=1)
        manager.save()
        clock.now = HOUR
        for _ in range(3):
            manager.save()
            clock.now += HOUR
        assert names_in(tmp_path) == ["ckpt-1", "ckpt-3", "ckpt-4"]
        assert caplog.text.count("clock was set back") == 1

    def test_a_preserved_number_that_is_saved_again_is_a_new_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch, 10 * HOUR)
        manager = make_manager(tmp_path, 1, keep_checkpoint_every_n_hours=1)
        clock.now += HOUR
        manager.save()
        manager.save()
        assert names_in(tmp_path) == ["ckpt-1", "ckpt-2"]
        manager.save(1)
        assert names(manager.checkpoints) == ["ckpt-1"] == names_in(tmp_path)
        manager.save(5)
        assert names_in(tmp_path) == ["ckpt-5"]

    def test_a_copied_directory_keeps_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock(monkeypatch, 10 * HOUR)
        manager = make_manager(tmp_path / "a", 1, keep_checkpoint_every_n_hours=1)
        for _ in range(3):
            clock.now += HOUR
            manager.save()
        shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
        copy = make_manager(tmp_path / "b", 1)
        assert names(copy.checkpoints) == ["ckpt-3"]
        copy.save(10)
        assert names_in(tmp_path / "b") == ["ckpt-1", "ckpt-2", "ckpt-10"]


class TestStart:
    def test_unregistered_ones_are_adopted_in_the_order_of_their_commits(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, 5)
        manager.save(3)
        for value, number in ((1.0, 9), (2.0, 5)):
            make_checkpoint(value).write(tmp_path / f"ckpt-{number}")  # As a crash after the commit leaves it.
        assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-3")
        later = make_manager(tmp_path, 5)
        assert names(later.checkpoints) == ["ckpt-3", "ckpt-9", "ckpt-5"]
        assert jaxckpt.latest_checkpoint(tmp_path) == later.latest_checkpoint == str(tmp_path / "ckpt-5")
        assert later.restore_or_initialize() == str(tmp_path / "ckpt-5")
        assert later.checkpoint.value[0] == 2.0
        later.checkpoint.save_counter = 9
        for _ in range(5):
            later.save()
        assert names_in(tmp_path) == [f"ckpt-{number}" for number in range(10, 15)]

    def test_one_that_is_saved_again_while_it_is_to_be_deleted_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manager = make_manager(tmp_path, 2)
        manager.save()
        manager.save()
        other = make_manager(tmp_path, 2, checkpoint=make_checkpoint(5.0))
        real = storage.delete

        def meanwhile(path: storage.CheckpointPath, *arguments: object) -> None:
            monkeypatch.setattr(storage, "delete", real)
            other.save(checkpoint_number=1)
            real(path, *arguments)

        monkeypatch.setattr(storage, "delete", meanwhile)
        manager.save()
        assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-1") == manager.latest_checkpoint
        assert restored(manager.latest_checkpoint) == 5.0
        assert names(manager.checkpoints) == names_in(tmp_path)[::-1] == ["ckpt-3", "ckpt-1"]

    def test_an_older_unregistered_one_is_not_managed(self, tmp_path: Path) -> None:
        make_checkpoint().write(tmp_path / "ckpt-7")
        make_checkpoint().save(tmp_path / "ckpt")
        manager = make_manager(tmp_path, 1)
        assert names(manager.checkpoints) == ["ckpt-1"]
        assert manager.latest_checkpoint == str(tmp_path / "ckpt-1")
        manager.save()
        manager.save()
        assert names_in(tmp_path) == ["ckpt-7", "ckpt-9"]

    @pytest.mark.parametrize(
        "text",
        [
            'model_checkpoint_path: "ckpt-2"\n',
            'model_checkpoint_path: "ckpt-2"\nall_model_checkpoint_paths: "ckpt-1"\nall_model_checkpoint_paths: "ckpt-2"\n',
            'model_checkpoint_path: "ckpt-2"\nall_model_checkpoint_paths: ["ckpt-2", "ckpt-9"]\n# my note\n',
            "without the last three",
        ],
    )
    def test_a_state_file_written_by_hand_is_obeyed(self, text: str, tmp_path: Path) -> None:
        first = make_checkpoint()
        for value in range(1, 6):
            first.value = np.full(4, float(value))
            first.save(tmp_path / "ckpt")
        if text == "without the last three":  # Lines are deleted from what jaxckpt wrote, and its last line stays.
            lines = (tmp_path / "checkpoint").read_text().splitlines(keepends=True)
            keep = [line for line in lines if not any(f"ckpt-{number}" in line for number in (3, 4, 5))]
            text = 'model_checkpoint_path: "ckpt-2"\n' + "".join(line for line in keep if "timestamps" not in line)
        (tmp_path / "checkpoint").write_text(text)
        manager = make_manager(tmp_path, 1)
        assert (tmp_path / "checkpoint").read_text() == text
        assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-2") == manager.latest_checkpoint
        assert names(manager.checkpoints)[-1] == "ckpt-2"
        assert manager.restore_or_initialize() == str(tmp_path / "ckpt-2")
        assert manager.checkpoint.value[0] == 2.0
        assert (tmp_path / "checkpoint").read_text() == text
        # What was taken out of the list is neither restored nor deleted; what is listed is managed.
        assert [manager.save(), manager.save(2)] == [str(tmp_path / "ckpt-6"), str(tmp_path / "ckpt-2")]
        listed = {"ckpt-1"} if "ckpt-1" in text else set()
        assert set(names_in(tmp_path)) == {"ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4", "ckpt-5"} - listed
        assert names(make_manager(tmp_path, 1).checkpoints) == ["ckpt-2"]

    @pytest.mark.parametrize("saved", ["best", "other"])
    def test_a_list_shortened_by_hand_is_obeyed_after_another_name_is_saved(self, saved: str, tmp_path: Path) -> None:
        first = make_checkpoint()
        for _ in range(5):
            first.save(tmp_path / "ckpt")
        (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-2" all_model_checkpoint_paths: "ckpt-2"')
        for _ in range(2):
            if saved == "best":
                make_manager(tmp_path, checkpoint_name="best").save(checkpoint_number=len(os.listdir(tmp_path)))
            else:
                make_checkpoint().save(tmp_path / "other")
        manager = make_manager(tmp_path, 3)
        assert names(manager.checkpoints) == ["ckpt-2"]
        assert manager.restore_or_initialize() == str(tmp_path / "ckpt-2")
        make_checkpoint(7.0).write(tmp_path / "ckpt-6")  # As a crash leaves it.
        assert names(make_manager(tmp_path, 3).checkpoints) == ["ckpt-2", "ckpt-6"]

    @pytest.mark.parametrize("removed", ["from the list", "from the disk"])
    def test_what_is_not_listed_is_not_deleted_after_another_name_is_saved(self, removed: str, tmp_path: Path) -> None:
        first = make_checkpoint()
        first.write(tmp_path / "ckpt-9")
        first.save(tmp_path / "ckpt")
        make_checkpoint().save(tmp_path / "best")
        if removed == "from the list":
            (tmp_path / "checkpoint").write_text('model_checkpoint_path: "best-1"')
        else:
            shutil.rmtree(tmp_path / "ckpt-1")
        make_checkpoint().save(tmp_path / "best", options=jaxckpt.CheckpointOptions())
        manager = make_manager(tmp_path, 1)
        assert manager.checkpoints == []
        before = set(names_in(tmp_path))
        manager.save()
        assert before < set(names_in(tmp_path))

    @pytest.mark.parametrize("sealed_by", [None, "best"])
    @pytest.mark.parametrize("left", [1, 2])
    def test_a_copied_directory_of_the_first_version(self, sealed_by: str | None, left: int, tmp_path: Path) -> None:
        """Its state file has no checksum, and is younger than what a crash left."""
        first = make_checkpoint()
        for _ in range(3):
            first.save(tmp_path / "ckpt")
        for number in range(left):
            first.write(tmp_path / f"ckpt-{number + 4}")
        text = (tmp_path / "checkpoint").read_text()
        (tmp_path / "checkpoint").write_text("".join(line + "\n" for line in text.splitlines() if line[0] != "#"))
        if sealed_by is not None:
            make_checkpoint().save(tmp_path / sealed_by)
        # A crash leaves one; two were taken out of the list.
        expected = ["ckpt-1", "ckpt-2", "ckpt-3"] + ["ckpt-4"] * (left == 1)
        assert names(make_manager(tmp_path, 5).checkpoints) == expected
        (tmp_path / "checkpoint").write_text(text.replace("\n#", "\n# my note\n#"))
        assert names(make_manager(tmp_path, 5).checkpoints) == expected[:3]

    @pytest.mark.parametrize("spelled", ["./{}", "{}/", "../run/{}", ".//{}", "{run}/{}/"])
    def test_entries_spelled_in_other_ways(self, spelled: str, tmp_path: Path) -> None:
        run = tmp_path / "run"
        first = make_checkpoint()
        for _ in range(3):
            first.save(run / "ckpt")
        one, two = (spelled.format(name, run=run) for name in ("ckpt-1", "ckpt-2"))
        (run / "checkpoint").write_text(
            f'model_checkpoint_path: "{one}" all_model_checkpoint_paths: ["ckpt-1", "{two}"]'
        )
        manager = make_manager(run, 1)
        assert names(manager.checkpoints) == ["ckpt-2", "ckpt-1"]
        assert manager.latest_checkpoint == str(run / "ckpt-1") == jaxckpt.latest_checkpoint(run)
        manager.save(4)
        assert names_in(run) == ["ckpt-3", "ckpt-4"]

    def test_a_file_that_names_another_checkpoint_is_obeyed(self, tmp_path: Path) -> None:
        for _ in range(2):
            make_checkpoint(1.0).save(tmp_path / "ckpt")
        make_checkpoint(7.0).write(tmp_path / "best")
        (tmp_path / "checkpoint").write_text('model_checkpoint_path: "best"\n')
        manager = make_manager(tmp_path, 1)
        assert manager.latest_checkpoint == str(tmp_path / "best") == jaxckpt.latest_checkpoint(tmp_path)
        assert manager.restore_or_initialize() == str(tmp_path / "best")
        assert manager.checkpoint.value[0] == 7.0

    def test_what_a_crash_left_after_a_file_was_written_by_hand(self, tmp_path: Path) -> None:
        for _ in range(3):
            make_checkpoint().save(tmp_path / "ckpt")
        text = 'all_model_checkpoint_paths: "gone-1"\nmodel_checkpoint_path: "ckpt-1"\n'
        (tmp_path / "checkpoint").write_text(text)
        make_checkpoint(9.0).write(tmp_path / "ckpt-4")
        manager = make_manager(tmp_path, 5)
        assert names(manager.checkpoints) == ["ckpt-1", "ckpt-4"]
        assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-4") == manager.latest_checkpoint
        assert names(state_of(tmp_path).all_model_checkpoint_paths) == ["gone-1", "ckpt-1", "ckpt-4"]

    def test_where_nothing_that_is_listed_exists_the_disk_decides(self, tmp_path: Path) -> None:
        for value in (1.0, 2.0):
            make_checkpoint(value).save(tmp_path / "ckpt")
        (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-9"\n')
        manager = make_manager(tmp_path, 5, init_fn=pytest.fail)
        assert names(manager.checkpoints) == ["ckpt-1", "ckpt-2"]
        assert manager.restore_or_initialize() == str(tmp_path / "ckpt-2")

    def test_what_a_crash_left_is_found_beside_other_names(self, tmp_path: Path) -> None:
        """The other one registers after the crash: the file's newest entry is younger than what the crash left."""
        make_manager(tmp_path, 2).save()
        make_checkpoint(5.0).write(tmp_path / "ckpt-2")
        make_checkpoint().save(tmp_path / "other")
        manager = make_manager(tmp_path, 2)
        assert manager.restore_or_initialize() == str(tmp_path / "ckpt-2")
        assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "other-1")

    @pytest.mark.parametrize("state", [None, "", "garbage", 'model_checkpoint_path: "ckpt-4'])
    def test_a_lost_state_file_loses_no_checkpoint(
        self, state: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch, 10 * HOUR)
        manager = make_manager(tmp_path, 2, keep_checkpoint_every_n_hours=2)
        for _ in range(5):
            clock.now += HOUR
            manager.save()
        make_checkpoint().save(tmp_path / "other")
        assert names_in(tmp_path) == ["ckpt-2", "ckpt-4", "ckpt-5", "other-1"]
        (tmp_path / "checkpoint").unlink()
        if state is not None:
            (tmp_path / "checkpoint").write_text(state)
        later = make_manager(tmp_path, 2)
        assert names(later.checkpoints) == ["ckpt-2", "ckpt-4", "ckpt-5"] == names(manager.checkpoints)
        assert later.latest_checkpoint == str(tmp_path / "ckpt-5")
        for _ in range(3):
            later.checkpoint.save_counter = 5
            later.save()
        # What the limit lets stay is managed as ever; the rest may have been preserved.
        assert names_in(tmp_path) == ["ckpt-2", "ckpt-7", "ckpt-8", "other-1"]

    def test_a_state_file_lost_while_a_manager_runs(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, 2)
        for text in (None, "garbage", ""):
            manager.save()
            (tmp_path / "checkpoint").unlink()
            if text is not None:
                (tmp_path / "checkpoint").write_text(text)
        manager.save()
        assert names_in(tmp_path) == ["ckpt-3", "ckpt-4"] == names(manager.checkpoints)

    def test_a_process_killed_before_it_registers(self, tmp_path: Path) -> None:
        code = """
            import os, signal, sys
            import numpy as np
            import jaxckpt
            from jaxckpt.directory.series import CheckpointSeries
            checkpoint = jaxckpt.Checkpoint(value=np.zeros(4), step=0)
            manager = jaxckpt.CheckpointManager(checkpoint, sys.argv[1], 2)
            for number in range(3):
                checkpoint.value = np.full(4, float(number))
                if number == 2:
                    CheckpointSeries.register = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                manager.save()
        """
        process = run_python(code, tmp_path)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-2")
        manager = make_manager(tmp_path, 2)
        assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-3") == manager.restore_or_initialize()
        assert manager.checkpoint.value[0] == 2.0
        manager.save()
        assert names_in(tmp_path) == ["ckpt-3", "ckpt-4"]

    def test_leftovers_of_killed_processes_are_removed_and_foreign_ones_are_not(self, tmp_path: Path) -> None:
        code = """
            import os, signal, sys
            import numpy as np
            import jaxckpt
            from jaxckpt import storage
            from jaxckpt.storage.commit import moves, temporary
            checkpoint = jaxckpt.Checkpoint(value=np.zeros(4), step=0)
            manager = jaxckpt.CheckpointManager(checkpoint, sys.argv[1], 2)
            manager.save()
            other = temporary.TemporaryDirectory(storage.CheckpointPath(sys.argv[1], "other-1"))
            state = temporary.TemporaryDirectory(storage.CheckpointPath(sys.argv[1], "checkpoint"))
            moves.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            manager.save()
        """
        process = run_python(code, tmp_path)
        assert process.returncode == -signal.SIGKILL, process.stderr
        (tmp_path / "ckpt-9.orbax-checkpoint-tmp").mkdir()
        assert len(names_in(tmp_path)) == 5
        live = temporary.TemporaryDirectory(storage.CheckpointPath(str(tmp_path), "ckpt-8"))
        make_manager(tmp_path, 2)
        left = names_in(tmp_path)
        assert len(left) == 4
        assert {"ckpt-1", "ckpt-9.orbax-checkpoint-tmp", os.path.basename(live.path)} < set(left)
        assert any(name.startswith("other-1.") for name in left)

    def test_without_anything_to_put_right_nothing_is_written(self, tmp_path: Path) -> None:
        make_manager(tmp_path).save()
        before = (tmp_path / "checkpoint").stat()
        make_manager(tmp_path)
        make_manager(tmp_path, checkpoint_name="other")
        after = (tmp_path / "checkpoint").stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    def test_a_directory_that_cannot_be_changed_can_still_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_manager(tmp_path).save()
        make_checkpoint(5.0).write(tmp_path / "ckpt-2")

        def fail(directory: str, records: Records) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), directory)

        monkeypatch.setattr(state_file, "write", fail)
        manager = make_manager(tmp_path)
        assert "Read-only file system" in caplog.text
        assert manager.restore_or_initialize() == str(tmp_path / "ckpt-2")
        assert manager.checkpoint.value[0] == 5.0

    def test_a_moved_directory(self, tmp_path: Path) -> None:
        make_manager(tmp_path / "a").save()
        (tmp_path / "a").rename(tmp_path / "b")
        manager = make_manager(tmp_path / "b")
        assert manager.restore_or_initialize() == str(tmp_path / "b" / "ckpt-1")


class TestInterval:
    def test_tensorflows_rules(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint()
        manager = make_manager(
            tmp_path, None, checkpoint=checkpoint, step_counter=lambda: checkpoint.step, checkpoint_interval=10
        )
        assert manager.last_checkpoint_step is None
        checkpoint.step = 3
        assert manager.save() == str(tmp_path / "ckpt-1")  # The first call always saves.
        assert manager.save(check_interval=False) is None  # The same step never twice.
        checkpoint.step = 12
        assert manager.save() is None
        assert manager.save(check_interval=False) == str(tmp_path / "ckpt-2")
        checkpoint.step = 21
        assert manager.save() is None
        checkpoint.step = 22
        assert manager.save() == str(tmp_path / "ckpt-3")
        assert manager.last_checkpoint_step == 22
        checkpoint.step = 5  # Back, for example after an older checkpoint was restored.
        with pytest.warns(UserWarning, match="the step went back from 22, which was saved, to 5"):
            assert manager.save() is None
        assert manager.save() is None  # It warns once.
        assert manager.save(check_interval=False) == str(tmp_path / "ckpt-4")

    @pytest.mark.parametrize(
        "make", [int, float, np.int64, jnp.int32, jnp.float32, np.array, lambda step: nnx.Variable(jnp.int32(step))]
    )
    def test_functions_that_give_the_step(self, make: Callable[[int], Any], tmp_path: Path) -> None:
        for step, saves in ((29, False), (30, True)):
            manager = make_manager(
                tmp_path,
                None,
                step_counter=functools.partial(make, step),
                checkpoint_interval=10,
                last_checkpoint_step=20,
            )
            assert (manager.save() is not None) == saves

    @pytest.mark.parametrize(
        "number",
        [3, 3.0, Fraction(3), np.int64(3), np.float32(3), jnp.int32(3), np.asarray(jnp.int32(3))],
        ids=lambda number: type(number).__name__,
    )
    def test_a_counter_that_cannot_count_is_refused(self, number: Any, tmp_path: Path) -> None:
        for interval in (None, 10):
            with pytest.raises(ValueError, match=r"can never change.*step_counter=lambda: checkpoint\.step"):
                make_manager(tmp_path / "d", step_counter=number, checkpoint_interval=interval)
        with pytest.raises(ValueError, match="step_counter=lambda"):
            jaxckpt.CheckpointConfig(str(tmp_path / "d"), 3, step_counter=number)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("bad", [True, np.bool_(True), "3", b"3", np.array(True), np.array("3"), np.array([3])])
    def test_a_counter_that_is_no_number_is_refused(self, bad: Any, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="step_counter must give the current step"):
            make_manager(tmp_path, step_counter=bad)
        with pytest.raises(TypeError, match="step_counter must give the current step"):
            make_manager(tmp_path, step_counter=lambda: bad, checkpoint_interval=1).save()

    @pytest.mark.parametrize("method", ["__int__", "__index__"])
    @pytest.mark.parametrize("bases", [(), (abc.Callable,)], ids=["plain", "callable"])
    def test_objects_that_count(self, method: str, bases: tuple[type, ...], tmp_path: Path) -> None:
        """An object with one of the two methods alone is enough, whether or not it can be called too."""
        members = {method: lambda self: self.step, "__call__": lambda self: pytest.fail("called")}
        counter = type("Counter", bases, members if bases else {method: members[method]})()
        counter.step = 2**60 + 1  # `float()` would round it.
        self.count(counter, counter.__dict__.__setitem__, "step", tmp_path)

    def test_arrays_that_count(self, tmp_path: Path) -> None:
        array = np.array(2**60 + 1)
        self.count(array, array.__setitem__, (), tmp_path)

    @staticmethod
    def count(counter: Any, change: Callable[[Any, int], None], key: Any, directory: Path) -> None:
        manager = make_manager(directory, None, step_counter=counter, checkpoint_interval=2)
        saved = []
        for step in range(2**60 + 1, 2**60 + 7):
            change(key, step)
            saved.append(manager.save() is not None)
            assert manager.last_checkpoint_step == step - (not saved[-1])
        assert saved == [True, False, True, False, True, False]

    def test_a_step_counter_that_changes_in_place(self, tmp_path: Path) -> None:
        step = nnx.Variable(jnp.int32(0))
        manager = make_manager(tmp_path, None, step_counter=step, checkpoint_interval=2)
        saved = []
        for _ in range(6):
            saved.append(manager.save() is not None)
            step[...] = step[...] + 1
        assert saved == [True, False, True, False, True, False]

    def test_a_function_that_gives_no_step(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, step_counter=lambda: "five", checkpoint_interval=1)
        with pytest.raises(TypeError, match="step_counter"):
            manager.save()
        assert not os.listdir(tmp_path)

    def test_without_an_interval_every_call_saves(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, step_counter=lambda: 5)
        assert [manager.save(), manager.save()] == [str(tmp_path / "ckpt-1"), str(tmp_path / "ckpt-2")]
        assert manager.last_checkpoint_step is None

    def test_last_checkpoint_step(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, step_counter=lambda: 9, checkpoint_interval=5, last_checkpoint_step=5)
        assert manager.save() is None
        manager = make_manager(tmp_path, step_counter=lambda: 10, checkpoint_interval=5, last_checkpoint_step=5)
        assert manager.save() is not None

    def test_a_restore_counts_as_a_save(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint()
        checkpoint.step = 7
        checkpoint.save(tmp_path / "ckpt")
        fresh = make_checkpoint()
        manager = make_manager(
            tmp_path, checkpoint=fresh, step_counter=lambda: fresh.step, checkpoint_interval=5, init_fn=pytest.fail
        )
        assert manager.restore_or_initialize() == str(tmp_path / "ckpt-1")
        assert (fresh.step, manager.last_checkpoint_step) == (7, 7)
        assert manager.save(check_interval=False) is None
        fresh.step = 11
        assert manager.save() is None
        fresh.step = 12
        assert manager.save() == str(tmp_path / "ckpt-2")

    def test_initialization_does_not_count_as_a_save(self, tmp_path: Path) -> None:
        calls: list[int] = []
        manager = make_manager(tmp_path, step_counter=lambda: 0, checkpoint_interval=5, init_fn=lambda: calls.append(1))
        assert manager.restore_or_initialize() is None
        assert calls == [1]
        assert manager.save() is not None

    def test_a_failed_save_does_not_count(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint()
        manager = make_manager(
            tmp_path, checkpoint=checkpoint, step_counter=lambda: checkpoint.step, checkpoint_interval=5
        )
        manager.save()
        checkpoint.step = 5
        checkpoint.bad = object()
        with pytest.raises(TypeError, match="bad"):
            manager.save()
        assert (manager.last_checkpoint_step, checkpoint.save_counter) == (0, 1)
        del checkpoint.bad
        assert manager.save() == str(tmp_path / "ckpt-2")

    def test_a_failed_registration_does_not_count(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, step_counter=lambda: 5, checkpoint_interval=5)
        (tmp_path / "checkpoint").mkdir()
        with pytest.raises(IsADirectoryError):
            manager.save()
        assert manager.last_checkpoint_step is None
        assert names_in(tmp_path) == []
        (tmp_path / "checkpoint").rmdir()
        assert manager.save() == str(tmp_path / "ckpt-1")


class TestAsync:
    def test_the_previous_one_is_the_latest_until_the_new_one_is_committed(self, tmp_path: Path) -> None:
        go = threading.Event()
        seen: list[tuple[str | None, list[str], str | None]] = []
        manager = make_manager(tmp_path, 1, options=ASYNC())

        def look(path: str) -> None:
            seen.append((manager.latest_checkpoint, names(manager.checkpoints), jaxckpt.latest_checkpoint(tmp_path)))
            assert go.wait(60)

        options = ASYNC(experimental_write_callbacks=[look])
        go.set()
        first = manager.save(options=options)
        manager.sync()
        assert seen == [(first, ["ckpt-1"], first)]
        go.clear()
        second = manager.save(options=options)
        while len(seen) < 2:
            time.sleep(0.001)
        # The callback runs: the new one is the latest, the old one is not deleted yet.
        assert seen[1] == (second, ["ckpt-1", "ckpt-2"], second)
        assert names_in(tmp_path) == ["ckpt-1", "ckpt-2"]
        go.set()
        manager.sync()
        assert names_in(tmp_path) == ["ckpt-2"] == names(manager.checkpoints)

    def test_a_callback_that_looks_never_waits_for_a_save_that_waits_for_it(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, 2)
        seen: list[str | None] = []
        entered = threading.Event()

        def look(path: str) -> None:
            entered.set()
            time.sleep(0.05)  # The other thread gets into save meanwhile.
            assert manager.latest_checkpoint == path
            assert path in manager.checkpoints
            seen.append(path)

        options = ASYNC(experimental_write_callbacks=[look])
        paths = []
        for _ in range(5):
            entered.clear()
            paths.append(manager.save(options=options))
            assert entered.wait(60)
        manager.sync()
        assert seen == paths
        assert names_in(tmp_path) == ["ckpt-4", "ckpt-5"]

    @pytest.mark.parametrize("call", ["save", "restore_or_initialize", "sync"])
    def test_a_callback_that_would_wait_for_itself_gets_an_error(self, call: str, tmp_path: Path) -> None:
        manager = make_manager(tmp_path)
        manager.save(options=ASYNC(experimental_write_callbacks=[lambda: getattr(manager, call)()]))
        with pytest.raises(RuntimeError, match=r"[Cc]allback"):
            manager.sync()
        assert names(manager.checkpoints) == ["ckpt-1"]

    def test_restore_waits_for_the_save_in_flight(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(4.0)
        manager = make_manager(tmp_path, checkpoint=checkpoint, options=ASYNC(), init_fn=pytest.fail)
        path = manager.save()
        checkpoint.value = np.zeros(4)
        assert manager.restore_or_initialize() == path
        assert checkpoint.value[0] == 4.0

    def test_a_background_failure_does_not_count_as_saved(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint()
        directory = tmp_path / "d"
        manager = make_manager(
            directory,
            checkpoint=checkpoint,
            step_counter=lambda: checkpoint.step,
            checkpoint_interval=5,
            options=ASYNC(),
        )
        manager.save()
        manager.sync()
        shutil.rmtree(directory)
        directory.write_text("in the way")
        checkpoint.step = 5
        assert manager.save() == str(directory / "ckpt-2")
        with pytest.raises(OSError, match=r".") as caught:
            manager.sync()
        assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
        assert manager.last_checkpoint_step == 0
        directory.unlink()
        path = manager.save()
        assert path is not None
        manager.sync()
        assert manager.checkpoints == [path]
        assert manager.last_checkpoint_step == 5
        assert manager.save() is None

    def test_the_save_after_a_background_failure_raises_it_and_can_be_called_again(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint()
        directory = tmp_path / "d"
        directory.write_text("in the way")
        manager = make_manager(
            directory,
            checkpoint=checkpoint,
            step_counter=lambda: checkpoint.step,
            checkpoint_interval=5,
            options=ASYNC(),
        )
        manager.save()
        checkpoint.step = 5
        with pytest.raises(OSError, match=r"."):
            manager.save()
        assert manager.last_checkpoint_step is None
        directory.unlink()
        assert manager.save() is not None
        manager.sync()
        assert manager.last_checkpoint_step == 5

    def test_a_failed_callback_counts_as_saved(self, tmp_path: Path) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        manager = make_manager(tmp_path, step_counter=lambda: 3, checkpoint_interval=5)
        path = manager.save(options=ASYNC(experimental_write_callbacks=[fail]))
        with pytest.raises(ZeroDivisionError):
            manager.sync()
        assert manager.checkpoints == [path]
        assert manager.last_checkpoint_step == 3
        assert manager.save() is None

    def test_a_change_of_the_working_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        manager = jaxckpt.CheckpointManager(make_checkpoint(), "d", 1, options=ASYNC())
        for number in (1, 2):
            assert manager.save() == f"d/ckpt-{number}"
            os.chdir(tmp_path / "elsewhere")
            manager.sync()
            os.chdir(tmp_path)
        assert manager.checkpoints == ["d/ckpt-2"]
        assert names_in(tmp_path / "d") == ["ckpt-2"]
        assert not os.listdir("elsewhere")

    def test_threads_never_save_a_step_twice(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint()
        manager = make_manager(
            tmp_path, None, checkpoint=checkpoint, step_counter=lambda: 4, checkpoint_interval=1, options=ASYNC()
        )
        found: list[str | None] = []
        threads = [threading.Thread(target=lambda: found.append(manager.save())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        manager.sync()
        assert sorted(found, key=str) == [str(tmp_path / "ckpt-1"), *[None] * 7]

    def test_checkpoints_of_several_threads_in_one_directory(self, tmp_path: Path) -> None:
        managers = [make_manager(tmp_path, None, options=ASYNC()) for _ in range(4)]

        def work(manager: jaxckpt.CheckpointManager) -> None:
            for _ in range(5):
                manager.save()
            manager.sync()

        threads = [threading.Thread(target=work, args=(manager,)) for manager in managers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(managers[0].checkpoints) == 20
        assert set(names(managers[0].checkpoints)) == set(names_in(tmp_path))


class TestRestore:
    def test_a_corrupt_latest_raises(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, init_fn=pytest.fail)
        manager.save()
        manager.save()
        damage(str(tmp_path / "ckpt-2"))
        with pytest.raises(jaxckpt.CorruptCheckpointError):
            manager.restore_or_initialize()

    def test_skip_corrupt_takes_the_newest_that_verifies(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, None, init_fn=pytest.fail)
        for value in (1.0, 2.0, 3.0, 4.0):
            manager.checkpoint.value = np.full(4, value)
            manager.save()
        for number in (3, 4):
            damage(str(tmp_path / f"ckpt-{number}"))
        fresh = make_checkpoint()
        later = make_manager(tmp_path, None, checkpoint=fresh, step_counter=lambda: 8, checkpoint_interval=1)
        with pytest.warns(UserWarning, match="Skipping the damaged") as caught:
            assert later.restore_or_initialize(skip_corrupt=True) == str(tmp_path / "ckpt-2")
        assert [str(tmp_path / f"ckpt-{n}") in str(w.message) for n, w in zip((4, 3), caught, strict=True)] == [
            True
        ] * 2
        assert all(str(warning.message).count(":") for warning in caught)
        assert fresh.value[0] == 2.0
        assert later.last_checkpoint_step == 8
        # The next save takes a free number: nothing is overwritten.
        later = make_manager(tmp_path, None, checkpoint=fresh)
        assert later.save() == str(tmp_path / "ckpt-5")

    def test_preserved_ones_are_a_last_resort(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock(monkeypatch, 10 * HOUR)
        manager = make_manager(tmp_path, 1, keep_checkpoint_every_n_hours=1)
        for value in (1.0, 2.0, 3.0):
            clock.now += HOUR
            manager.checkpoint.value = np.full(4, value)
            manager.save()
        damage(str(tmp_path / "ckpt-3"))
        with pytest.warns(UserWarning, match="Skipping"):
            assert manager.restore_or_initialize(skip_corrupt=True) == str(tmp_path / "ckpt-2")
        shutil.rmtree(tmp_path / "ckpt-3")
        assert manager.checkpoints == []
        assert manager.latest_checkpoint == str(tmp_path / "ckpt-2")
        assert manager.restore_or_initialize() == str(tmp_path / "ckpt-2")

    def test_nothing_is_initialized_over_damaged_checkpoints(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, None, init_fn=pytest.fail)
        for _ in range(2):
            manager.save()
        for number in (1, 2):
            damage(str(tmp_path / f"ckpt-{number}"))
        with pytest.warns(UserWarning, match="Skipping"), pytest.raises(jaxckpt.CorruptCheckpointError, match="ckpt-2"):
            manager.restore_or_initialize(skip_corrupt=True)

    def test_a_latest_without_any_mark_is_damaged_not_gone(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path)
        manager.checkpoint.value = np.ones(4)
        manager.save()
        manager.save()
        for entry in (tmp_path / "ckpt-2").iterdir():
            if entry.is_file():
                entry.unlink()
        for again in (manager, make_manager(tmp_path, init_fn=pytest.fail)):
            assert names(again.checkpoints) == ["ckpt-1"]
            with pytest.raises(jaxckpt.CorruptCheckpointError, match="ckpt-2"):
                again.restore_or_initialize()
            with pytest.warns(UserWarning, match="ckpt-2"):
                assert again.restore_or_initialize(skip_corrupt=True) == str(tmp_path / "ckpt-1")

    def test_other_errors_are_not_skipped(self, tmp_path: Path) -> None:
        make_manager(tmp_path).save()
        manager = make_manager(tmp_path, checkpoint=jaxckpt.Checkpoint(value=np.zeros(5), step=0))
        with pytest.raises(ValueError, match="value"):
            manager.restore_or_initialize(skip_corrupt=True)

    def test_a_partial_restore_warns(self, tmp_path: Path) -> None:
        make_manager(tmp_path).save()
        manager = make_manager(tmp_path, checkpoint=jaxckpt.Checkpoint(value=np.zeros(4), step=0, more=1))
        with pytest.warns(UserWarning, match="more"):
            assert manager.restore_or_initialize() == str(tmp_path / "ckpt-1")

    def test_without_init_fn_nothing_happens(self, tmp_path: Path) -> None:
        assert make_manager(tmp_path / "missing").restore_or_initialize() is None
        assert not os.listdir(tmp_path)

    def test_the_error_of_init_fn_is_raised(self, tmp_path: Path) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            make_manager(tmp_path, init_fn=fail).restore_or_initialize()

    def test_wrong_options(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, init_fn=pytest.fail)
        with pytest.raises(TypeError, match="options"):
            manager.restore_or_initialize(3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="99"):
            manager.restore_or_initialize(jaxckpt.CheckpointOptions(experimental_io_device=99))


class TestBesideRetention:
    """An evaluator beside a trainer that deletes what it has just found."""

    @pytest.fixture
    def trainer(self, tmp_path: Path) -> jaxckpt.CheckpointManager:
        trainer = make_manager(tmp_path, 1)
        trainer.save()
        return trainer

    @staticmethod
    def save_before_each_look(
        monkeypatch: pytest.MonkeyPatch, trainer: jaxckpt.CheckpointManager, times: int
    ) -> list[str]:
        """Lets the trainer save, and delete, between the moment a path is found and the moment it is looked at."""
        look, saved = storage.is_checkpoint, []

        def is_checkpoint(path: str) -> bool:
            if len(saved) < times:
                saved.append("")
                trainer.checkpoint.value = trainer.checkpoint.value + 1
                saved[-1] = trainer.save()
            return look(path)

        monkeypatch.setattr(storage, "is_checkpoint", is_checkpoint)
        return saved

    @pytest.mark.parametrize("times", [1, 3])
    @pytest.mark.parametrize(
        "find",
        [
            lambda directory: make_manager(directory, 1).latest_checkpoint,
            lambda directory: make_manager(directory, 1, init_fn=pytest.fail).restore_or_initialize(),
            lambda directory: jaxckpt.latest_checkpoint(directory),
            lambda directory: next(jaxckpt.checkpoints_iterator(directory, timeout=0)),
        ],
        ids=["manager", "restore", "function", "iterator"],
    )
    def test_the_newest_then_is_found(
        self,
        find: Callable[[Path], str | None],
        times: int,
        trainer: jaxckpt.CheckpointManager,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        saved = self.save_before_each_look(monkeypatch, trainer, times)
        assert find(tmp_path) == saved[-1] == str(tmp_path / f"ckpt-{times + 1}")

    def test_deleted_while_it_is_read(self, trainer: jaxckpt.CheckpointManager, tmp_path: Path) -> None:
        class Racing(jaxckpt.Checkpoint):
            def restore(self, path: str, options: Any = None) -> Any:
                if len(paths) < 3:
                    trainer.checkpoint.value = trainer.checkpoint.value + 1
                    trainer.save()
                paths.append(path)
                return super().restore(path, options)

        paths: list[str] = []
        evaluator = make_manager(tmp_path, 1, checkpoint=Racing(value=np.zeros(4), step=0), init_fn=pytest.fail)
        assert evaluator.restore_or_initialize() == str(tmp_path / "ckpt-4")
        assert names(paths) == ["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4"]
        assert evaluator.checkpoint.value[0] == 3.0

    def test_all_deleted(self, trainer: jaxckpt.CheckpointManager, tmp_path: Path) -> None:
        """That there was one is no reason to start anew."""

        class Racing(jaxckpt.Checkpoint):
            def restore(self, path: str, options: Any = None) -> Any:
                shutil.rmtree(path)
                return super().restore(path, options)

        evaluator = make_manager(tmp_path, 1, checkpoint=Racing(value=np.zeros(4), step=0), init_fn=pytest.fail)
        with pytest.raises(FileNotFoundError, match="All checkpoints were deleted") as caught:
            evaluator.restore_or_initialize()
        assert caught.value.filename == str(tmp_path / "ckpt-1")

    def test_a_trainer_that_is_always_faster(self, trainer: jaxckpt.CheckpointManager, tmp_path: Path) -> None:
        class Racing(jaxckpt.Checkpoint):
            def restore(self, path: str, options: Any = None) -> Any:
                trainer.save()
                return super().restore(path, options)

        evaluator = make_manager(tmp_path, 1, checkpoint=Racing(value=np.zeros(4), step=0))
        with pytest.raises((FileNotFoundError, jaxckpt.CorruptCheckpointError)):
            evaluator.restore_or_initialize()

    def test_two_programs(self, trainer: jaxckpt.CheckpointManager, tmp_path: Path) -> None:
        ended = threading.Event()
        errors: list[BaseException] = []

        def train() -> None:
            try:
                while not ended.is_set():
                    trainer.checkpoint.value = trainer.checkpoint.value + 1
                    trainer.save()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=train)
        thread.start()
        try:
            last = -1.0
            for _ in range(40):
                evaluator = make_manager(tmp_path, 1, init_fn=pytest.fail)
                assert evaluator.latest_checkpoint is not None
                assert jaxckpt.latest_checkpoint(tmp_path) is not None
                assert evaluator.restore_or_initialize() is not None
                assert evaluator.checkpoint.value[0] >= last
                last = evaluator.checkpoint.value[0]
        finally:
            ended.set()
            thread.join()
        assert errors == []


class ManagerMachine(RuleBasedStateMachine):
    """A manager against a model of the rules, over restarts, crashes, deletions and lost state files."""

    NUMBERS = st.integers(0, 6)

    @initialize(keep=st.sampled_from([1, 2, 3, None]), hours=st.sampled_from([None, 1.5, 2.5]))
    def begin(self, keep: int | None, hours: float | None) -> None:
        self.patch = pytest.MonkeyPatch()
        logging.getLogger("jaxckpt").setLevel(logging.CRITICAL)
        self.directory = Path(tempfile.mkdtemp(prefix="jaxckpt-test-"))
        self.clock = Clock(self.patch, 0.0, goes_on=True)
        self.times: dict[str, float] = {}  # name -> when its commit began
        self.patch.setattr(on_disk, "commit_time", lambda path: self.times.get(os.path.basename(path), 0.0))
        self.checkpoint = jaxckpt.Checkpoint(value=np.zeros(2), saved=0)
        self.saved = 0
        self.contents: dict[int, int] = {}  # number -> which save wrote it: the order of commits
        self.committed_at: dict[int, int] = {}  # number -> hour
        self.hour = 0
        self.listed: dict[int, int] = {}  # number -> hour, oldest first
        self.kept: set[int] = set()
        self.preserved: int | None = None
        self.restart(keep, hours)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            logging.getLogger("jaxckpt").setLevel(logging.NOTSET)
            shutil.rmtree(self.directory)

    # --- The model. `listed` and `kept` are what the state file says; what else is on disk is adopted when it is looked
    # at.

    def newest(self, listed: dict[int, int]) -> set[int]:
        return set(listed if self.keep is None else list(listed)[-self.keep :])

    def committed(self, number: int, began: float) -> None:
        self.times[f"name-{number}"] = began
        self.committed_at[number] = self.hour
        self.saved += 1
        self.contents[number] = self.saved

    def view(self, new: int | None = None) -> tuple[dict[int, int], set[int]]:
        """What is listed and kept once checkpoints that no list names (but for a new one) have been adopted."""
        listed = {number: hour for number, hour in self.listed.items() if number in self.contents and number != new}
        kept = self.kept & set(self.contents)
        order = list(listed)
        unknown = set(self.contents) - set(listed) - kept - {new}
        for number in sorted(unknown, key=lambda number: self.contents[number]):
            place = len(order)
            while place and self.contents[order[place - 1]] > self.contents[number]:
                place -= 1
            order.insert(place, number)
        listed = {number: listed.get(number, self.committed_at[number]) for number in order}
        return listed, kept | (unknown - self.newest(listed))

    def registered(self, number: int) -> None:
        self.listed, self.kept = self.view(new=number)
        if self.preserved is None:
            self.preserved = self.started
        self.listed.pop(number, None)
        self.listed[number] = self.hour
        self.kept.discard(number)
        for old in [number for number in self.listed if number not in self.newest(self.listed)]:
            hour = self.listed.pop(old)
            if old in self.kept:
                continue
            if self.hours is not None and hour - self.hours >= self.preserved:
                self.preserved = hour
                self.kept.add(old)
            else:
                del self.contents[old]

    # --- What happens.

    @rule(keep=st.sampled_from([1, 2, 3, None]), hours=st.sampled_from([None, 1.5, 2.5]))
    def restart(self, keep: int | None, hours: float | None) -> None:
        self.keep, self.hours = keep, hours
        self.manager = jaxckpt.CheckpointManager(self.checkpoint, self.directory, keep, hours, checkpoint_name="name")
        listed, kept = self.view()
        # A period starts with the manager, if the directory is empty; otherwise long ago, so that the first that is due
        # is preserved.
        self.started = -(10**6) if listed else self.hour
        if listed:
            self.listed, self.kept = listed, kept
            self.preserved = self.started if self.preserved is None else self.preserved

    @rule()
    def save(self) -> None:
        self.checkpoint.saved, began = self.saved + 1, self.clock.time()
        number = self.checkpoint.save_counter + 1
        if number in self.contents:
            number = max(self.contents) + 1
        assert self.manager.save() == str(self.directory / f"name-{number}")
        self.committed(number, began)
        self.registered(number)

    @rule(number=NUMBERS)
    def save_number(self, number: int) -> None:
        self.checkpoint.saved, began = self.saved + 1, self.clock.time()
        assert self.manager.save(number) == str(self.directory / f"name-{number}")
        self.committed(number, began)
        self.registered(number)

    @rule()
    def save_in_background_with_a_failing_callback(self) -> None:
        self.checkpoint.saved, began = self.saved + 1, self.clock.time()
        number = max([*self.contents, 0]) + 1

        def fail() -> None:
            raise ZeroDivisionError

        self.manager.save(number, options=ASYNC(experimental_write_callbacks=[fail]))
        with pytest.raises(ZeroDivisionError):
            self.manager.sync()
        self.committed(number, began)
        self.registered(number)

    @rule()
    def save_fails(self) -> None:
        self.checkpoint.bad = object()
        with pytest.raises(TypeError, match="bad"):
            self.manager.save()
        del self.checkpoint.bad

    @rule()
    def commit_without_registering(self) -> None:
        """As a crash between the two leaves it."""
        # Not a number that the state file lists although its checkpoint was deleted: the new one would count as registered when the
        # deleted one was, and what was committed before it, as taken out of the list by the user. The model does not know that.
        number = max([*self.contents, *self.listed, 0]) + 1
        self.checkpoint.saved, began = self.saved + 1, self.clock.time()
        self.checkpoint.write(self.directory / f"name-{number}")
        self.committed(number, began)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def delete_externally(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.contents)))
        shutil.rmtree(self.directory / f"name-{number}")
        del self.contents[number]

    @rule(hours=st.integers(1, 3))
    def wait(self, hours: int) -> None:
        self.hour += hours
        self.clock.now += hours * HOUR

    @rule(garbage=st.sampled_from([None, "garbage", ""]))
    def lose_the_state_file(self, garbage: str | None) -> None:
        if not self.directory.exists():
            return
        (self.directory / "checkpoint").unlink(missing_ok=True)
        if garbage is not None:
            (self.directory / "checkpoint").write_text(garbage)
        self.listed, self.kept, self.preserved = {}, set(), None

    @precondition(lambda self: self.manager.latest_checkpoint is not None)
    @rule()
    def restore(self) -> None:
        listed, kept = self.view()
        expected = list(listed)[-1] if listed else max(kept, key=lambda number: self.contents[number])
        checkpoint, self.checkpoint = self.checkpoint, jaxckpt.Checkpoint(value=np.ones(2), saved=-1)
        checkpoint.sync()
        self.checkpoint.save_counter = checkpoint.save_counter
        self.restart(self.keep, self.hours)
        assert self.manager.restore_or_initialize() == str(self.directory / f"name-{expected}")
        assert self.checkpoint.saved == self.contents[expected]

    # --- What must hold.

    @invariant()
    def lists_agree(self) -> None:
        if not hasattr(self, "manager"):
            return
        listed, kept = self.view()
        assert names(self.manager.checkpoints) == [f"name-{number}" for number in listed]
        assert set(self.contents) == set(listed) | kept
        found = set(names_in(self.directory)) if self.directory.exists() else set()
        assert found == {f"name-{number}" for number in self.contents}
        if listed:
            assert self.manager.latest_checkpoint == str(self.directory / f"name-{list(listed)[-1]}")
        elif not self.contents:
            assert self.manager.latest_checkpoint is None


ManagerMachine.TestCase.settings = hypothesis.settings(
    max_examples=25, stateful_step_count=15, suppress_health_check=list(hypothesis.HealthCheck)
)
TestManagerMachine = ManagerMachine.TestCase
