"""``jaxckpt list`` and ``jaxckpt clean``."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import jaxckpt
from jaxckpt.cli import main


@pytest.fixture
def directory(tmp_path):
    """Three checkpoints saved by a manager, of which it keeps two, and one that is not registered."""
    checkpoint = jaxckpt.Checkpoint(w=np.zeros(1000, np.float32))
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, max_to_keep=2)
    for _ in range(3):
        manager.save()
    checkpoint.write(tmp_path / "by-hand")
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    (tmp_path / "folder").mkdir()
    return tmp_path


def test_steps_and_metrics(tmp_path, capsys):
    checkpoint = jaxckpt.Checkpoint(w=np.zeros(3), step=0)
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, 9, step_counter=lambda: checkpoint.step)
    for checkpoint.step, metrics in [
        (10, {"loss": 0.1234567891, "epoch": 2}),
        (20, {"loss": float("nan")}),
        (30, None),
    ]:
        manager.save(metrics=metrics)
    (tmp_path / "ckpt-3" / "_JAXCKPT").write_text("damaged")
    assert main(["list", str(tmp_path)]) == 0
    first, second, third, saved_by = capsys.readouterr().out.splitlines()[1:]
    assert "step 10  loss=0.123457  epoch=2" in first
    assert "step 20  loss=nan" in second
    assert "step" not in third
    assert re.search(r"in [0-9.]+ m?s, blocked [0-9.]+ m?s +step 10", first)
    assert saved_by.startswith(f"saved by 1 process with jaxckpt {jaxckpt.__version__}, jax ")
    assert saved_by.endswith(": ckpt-2 and 1 older one")
    assert main(["list", "--json", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["checkpoints"]
    assert [(one["step"], one["metrics"]) for one in found] == [
        (10, {"loss": 0.1234567891, "epoch": 2}),
        (20, {"loss": "nan"}),
        (None, None),
    ]


_SAVER = textwrap.dedent(
    """
    import os, signal, sys, threading, numpy as np
    import jaxckpt

    first = threading.Lock()

    # Stops in the middle of a save, when the first file is to be synced: nothing is committed.
    def stop(*args, **kwargs):
        if first.acquire(blocking=False):
            print("saving", flush=True)
        sys.stdin.read()
        os._exit(1)

    os.fsync = stop
    jaxckpt.Checkpoint(w=np.ones(1000, np.float32)).save(sys.argv[1])
    """
)


@pytest.fixture
def saving(directory, cli_command):
    """A process that is in the middle of a save into `directory`."""
    _, environment = cli_command
    process = subprocess.Popen(
        [sys.executable, "-c", _SAVER, str(directory / "ckpt")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "saving\n"
        yield process
        process.kill()


def names(directory):
    return sorted(os.listdir(directory))


def test_list_text(call, directory):
    done = call("list", directory)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *rows, saved_by = done.stdout.splitlines()
    assert saved_by.startswith("saved by 1 process with ")
    assert heading.startswith(f"{directory}: 3 checkpoints, ")
    cells = {row.split()[0]: row for row in rows}
    assert set(cells) == {"ckpt-2", "ckpt-3", "by-hand"}
    assert cells["ckpt-3"].endswith("latest")
    assert cells["by-hand"].endswith("not in the state file")
    assert "KiB" in cells["ckpt-2"]


def test_list_json(directory, capsys):
    assert main(["list", "--json", str(directory)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["latest"] == f"{directory}/ckpt-3"
    assert found["leftovers"] == []
    checkpoints = {Path(entry["path"]).name: entry for entry in found["checkpoints"]}
    assert {name: (entry["registered"], entry["latest"]) for name, entry in checkpoints.items()} == {
        "ckpt-2": (True, False),
        "ckpt-3": (True, True),
        "by-hand": (False, False),
    }
    for name, entry in checkpoints.items():
        sizes = [file.stat().st_size for file in (directory / name).rglob("*") if file.is_file()]
        assert entry["bytes"] == sum(sizes) > 4000
        assert entry["age_secs"] >= 0


def test_list_of_nothing(tmp_path, capsys):
    assert main(["list", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}: 0 checkpoints, 0 B on disk\n"
    assert captured.err == f"jaxckpt list: error: {tmp_path} holds no checkpoint: it is an empty directory.\n"
    (tmp_path / "notes.txt").write_text("nothing that is known")
    assert main(["list", "--json", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["checkpoints"] == []
    assert captured.err == f"jaxckpt list: error: {tmp_path} holds no checkpoint.\n"


def test_list_of_a_checkpoint(directory, capsys):
    for arguments in (["list"], ["list", "--json"]):
        assert main([*arguments, str(directory / "ckpt-3")]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith(
            f"jaxckpt list: error: {directory}/ckpt-3 is a checkpoint, not a directory of checkpoints."
        )
        assert f"`jaxckpt list {directory}`" in line


def test_an_unreadable_state_file_is_mentioned_once(directory, capsys):
    (directory / "checkpoint").write_text("nonsense")
    assert main(["list", str(directory)]) == 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"jaxckpt list: warning: Ignoring the state file in {directory}: ")
    assert "3 checkpoints" in captured.out


@pytest.mark.slow
def test_a_save_that_runs_is_left_alone(directory, saving, capsys):
    before = names(directory)
    assert main(["list", str(directory)]) == 0
    assert f"in use by process {saving.pid}" in capsys.readouterr().out
    assert main(["clean", str(directory)]) == 0
    assert "removed 0 temporary directories" in capsys.readouterr().out
    assert names(directory) == before


@pytest.mark.slow
def test_a_killed_save_is_cleaned(call, directory, saving, capsys):
    saving.send_signal(signal.SIGKILL)
    saving.wait()
    before = names(directory)
    (leftover,) = (name for name in before if ".jaxckpt-tmp-" in name)

    done = call("list", directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"left by process {saving.pid}" in done.stdout
    assert f"jaxckpt clean {directory}" in done.stdout

    assert main(["clean", "--dry-run", "--json", str(directory)]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["dry_run"] is True
    assert planned["removed"] == [str(directory / leftover)]
    assert planned["bytes"] > 4000
    assert names(directory) == before

    done = call("clean", directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith(f"removed {directory / leftover} (")
    assert names(directory) == [name for name in before if name != leftover]
    assert jaxckpt.latest_checkpoint(directory) == f"{directory}/ckpt-3"
