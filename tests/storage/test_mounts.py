"""Mounted buckets: file systems that cannot rename directories.

With a real one, where FUSE can be mounted, and in a process in which every rename fails.
"""

import ctypes.util
import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import jaxckpt
from jaxckpt import storage
from jaxckpt.storage import stores
from jaxckpt.storage.commit.by_marker import MarkerCommitter
from jaxckpt.storage.commit.by_rename import RenameCommitter
from jaxckpt.storage.commit.choice import committer_of
from jaxckpt.storage.stores import mount_table, mounts

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAM = """
    import sys
    import numpy as np
    import jaxckpt
    from jaxckpt import storage

    directory = sys.argv[1]
    for enable_async in (False, True):
        saved = jaxckpt.Checkpoint(value=np.zeros(60_000), text="")
        options = jaxckpt.CheckpointOptions(enable_async=enable_async)
        manager = jaxckpt.CheckpointManager(saved, f"{directory}/{enable_async}", max_to_keep=2, options=options)
        for number in range(1, 5):
            saved.value, saved.text = np.full(60_000, float(number)), f"number {number}"
            manager.save()
        manager.sync()
        assert manager.checkpoints == [f"{directory}/{enable_async}/ckpt-{number}" for number in (3, 4)]
        for number in (5, 6):
            saved.value, saved.text = np.full(60_000, float(number)), f"number {number}"
            saved.write(f"{directory}/best", options)
            saved.sync()
            target = jaxckpt.Checkpoint(value=np.ones(60_000), text="?")
            target.read(f"{directory}/best").assert_consumed()
            assert (target.value[7], target.text) == (number, f"number {number}")
        target = jaxckpt.Checkpoint(value=np.ones(60_000), text="?")
        target.restore(jaxckpt.latest_checkpoint(f"{directory}/{enable_async}")).assert_consumed()
        assert (target.value[7], target.text) == (4, "number 4")
        for path in (*manager.checkpoints, f"{directory}/best"):
            assert storage.verify(path).ok
        assert storage.leftovers(directory) == []
"""


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    yield
    mounts._tried.clear()
    mounts._of_block_device.cache_clear()


@pytest.fixture(
    params=[("files", "mountpoint-s3"), ("nothing", "mountpoint-s3"), ("files", "unheard-of")], ids="-".join
)
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a real file system that renames files, or nothing."""
    if importlib.util.find_spec("mfusepy") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("FUSE, or the package mfusepy, is not there")
    if not ctypes.util.find_library("fuse3") and "FUSE_LIBRARY_PATH" not in os.environ:
        pytest.skip("libfuse3 is not installed")
    (tmp_path / "behind").mkdir()
    (mounted := tmp_path / "mount").mkdir()
    command = [
        sys.executable,
        str(Path(__file__).parent / "fuse_without_rename.py"),
        str(tmp_path / "behind"),
        str(mounted),
    ]
    process = subprocess.Popen([*command, *request.param], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 30
        while not os.path.ismount(mounted):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.skip(f"FUSE cannot be mounted here: {process.communicate()[1]}")
            time.sleep(0.02)
        yield mounted
    finally:
        unmount = shutil.which("fusermount3")
        subprocess.run([unmount, "-u", "-z", mounted] if unmount else ["umount", "-l", mounted], check=False)
        process.terminate()
        process.communicate(timeout=30)


def run(program: str, *arguments: object, returncode: int = 0) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == returncode, finished.stderr
    return finished.stdout


class TestRealMount:
    def test_it_is_recognised(self, mount: Path) -> None:
        with pytest.raises(OSError, match="Operation not supported"):
            (mount / "directory").mkdir()
            (mount / "directory").rename(mount / "other")
        assert isinstance(committer_of(f"{mount}/run/ckpt-1"), MarkerCommitter)
        assert os.listdir(mount) == ["directory"]

    def test_everything_works(self, mount: Path) -> None:
        run(PROGRAM, mount)

    def test_a_killed_save(self, mount: Path) -> None:
        """What was committed restores, the rest is not taken for a checkpoint, and the next manager removes it."""
        program = """
            import os, signal, sys
            import numpy as np
            import jaxckpt
            from jaxckpt.storage.commit import marker_directory

            saved = jaxckpt.Checkpoint(value=np.arange(1000.0))
            saved.save(sys.argv[1])
            marker_directory.mark = lambda directory: os.kill(os.getpid(), signal.SIGKILL)
            saved.save(sys.argv[1])
        """
        run(program, mount / "run" / "ckpt", returncode=-signal.SIGKILL)
        assert (mount / "run" / "ckpt-2" / "_METADATA").exists()
        assert jaxckpt.latest_checkpoint(mount / "run") == f"{mount}/run/ckpt-1"
        assert storage.list_numbered(f"{mount}/run/ckpt") == [1]
        with pytest.raises(FileNotFoundError):
            jaxckpt.load_checkpoint(f"{mount}/run/ckpt-2")
        saved = jaxckpt.Checkpoint(value=np.zeros(1000))
        manager = jaxckpt.CheckpointManager(saved, mount / "run", max_to_keep=3)
        assert manager.restore_or_initialize() == f"{mount}/run/ckpt-1"
        assert saved.value[7] == 7
        assert sorted(os.listdir(mount / "run")) == ["checkpoint", "ckpt-1"]

    def test_checkpoints_that_were_renamed_elsewhere(self, mount: Path, tmp_path: Path) -> None:
        """A checkpoint of plain Orbax has no marker on a disk."""
        path = jaxckpt.Checkpoint(value=np.arange(5.0)).save(tmp_path / "ckpt")
        for name in stores.tree(path):
            (copied := mount / "ckpt-7" / name).parent.mkdir(parents=True, exist_ok=True)
            if name != "commit_success.txt":
                copied.write_bytes(Path(path, name).read_bytes())
        assert storage.list_numbered(f"{mount}/ckpt") == [7]
        np.testing.assert_array_equal(jaxckpt.load_checkpoint(mount / "ckpt-7").get_tensor("value"), np.arange(5.0))


def mountinfo(kind: str, path: Path) -> str:
    device = os.stat(path).st_dev
    return f"31 1 {os.major(device)}:{os.minor(device)} / {path} rw,relatime - {kind} remote:bucket rw\n"


def list_mounts_in(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_table, "_LISTED", str(file))


class TestOtherMounts:
    """With the kernel's list of mounts replaced."""

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("ext4", RenameCommitter),
            ("nfs4", RenameCommitter),
            ("fuse.sshfs", RenameCommitter),
            ("fuse.rclone", MarkerCommitter),
            ("fuse.s3fs", MarkerCommitter),
            ("fuse.gcsfuse", MarkerCommitter),
        ],
    )
    def test_by_the_name(self, kind: str, expected: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "mountinfo").write_text(mountinfo(kind, tmp_path))
        list_mounts_in(tmp_path / "mountinfo", monkeypatch)
        assert type(committer_of(f"{tmp_path}/a/b")) is expected
        assert os.listdir(tmp_path) == ["mountinfo"]

    def test_a_number_that_another_mount_got(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After an unmount, the kernel gives the device number of a file system to the next one."""
        # Only what has no block device gets a free number.
        numbered = (Path(place) for place in (tmp_path, "/dev/shm", "/proc") if os.path.isdir(place))
        place = next((place for place in numbered if not os.major(place.stat().st_dev)), None)
        if place is None:
            pytest.skip("each file system here has a block device")
        list_mounts_in(listed := tmp_path / "mountinfo", monkeypatch)
        for kind, expected in (("tmpfs", RenameCommitter), ("fuse.rclone", MarkerCommitter), ("nfs4", RenameCommitter)):
            listed.write_text(mountinfo(kind, place))
            assert type(committer_of(f"{place}/a/b")) is expected, kind

    def test_a_trial_counts_for_one_mount(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        list_mounts_in(listed := tmp_path / "mountinfo", monkeypatch)
        listed.write_text(mountinfo("fuse.unheard-of", tmp_path))
        assert mounts.renames_directories(str(tmp_path))

        def refused(*_: object) -> None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        monkeypatch.setattr(os, "rename", refused)
        assert mounts.renames_directories(str(tmp_path))
        mounts._of_block_device.cache_clear()
        listed.write_text(mountinfo("fuse.unknown", tmp_path))
        assert not mounts.renames_directories(str(tmp_path))

    @pytest.mark.parametrize("error", [errno.EXDEV, errno.ENOTSUP, errno.ENOSYS, errno.EPERM])
    def test_a_process_without_renames(self, error: int, tmp_path: Path) -> None:
        """In a real process, in which every rename and link fails."""
        (mount := tmp_path / "mount").mkdir()
        (tmp_path / "mountinfo").write_text(mountinfo("fuse.unheard-of", mount))
        program = f"""
            import os
            from jaxckpt.storage.stores import mount_table, renames

            def refused(*_, **__):
                raise OSError({error}, os.strerror({error}))

            os.rename = os.replace = os.link = refused
            renames.rename_new = renames.exchange = lambda *_: False
            mount_table._LISTED = {str(tmp_path / "mountinfo")!r}
        """
        run(textwrap.dedent(program) + textwrap.dedent(PROGRAM), mount)
