"""Paths that nothing may be saved over, and the functions that delete: only a checkpoint, and only what jaxckpt left."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import jaxckpt
from jaxckpt import storage
from jaxckpt.directory import registration
from jaxckpt.storage import CheckpointPath
from jaxckpt.storage.commit import by_rename, moves, temporary
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.stores import renames


def snapshot_of(directory: Path) -> dict[str, bytes | None]:
    """Everything below a directory, and the content of files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in directory.rglob("*")
    }


def a_checkpoint(path: Path, value: float = 1.0) -> CheckpointPath:
    return CheckpointPath.of(jaxckpt.Checkpoint(value=np.full(3, value)).write(path))


def value_at(path: Path) -> float:
    return float(jaxckpt.load_checkpoint(path).get_tensor("value")[0])


class TestPath:
    @pytest.mark.parametrize("path", ["", ".", "..", "/", "ckpt", "run/ckpt", "/run/", "/run/.", "/run/..", "gs://"])
    def test_what_is_no_place_for_a_checkpoint(self, path: str) -> None:
        with pytest.raises(ValueError, match="path of a checkpoint|does not name a bucket"):
            CheckpointPath.of(path)

    @pytest.mark.parametrize("bucket", ["gs://bucket", "gs://bucket/"])
    def test_a_whole_bucket(self, bucket: str) -> None:
        with pytest.raises(ValueError, match="does not name a bucket|ends in a name"):
            CheckpointPath.of(bucket)

    @pytest.mark.parametrize("path", ["/ckpt", "/a/b/ckpt-1", "gs://bucket/ckpt", "gs://bucket/run/ckpt-1"])
    def test_what_is_one(self, path: str) -> None:
        assert str(CheckpointPath.of(path)) == path

    def test_the_working_directory_and_home_with_all_above_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        work, home = tmp_path / "a" / "work", tmp_path / "b" / "home"
        work.mkdir(parents=True)
        home.mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "a")
        monkeypatch.chdir(work)
        monkeypatch.setenv("HOME", str(home))
        for path, what in [
            (work, "the working directory"),
            (tmp_path / "link" / "work", "the working directory"),
            (work.parent, "a directory above the working directory"),
            (home, "the home directory"),
            (home.parent, "a directory above the home directory"),
            (tmp_path, "a directory above"),
        ]:
            with pytest.raises(ValueError, match=what):
                CheckpointPath.of(str(path))
        assert CheckpointPath.of(str(work / "ckpt")).directory == str(work)

    @pytest.mark.parametrize("path", [".", "../work", "{cwd}", "{home}", "{home}/.."])
    def test_nothing_is_written_there(self, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        work, home = tmp_path / "work", tmp_path / "home"
        work.mkdir()
        home.mkdir()
        monkeypatch.chdir(work)
        monkeypatch.setenv("HOME", str(home))
        with pytest.raises((ValueError, FileExistsError)):
            jaxckpt.Checkpoint(value=np.zeros(3)).write(path.format(cwd=work, home=home))
        assert snapshot_of(tmp_path) == {"work": None, "home": None}

    def test_functions_take_no_text(self, tmp_path: Path) -> None:
        path = str(a_checkpoint(tmp_path / "c"))
        for call in (
            lambda: storage.delete(path),  # type: ignore[arg-type]
            lambda: registration.register(path),  # type: ignore[arg-type]
            lambda: storage.save("", Snapshot(()), WriteSettings(), replace=True),  # type: ignore[arg-type]
        ):
            with pytest.raises(AttributeError):
                call()
        assert value_at(tmp_path / "c") == 1.0


class TestDeleting:
    def test_what_is_not_a_checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "folder" / "below").mkdir(parents=True)
        (tmp_path / "folder" / "file").write_text("mine")
        (tmp_path / "empty").mkdir()
        (tmp_path / "marked").mkdir()
        (tmp_path / "marked" / "_METADATA").mkdir()
        (tmp_path / "other program").mkdir()
        (tmp_path / "other program" / "_METADATA").write_text("mine")
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "_METADATA").symlink_to(tmp_path / "folder" / "file")
        (tmp_path / "link").symlink_to(tmp_path / "folder")
        (tmp_path / "plain").write_text("mine")
        before = snapshot_of(tmp_path)
        for name in ("folder", "empty", "marked", "other program", "linked", "link"):
            with pytest.raises(OSError, match="so it was not deleted") as caught:
                storage.delete(CheckpointPath(str(tmp_path), name))
            assert caught.value.errno == errno.EINVAL
        with pytest.raises(NotADirectoryError):
            storage.delete(CheckpointPath(str(tmp_path), "plain"))
        assert snapshot_of(tmp_path) == before

    def test_of_a_link_only_the_link(self, tmp_path: Path) -> None:
        a_checkpoint(tmp_path / "elsewhere" / "c")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "c-1").symlink_to(tmp_path / "elsewhere" / "c")
        storage.delete(CheckpointPath(str(tmp_path / "run"), "c-1"))
        assert os.listdir(tmp_path / "run") == []
        assert value_at(tmp_path / "elsewhere" / "c") == 1.0

    def test_only_the_one_that_is_meant(self, tmp_path: Path) -> None:
        path = a_checkpoint(tmp_path / "c")
        old = storage.identity(str(path))
        jaxckpt.Checkpoint(value=np.full(3, 2.0)).write(tmp_path / "c")
        with pytest.raises(OSError, match="saved at this path meanwhile") as caught:
            storage.delete(path, old)
        assert caught.value.errno == errno.EBUSY
        assert value_at(tmp_path / "c") == 2.0
        storage.delete(path, storage.identity(str(path)))
        assert os.listdir(tmp_path) == []
        assert storage.identity(str(path)) is None

    def test_links_in_it_are_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").write_text("mine")
        path = a_checkpoint(tmp_path / "run" / "c")
        (tmp_path / "run" / "c" / "link").symlink_to(tmp_path / "mine")
        storage.delete(path)
        assert snapshot_of(tmp_path) == {"mine": None, "mine/file": b"mine", "run": None}

    def test_another_directory_that_was_put_there_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = a_checkpoint(tmp_path / "c")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").write_text("mine")
        real = by_rename._marked_identity

        def exchanged(text: str) -> tuple[int, int]:
            found = real(text)
            os.rename(text, tmp_path / "away")
            os.rename(tmp_path / "mine", text)
            return found

        monkeypatch.setattr(by_rename, "_marked_identity", exchanged)
        with pytest.raises(OSError, match="meanwhile|during the deletion"):
            storage.delete(path)
        assert (tmp_path / "c" / "file").read_text() == "mine"
        assert value_at(tmp_path / "away") == 1.0
        assert sorted(os.listdir(tmp_path)) == ["away", "c"]

    def test_the_one_that_the_program_works_in_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint = jaxckpt.Checkpoint(value=np.zeros(3))
        manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, max_to_keep=1)
        first = manager.save()
        assert first is not None
        monkeypatch.chdir(first)
        second = manager.save()
        assert os.getcwd() == first
        assert value_at(Path(first)) == 0.0
        monkeypatch.chdir(tmp_path)
        third = manager.save()
        assert [path for path in (first, second, third) if path and os.path.exists(path)] == [third]


class TestLeftovers:
    def name(self, final: str = "ckpt-1") -> str:
        return f"{final}.jaxckpt-tmp-deadbeef-1-1-00000000"

    def test_a_link_a_file_or_a_fifo_of_such_a_name_is_not_one(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").write_text("mine")
        run = tmp_path / "run"
        run.mkdir()
        (run / self.name("ckpt-1")).symlink_to(tmp_path / "mine")
        (run / self.name("ckpt-2")).write_text("mine")
        os.mkfifo(run / self.name("ckpt-3"))
        for name in os.listdir(run):
            os.utime(run / name, (1, 1), follow_symlinks=False)
        before = sorted(os.listdir(run))
        assert storage.leftovers(str(run)) == []
        assert storage.sweep(str(run)) == []
        manager = jaxckpt.CheckpointManager(jaxckpt.Checkpoint(value=np.zeros(3)), run, max_to_keep=1)
        manager.save()
        assert set(before) < set(os.listdir(run))
        assert (tmp_path / "mine" / "file").read_text() == "mine"

    def test_one_that_holds_what_is_not_jaxckpts_stays(self, tmp_path: Path) -> None:
        for final, content in (("ckpt-1", "checkpoint"), ("ckpt-2", "notes"), ("ckpt-3", "deleted")):
            folder = tmp_path / self.name(final) / content
            folder.mkdir(parents=True)
            (folder / "file").write_text("mine")
            for path in (folder / "file", folder, folder.parent):
                os.utime(path, (1, 1))
        removed = [str(tmp_path / self.name(final)) for final in ("ckpt-1", "ckpt-3")]
        assert sorted(leftover.path for leftover in storage.leftovers(str(tmp_path))) == removed
        assert sorted(storage.sweep(str(tmp_path))) == removed
        with pytest.raises(OSError, match="'notes', which is not jaxckpt's") as caught:
            temporary.remove(str(tmp_path / self.name("ckpt-2")))
        assert caught.value.errno == errno.ENOTEMPTY
        assert snapshot_of(tmp_path) == {
            self.name("ckpt-2"): None,
            f"{self.name('ckpt-2')}/notes": None,
            f"{self.name('ckpt-2')}/notes/file": b"mine",
        }
        # It is in the way of nothing.
        jaxckpt.Checkpoint(value=np.ones(3)).save(tmp_path / "ckpt")
        assert value_at(tmp_path / "ckpt-1") == 1.0

    @pytest.mark.parametrize("name", ["ckpt", "", "..", "ckpt.jaxckpt-tmp-1"])
    def test_nothing_of_another_name_is_removed(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "ckpt").mkdir()
        with pytest.raises(ValueError, match="not have the name of a temporary directory"):
            temporary.remove(os.path.join(tmp_path, name))
        assert (tmp_path / "ckpt").is_dir()

    def test_one_that_an_interrupt_dropped_is_swept(self, tmp_path: Path) -> None:
        folder = temporary.TemporaryDirectory(CheckpointPath(str(tmp_path), "c-1"))
        assert storage.sweep(str(tmp_path)) == []
        path = folder.path
        del folder
        assert storage.sweep(str(tmp_path)) == [path]


class TestTakingBack:
    """A checkpoint that cannot be registered loses its name again, and what it replaced is back."""

    @pytest.fixture(params=["exchange", "no exchange"])
    def renames(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        if request.param == "no exchange":
            monkeypatch.setattr(renames, "exchange", lambda *_: False)
            monkeypatch.setattr(renames, "rename_new", lambda *_: False)

    def register(self) -> None:
        raise OSError(errno.EROFS, "no registration")

    def attempt(self, path: Path, *, replace: bool) -> None:
        def write(new: str, snapshot: Snapshot, settings: WriteSettings) -> None:
            Path(new, "_METADATA").write_text("new")

        with pytest.raises(OSError, match="no registration"):
            storage.save(
                CheckpointPath.of(str(path)),
                Snapshot(()),
                WriteSettings(),
                replace=replace,
                write=write,
                register=self.register,
            )

    @pytest.mark.usefixtures("renames")
    def test_of_a_new_one_nothing_is_left(self, tmp_path: Path) -> None:
        self.attempt(tmp_path / "c-1", replace=False)
        self.attempt(tmp_path / "c-2", replace=True)
        assert os.listdir(tmp_path) == []

    @pytest.mark.usefixtures("renames")
    def test_what_was_replaced_is_back(self, tmp_path: Path) -> None:
        a_checkpoint(tmp_path / "c", 7.0)
        before = snapshot_of(tmp_path)
        self.attempt(tmp_path / "c", replace=True)
        assert snapshot_of(tmp_path) == before

    @pytest.mark.usefixtures("renames")
    def test_at_every_step_of_the_renaming(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error after the nth rename: what was there is there again."""
        a_checkpoint(tmp_path / "c", 7.0)
        before = snapshot_of(tmp_path)
        for nth in range(1, 4):
            calls = 0
            real = moves.publish

            def failing(*arguments: object, nth: int = nth, real: object = real) -> None:
                def rename(old: str, new: str) -> None:
                    nonlocal calls
                    real_rename(old, new)
                    calls += 1
                    if calls == nth:
                        raise OSError(errno.EIO, "no registration")

                real_rename = os.rename
                with monkeypatch.context() as patch:
                    patch.setattr(moves.os, "rename", rename)
                    real(*arguments)  # type: ignore[operator]

            with monkeypatch.context() as patch:
                patch.setattr(moves, "publish", failing)
                self.attempt(tmp_path / "c", replace=True)
            assert snapshot_of(tmp_path) == before, nth


def test_a_directory_in_the_place_of_the_state_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "file").write_text("mine")
    before = snapshot_of(tmp_path)
    checkpoint = jaxckpt.Checkpoint(value=np.zeros(3))
    with pytest.raises(IsADirectoryError, match="state file"):
        checkpoint.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions(enable_async=True))
    assert checkpoint.save_counter == 0
    assert snapshot_of(tmp_path) == before
