"""Nothing committed is lost: killed at any moment, disk full, read-only; and leftovers are told from live saves.

`JAXCKPT_KILLS` is the number of programs to kill (for long runs).
"""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxckpt
from jaxckpt import storage
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings

pytestmark = pytest.mark.sampled

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("JAXCKPT_KILLS", "40"))
# Enough elements for the large and the small path, and for a kill to hit the middle of a write.
SIZE = 60_000
VARIANTS = {
    "packed": {},
    "async": {"enable_async": True},
    "files": {"experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(100_000)},
}

WRITER = """
    import os, sys, time
    import numpy as np
    import jaxckpt
    from jaxckpt.storage.stores import renames

    directory, kind, variant, start, crippled = sys.argv[1:]
    options = jaxckpt.CheckpointOptions(**{
        "packed": {},
        "async": {"enable_async": True},
        "files": {"experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(100_000)},
    }[variant])
    if crippled == "yes":  # A file system without RENAME_EXCHANGE, such as NFS.
        renames.exchange = renames.rename_new = lambda *arguments: False
    number = int(start)
    checkpoint = jaxckpt.Checkpoint(value=np.full(60_000, float(number)), small=[number] * 5, text=str(number))
    manager = jaxckpt.CheckpointManager(checkpoint, directory, max_to_keep=2) if kind == "manager" else None
    while True:
        number += 1
        checkpoint.value = np.full(60_000, float(number))
        checkpoint.small = [number] * 5
        checkpoint.text = str(number)
        print(f"begin {number}", flush=True)
        if kind == "save":
            checkpoint.save(f"{directory}/ckpt", options)
        elif kind == "write":
            checkpoint.write(f"{directory}/exact", options)
        else:
            manager.save(options=options)
        checkpoint.sync()
        print(f"done {number}", flush=True)
    """


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "PYTHONWARNINGS": "error"}


def run_and_kill(directory: Path, kind: str, variant: str, start: int, crippled: bool, delay: float) -> tuple[int, int]:
    """Runs the writer and kills it. Returns the last number that it began and the last one that it had saved."""
    arguments = [str(directory), kind, variant, str(start), "yes" if crippled else "no"]
    output = directory.parent / "output"
    with open(output, "w") as stdout:
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), *arguments],
            env=environment(),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 60
            # The first save imports Orbax: a long time in which nothing happens.
            while "done" not in output.read_text():
                if writer.poll() is not None or time.monotonic() > deadline:
                    writer.kill()
                    raise AssertionError(writer.communicate(timeout=60)[1])
                time.sleep(0.01)
            time.sleep(delay)
        finally:
            writer.kill()
            _, stderr = writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL, stderr
    lines = output.read_text().splitlines()
    numbers = {word: [int(line.split()[1]) for line in lines if line.startswith(word)] for word in ("begin", "done")}
    return numbers["begin"][-1], numbers["done"][-1]


def restored(path: Path | str) -> int:
    """Restores in this process, which has not written it, and checks that it is one whole checkpoint."""
    checkpoint = jaxckpt.Checkpoint(value=np.zeros(SIZE), small=[0] * 5, text="")
    checkpoint.restore(path).assert_consumed()
    number = int(checkpoint.text)
    assert checkpoint.small == [number] * 5
    assert (checkpoint.value == number).all()
    assert jaxckpt.verify(path).ok
    return number


@pytest.mark.slow
@pytest.mark.timeout(max(300, KILLS * 15))
@pytest.mark.parametrize("kind", ["save", "write", "manager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_any_moment(kind: str, variant: str, tmp_path: Path) -> None:
    rng = random.Random(f"{kind} {variant}")
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    last = 0
    unregistered: set[str] = set()
    for _ in range(max(2, KILLS // 12) if kind != "save" else max(2, KILLS // 20)):
        begun, done = run_and_kill(directory, kind, variant, last, False, rng.uniform(0, 0.15))
        if kind == "write":
            number = restored(directory / "exact")
        else:
            latest = jaxckpt.latest_checkpoint(directory)
            assert latest is not None
            number = restored(latest)
            state = jaxckpt.get_checkpoint_state(directory)
            assert state is not None
            for name in storage.list_numbered(str(directory / "ckpt")):
                restored(directory / f"ckpt-{name}")
                if str(directory / f"ckpt-{name}") not in state.all_model_checkpoint_paths:
                    unregistered.add(str(directory / f"ckpt-{name}"))
        # What was reported as saved is there.
        assert done <= number <= begun
        last = begun
        left = storage.leftovers(str(directory))
        assert not [leftover for leftover in left if leftover.live]
        assert {leftover.path for leftover in left} == {str(path) for path in directory.iterdir() if "tmp" in path.name}
    # What starts next finds the checkpoints, and clears up.
    checkpoint = jaxckpt.Checkpoint(value=np.zeros(SIZE), small=[0] * 5, text="")
    if kind == "write":
        checkpoint.write(directory / "exact")
        assert [path.name for path in directory.iterdir()] == ["exact"]
        return
    manager = jaxckpt.CheckpointManager(checkpoint, directory, max_to_keep=2)
    assert manager.restore_or_initialize() is not None
    assert int(checkpoint.text) >= done
    manager.save()
    # One that a kill left unregistered, and that newer ones had followed before any manager saw it, is left alone.
    state = jaxckpt.get_checkpoint_state(directory)
    assert state is not None
    kept = set(state.preserved_checkpoint_paths)
    assert kept <= unregistered
    expected = {"checkpoint", *(os.path.basename(path) for path in {*manager.checkpoints, *kept})}
    names = {path.name for path in directory.iterdir()}
    assert expected <= names <= expected | {os.path.basename(path) for path in unregistered}
    assert len(manager.checkpoints) <= 2


@pytest.mark.slow
@pytest.mark.timeout(max(300, KILLS * 15))
def test_killed_where_directories_cannot_be_exchanged(tmp_path: Path) -> None:
    """`write` over a checkpoint needs two renames there; killed between them, the old one still restores."""
    rng = random.Random(1)
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    last = 0
    for _ in range(max(2, KILLS // 10)):
        begun, done = run_and_kill(directory, "write", "packed", last, True, rng.uniform(0, 0.15))
        assert done <= restored(directory / "exact") <= begun
        last = begun


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(1, 12))
def test_killed_at_every_rename(moment: int, tmp_path: Path) -> None:
    """The same, exactly there: the program kills itself before its n-th rename, with and without exchange."""
    code = """
        import os, signal, sys
        import numpy as np
        import jaxckpt
        from jaxckpt.storage.stores import local, renames

        path, moment, crippled = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "yes"
        checkpoint = jaxckpt.Checkpoint(value=np.ones(60_000), small=[1] * 5, text="1")
        checkpoint.write(path)
        if crippled:
            renames.exchange = renames.rename_new = lambda *arguments: False
        calls = 0

        def die():
            global calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        places = [(os, "rename"), (os, "replace"), (os, "rmdir"), (os, "unlink"), (renames, "exchange"), (local, "sync_directory")]
        for module, name in places:
            real = getattr(module, name)
            setattr(module, name, lambda *arguments, real=real, **named: (die(), real(*arguments, **named))[1])
        checkpoint = jaxckpt.Checkpoint(value=np.full(60_000, 2.0), small=[2] * 5, text="2")
        checkpoint.write(path)
        """
    for crippled in ("no", "yes"):
        path = tmp_path / crippled / "exact"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(path), str(moment), crippled],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        assert restored(path) in (1, 2)
        storage.sweep(str(path.parent))
        assert restored(path) in (1, 2)
        assert os.listdir(path.parent) == ["exact"]


@pytest.mark.slow
def test_leftovers_are_listed_and_swept_but_never_a_live_save(tmp_path: Path) -> None:
    code = """
        import sys, time
        import numpy as np
        import jaxckpt
        from jaxckpt.storage.commit import moves

        def stop(*arguments, **named):
            print("waiting", flush=True)
            time.sleep(100)

        moves.publish = stop
        jaxckpt.Checkpoint(value=np.zeros(1000)).save(sys.argv[1])
        """
    prefix = tmp_path / "ckpt"
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(prefix)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "waiting\n"
        (live,) = storage.leftovers(str(tmp_path))
        assert live.live
        assert live.final == f"{prefix}-1"
        assert live.bytes > 8000
        assert str(owner.pid) in live.owner
        assert storage.sweep(str(tmp_path)) == []
        manager = jaxckpt.CheckpointManager(jaxckpt.Checkpoint(value=np.zeros(3)), tmp_path, max_to_keep=1)
        path = manager.save()
        assert path is not None
        assert os.path.isdir(live.path)
        assert storage.leftovers(str(tmp_path), "other") == []
        assert manager.checkpoints == [path]
    finally:
        owner.kill()
        owner.communicate(timeout=60)
    (dead,) = storage.leftovers(str(tmp_path), "ckpt")
    assert not dead.live
    assert storage.sweep(str(tmp_path)) == [live.path]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", os.path.basename(path)]


def test_foreign_files_are_never_touched(tmp_path: Path) -> None:
    names = [
        "ckpt-1.orbax-checkpoint-tmp-5",
        "ckpt-2.jaxckpt-tmp",
        "ckpt.jaxckpt-tmp-xyz",
        ".hidden",
        "notes.jaxckpt-tmp-1-2-3-4",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    assert storage.leftovers(str(tmp_path)) == []
    assert storage.sweep(str(tmp_path)) == []
    checkpoint = jaxckpt.Checkpoint(value=np.zeros(3))
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, max_to_keep=1)
    manager.save()
    manager.save()
    assert all((tmp_path / name / "file").read_text() == "mine" for name in names)


def test_deleting_leaves_no_half(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(value=np.zeros(3))
    path = checkpoint.write(tmp_path / "c")
    storage.delete(storage.CheckpointPath.of(path))
    storage.delete(storage.CheckpointPath.of(path))
    assert os.listdir(tmp_path) == []


@contextlib.contextmanager
def mounted(directory: Path, size: str) -> Iterator[None]:
    """A small file system at `directory`."""
    directory.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


OPTIONS = {
    "plain": {},
    "compressed": {"orbax": jaxckpt.OrbaxSettings(compression="zstd")},
    "files": {"experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(100_000)},
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_full_disk(kind: str, asynchronous: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = jaxckpt.CheckpointOptions(enable_async=asynchronous, **OPTIONS[kind])
    with mounted(tmp_path / "disk", "3m"):
        noise = np.random.default_rng(0)
        checkpoint = jaxckpt.Checkpoint(value=noise.random(10_000))
        path = checkpoint.save(tmp_path / "disk" / "ckpt")
        before = sorted(os.listdir(tmp_path / "disk"))
        # One that does not fit at all, one that is only just too large, and one that fits nowhere in between.
        free = os.statvfs(tmp_path / "disk").f_bavail * 4096
        for nbytes in (10 * free, free, free - 4096):
            # Zstd cannot shrink noise.
            checkpoint.value = np.frombuffer(noise.bytes(nbytes), np.uint8)
            with pytest.raises(OSError, match="No space left") as caught:
                checkpoint.save(tmp_path / "disk" / "ckpt", options)
                checkpoint.sync()
            assert caught.value.errno == errno.ENOSPC
            assert str(tmp_path / "disk") in str(caught.value.filename)
            assert sorted(os.listdir(tmp_path / "disk")) == before
            with pytest.raises(OSError, match="No space left"):
                checkpoint.write(path, options)
                checkpoint.sync()
            assert sorted(os.listdir(tmp_path / "disk")) == before
        if not asynchronous:
            assert checkpoint.save_counter == 1
        checkpoint.value = np.zeros(10_000)
        checkpoint.restore(path).assert_consumed()
        assert jaxckpt.latest_checkpoint(tmp_path / "disk") == path
    # The caller has the error.
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_read_only_file_system(asynchronous: bool, tmp_path: Path) -> None:
    options = jaxckpt.CheckpointOptions(enable_async=asynchronous)
    with mounted(tmp_path / "disk", "3m"):
        checkpoint = jaxckpt.Checkpoint(value=np.ones(10))
        path = checkpoint.save(tmp_path / "disk" / "ckpt")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        for save in (checkpoint.save, checkpoint.write):
            with pytest.raises(OSError, match="Read-only") as caught:
                save(tmp_path / "disk" / "new", options)
                checkpoint.sync()
            assert caught.value.errno == errno.EROFS
        checkpoint.value = np.zeros(10)
        checkpoint.restore(path).assert_consumed()
        assert checkpoint.value.all()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_directory_that_may_not_be_written(asynchronous: bool, tmp_path: Path) -> None:
    directory = tmp_path / "closed"
    directory.mkdir()
    if os.geteuid() == 0:
        if (
            shutil.which("chattr") is None
            or subprocess.run(["chattr", "+i", directory], capture_output=True).returncode
        ):
            pytest.skip("permissions do not bind root, and this file system has no immutable directories")
        undo = ["chattr", "-i", str(directory)]
    else:
        directory.chmod(0o500)
        undo = ["chmod", "700", str(directory)]
    try:
        checkpoint = jaxckpt.Checkpoint(value=np.ones(10))
        with pytest.raises(PermissionError) as caught:
            checkpoint.save(directory / "ckpt", jaxckpt.CheckpointOptions(enable_async=asynchronous))
            checkpoint.sync()
        assert caught.value.errno in (errno.EPERM, errno.EACCES)
        assert str(directory) in str(caught.value.filename)
        assert os.listdir(directory) == []
    finally:
        subprocess.run(undo, check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_name_that_is_too_long(asynchronous: bool, tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(value=np.ones(10))
    with pytest.raises(OSError, match="name too long") as caught:
        checkpoint.save(tmp_path / ("x" * 300), jaxckpt.CheckpointOptions(enable_async=asynchronous))
        checkpoint.sync()
    assert caught.value.errno == errno.ENAMETOOLONG
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_file_in_the_way(asynchronous: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    checkpoint = jaxckpt.Checkpoint(value=np.ones(10))
    options = jaxckpt.CheckpointOptions(enable_async=asynchronous)
    with pytest.raises(OSError) as caught:  # noqa: PT011  NotADirectoryError
        checkpoint.save(tmp_path / "file" / "ckpt", options)
        checkpoint.sync()
    assert caught.value.errno == errno.ENOTDIR
    with pytest.raises(FileExistsError) as caught:
        checkpoint.write(tmp_path / "file", options)
        checkpoint.sync()
    assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_save_that_takes_too_long_leaves_nothing(kind: str, tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(value=np.random.default_rng(0).random(4_000_000))
    # The first write imports Orbax, which does not count.
    checkpoint.write(tmp_path / "warm")
    storage.delete(storage.CheckpointPath(str(tmp_path), "warm"))
    values: dict[str, Any] = dict(OPTIONS[kind])
    settings = values.pop("orbax", jaxckpt.OrbaxSettings())
    quick = jaxckpt.OrbaxSettings(timeout_secs=1e-4, compression=settings.compression)
    with pytest.raises(TimeoutError):
        checkpoint.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions(**values, orbax=quick))
    assert checkpoint.save_counter == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_everything_is_synced_before_it_is_named(tmp_path: Path) -> None:
    """Watched by strace: files and directories are synced before the rename, the parent after it, the state file last."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    code = "import sys, numpy as np, jaxckpt; jaxckpt.Checkpoint(value=np.zeros(60_000), s='x').save(sys.argv[1])"
    trace = tmp_path / "trace"
    (tmp_path / "d").mkdir()
    done = subprocess.run(
        [
            "strace",
            "-f",
            "-y",
            "-o",
            str(trace),
            "-e",
            "trace=fsync,fdatasync,rename,renameat,renameat2",
            sys.executable,
            "-c",
            code,
            str(tmp_path / "d" / "ckpt"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("strace is not permitted")
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    publish = next(
        index for index, line in enumerate(lines) if "rename" in line and '/d/ckpt-1"' in line and "tmp" in line
    )
    synced = {line.split("<", 1)[1].split(">")[0] for line in lines[:publish] if "sync(" in line and "<" in line}
    final = tmp_path / "d" / "ckpt-1"
    new = {
        name.split("/checkpoint", 1)[1].lstrip("/") for name in synced if "/checkpoint" in name and "orbax" not in name
    }
    wanted = {str(path.relative_to(final)) for path in final.rglob("*")} | {""}
    # OCDBT's own data was synced under Orbax's temporary name already; a sync of the same file again is as good.
    assert wanted <= new
    state = next(index for index, line in enumerate(lines) if "rename" in line and '/d/checkpoint"' in line)
    assert any("sync(" in line and f"<{tmp_path}/d>" in line for line in lines[publish:state])


def test_an_interrupt_stays_one(tmp_path: Path) -> None:
    """Whatever error of the system was being handled when it came."""

    def write(new: str, snapshot: Snapshot, settings: WriteSettings) -> None:
        try:
            raise BlockingIOError(errno.EAGAIN, "nothing there yet")
        except BlockingIOError:
            raise KeyboardInterrupt  # noqa: B904

    with pytest.raises(KeyboardInterrupt):
        storage.save(
            storage.CheckpointPath(str(tmp_path), "c-1"), Snapshot(()), WriteSettings(), replace=False, write=write
        )
    assert list(tmp_path.iterdir()) == []
