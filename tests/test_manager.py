"""CheckpointManager: arguments, numbers, retention, intervals, and saves in the background."""

import errno
import functools
import os
import shutil
import threading
import time
from collections import abc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np
import pytest
from manager_helpers import (
    ASYNC,
    HOUR,
    Clock,
    make_checkpoint,
    make_manager,
    names,
    names_in,
    restored,
    state_of,
)

import jaxckpt
from jaxckpt import storage


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
        # Nothing is deleted before there is something new.
        assert len(later.checkpoints) == 4
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
        # The file is changed by the next save only.
        assert jaxckpt.latest_checkpoint(tmp_path) is None
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

    def test_one_that_another_program_replaces_at_that_moment_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without an exchange of directories, nothing is there for a moment."""
        aside, identity = tmp_path / "aside", storage.identity

        def looked_at(path: str) -> object | None:
            os.rename(path, aside)
            try:
                return identity(path)
            finally:
                os.rename(aside, path)

        manager = make_manager(tmp_path, 1)
        manager.save()
        with monkeypatch.context() as patch:
            patch.setattr(storage, "identity", looked_at)
            manager.save()
        assert names_in(tmp_path) == ["ckpt-1", "ckpt-2"]
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
        # The warning came once.
        make_manager(tmp_path, 1)

    def test_a_reader_whose_clock_is_behind_writes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An evaluator on another machine, beside a trainer that preserves checkpoints."""
        clock = Clock(monkeypatch, 10 * HOUR)
        trainer = make_manager(tmp_path, 1, keep_checkpoint_every_n_hours=1)
        for _ in range(3):
            clock.now += HOUR
            trainer.save()
        # This is what a crash of the trainer leaves. It does not concern the evaluator.
        make_checkpoint().write(tmp_path / "ckpt-4")
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


class TestInterval:
    def test_tensorflows_rules(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint()
        manager = make_manager(
            tmp_path, None, checkpoint=checkpoint, step_counter=lambda: checkpoint.step, checkpoint_interval=10
        )
        assert manager.last_checkpoint_step is None
        checkpoint.step = 3
        # The first call always saves.
        assert manager.save() == str(tmp_path / "ckpt-1")
        # The same step is never saved twice.
        assert manager.save(check_interval=False) is None
        checkpoint.step = 12
        assert manager.save() is None
        assert manager.save(check_interval=False) == str(tmp_path / "ckpt-2")
        checkpoint.step = 21
        assert manager.save() is None
        checkpoint.step = 22
        assert manager.save() == str(tmp_path / "ckpt-3")
        assert manager.last_checkpoint_step == 22
        # The step goes back, for example after an older checkpoint was restored.
        checkpoint.step = 5
        with pytest.warns(UserWarning, match="the step went back from 22, which was saved, to 5"):
            assert manager.save() is None
        # The manager warns once.
        assert manager.save() is None
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
        # `float()` would round it.
        counter.step = 2**60 + 1
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
            # The other thread gets into save meanwhile.
            time.sleep(0.05)
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
