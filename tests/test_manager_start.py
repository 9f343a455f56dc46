"""CheckpointManager: what it finds in its directory when it starts."""

import errno
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from manager_helpers import (
    HOUR,
    Clock,
    make_checkpoint,
    make_manager,
    names,
    names_in,
    restored,
    run_python,
    state_of,
)

import jaxckpt
from jaxckpt import storage
from jaxckpt.directory import state_file
from jaxckpt.directory.state_file import Records
from jaxckpt.storage.commit import temporary

pytestmark = pytest.mark.sampled


class TestStart:
    def test_unregistered_ones_are_adopted_in_the_order_of_their_commits(self, tmp_path: Path) -> None:
        manager = make_manager(tmp_path, 5)
        manager.save(3)
        for value, number in ((1.0, 9), (2.0, 5)):
            # A crash after the commit leaves it like this.
            make_checkpoint(value).write(tmp_path / f"ckpt-{number}")
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
        # Lines are deleted from what jaxckpt wrote, and its last line stays.
        if text == "without the last three":
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
        # A crash leaves it like this.
        make_checkpoint(7.0).write(tmp_path / "ckpt-6")
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

    @pytest.mark.slow
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

    @pytest.mark.slow
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
