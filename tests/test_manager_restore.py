"""CheckpointManager: what it restores, and restoring while others delete."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manager_helpers import (
    HOUR,
    Clock,
    damage,
    make_checkpoint,
    make_manager,
    names,
)

import jaxckpt
from jaxckpt import storage


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
