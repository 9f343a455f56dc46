"""``jaxckpt demo --processes``: real processes, killed and resumed; the losses are those of an undisturbed run."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import jaxckpt
from jaxckpt import testing
from jaxckpt.cli import main
from jaxckpt.demo import processes, settings

pytestmark = [pytest.mark.job, pytest.mark.timeout(900)]

_STEPS = 24
_CONFIG = f"""
training: {{steps: {_STEPS}, batch_size: 64, hidden: 32, warmup_steps: 4, decay_steps: {_STEPS}}}
checkpoint:
  directory: unused
  max_to_keep: 2
  checkpoint_interval: 4
  last_checkpoint_step: 0
  options: {{enable_async: true, experimental_write_callbacks: ["jaxckpt.demo:announce"]}}
"""
_TASK_2 = ("--processes", "3", "--io-device", "/job:worker/task:2")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "short.yaml"
    path.write_text(_CONFIG)
    return path


@pytest.fixture(scope="module")
def undisturbed(config, cli, tmp_path_factory):
    """The directory of a run of three processes that nothing interrupted, and what it printed."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    done = cli("demo", *_TASK_2, "--config", config, "--dir", directory)
    assert (done.returncode, done.stderr) == (0, "")
    return directory, done.stdout


def rows(directory):
    path = Path(directory, "losses.csv")
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def files(directory):
    return [path for path in Path(directory).rglob("*") if path.is_file()]


@testing.requires_private_disks
def test_the_files_are_on_one_disk(undisturbed):
    directory, text = undisturbed
    assert "starting at step 0" in text
    # The words are in the summary too.
    assert text.count(" ms, written in ") == _STEPS // 4 + 1
    assert f"trained {_STEPS} steps to step {_STEPS}: loss " in text
    assert [len(files(directory / "disks" / f"process-{index}")) > 0 for index in range(3)] == [False, False, True]
    assert sum("disks/process-" in line and line.endswith(" 0 B") for line in text.splitlines()) == 2
    assert files(directory / "local") == []
    assert rows(directory) == _STEPS
    latest = jaxckpt.latest_checkpoint(str(directory / "disks" / "process-2"))
    assert Path(latest).name == f"ckpt-{_STEPS}"
    assert jaxckpt.verify(latest).ok
    assert (directory / "steps.png").read_bytes().startswith(b"\x89PNG\r\n")


@testing.requires_private_disks
def test_on_sigterm_all_processes_save_the_same_step(config, undisturbed, cli, cli_command, tmp_path):
    """The signal goes to the command, which passes it on to one of its three processes."""
    command, environment = cli_command
    directory = tmp_path / "run"
    # With so many steps the signal comes in the middle, however slow JAX's service is.
    arguments = ["demo", *_TASK_2, "--config", str(config), "--dir", str(directory), "--steps"]
    process = subprocess.Popen(
        [*command, *arguments, "20000"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 240
        while rows(directory) < 10:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=240)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143, text
    saved = rows(directory)
    assert f"ended by SIGTERM at step {saved}, which is saved" in text
    latest = jaxckpt.latest_checkpoint(str(directory / "disks" / "process-2"))
    assert Path(latest).name == f"ckpt-{saved}"
    begun = (directory / "losses.csv").read_bytes()
    assert begun.startswith((undisturbed[0] / "losses.csv").read_bytes()) or saved < _STEPS
    done = cli(*arguments, saved + 5)
    assert (done.returncode, done.stderr) == (0, "")
    assert (directory / "losses.csv").read_bytes().startswith(begun)
    straight = cli(*arguments[:-3], "--dir", tmp_path / "straight", "--steps", saved + 5)
    assert straight.returncode == 0
    assert (directory / "losses.csv").read_bytes() == (tmp_path / "straight" / "losses.csv").read_bytes()


@testing.requires_private_disks
def test_killed_it_goes_on_with_the_same_losses(config, undisturbed, cli, cli_command, tmp_path):
    command, environment = cli_command
    directory = tmp_path / "run"
    arguments = ["demo", *_TASK_2, "--config", str(config), "--dir", str(directory)]
    process = subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while rows(directory) < 10:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    finished = cli(*arguments, "--json")
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert result["last_step"] == _STEPS
    assert [disk["files"] > 0 for disk in result["disks"]] == [False, False, True]
    assert (directory / "losses.csv").read_bytes() == (undisturbed[0] / "losses.csv").read_bytes()
    disks = [str(one / "disks" / "process-2") for one in (directory, undisturbed[0])]
    assert main(["diff", *disks]) == 0


def test_a_directory_that_two_processes_share(config, cli, tmp_path):
    begin = ["demo", "--processes", "2", "--config", str(config), "--dir", str(tmp_path)]
    texts = []
    for arguments in ([*begin, "--steps", "12"], begin):
        done = cli(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        texts.append(done.stdout)
    assert f"{tmp_path}, which all processes share" in texts[0]
    assert "resuming after step 12, from " in texts[1]
    assert rows(tmp_path) == _STEPS
    assert jaxckpt.verify(jaxckpt.latest_checkpoint(str(tmp_path))).ok


def test_an_error_of_a_process_is_shown(config, cli, tmp_path):
    (tmp_path / "losses.csv").write_text("something else\n")
    done = cli("demo", "--processes", "2", "--config", config, "--dir", tmp_path)
    assert done.returncode == 1
    assert "process 0: ValueError: " in done.stderr
    assert "this file is not a log of losses" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_all(config, cli_command, tmp_path):
    command, environment = cli_command
    arguments = ["demo", "--processes", "2", "--config", str(config), "--dir", str(tmp_path), "--steps", "100000"]
    process = subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 240
        while rows(tmp_path) < 10:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait(30)
    assert process.returncode == 130
    assert b"interrupted; all processes have ended" in out
    # On a busy machine a save may take so long that the next one waits for it.
    assert re.sub(rb"(?m)^.*Training waited .* for the save before, .*\n", b"", error).strip() == b""


@pytest.mark.parametrize(
    "arguments", [("--processes", "0"), ("--processes", "-1"), ("--processes", "x"), ("--io-device", "garbage")]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("/job:worker/task:3", "there is no process 3"),
        ("3", "there is no process 3"),
        ("/job:worker", "name one of them"),
        ("/task:1/device:GPU:0", "does not have this device"),
        ("/task:1/device:CPU:1", "does not have this device"),
    ],
)
def test_devices_that_do_not_exist_are_refused_before_anything_is_started(device, words, tmp_path, capsys):
    assert main(["demo", "--processes", "3", "--io-device", device, "--dir", str(tmp_path / "run")]) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "run").exists()


def _loaded(directory, device):
    return settings.load(None, steps=None, directory=str(directory), io_device=device)[1]


def test_without_private_disks_the_directory_is_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(testing, "private_disks_problem", lambda: "not permitted")
    where = processes.place(_loaded(tmp_path, 1), 2)
    assert (where.directory, where.disks) == (str(tmp_path), None)
    assert where.note == "only process 1 uses it; private disks are not possible here: not permitted"


@testing.requires_private_disks
def test_checkpoints_on_another_disk_are_not_passed_over(tmp_path):
    disk = tmp_path / "disks" / "process-1"
    disk.mkdir(parents=True)
    (disk / "checkpoint").touch()
    assert processes.place(_loaded(tmp_path, "/task:1"), 2).holder == str(disk)
    for count, device in ((2, 0), (2, None), (1, None)):
        with pytest.raises(ValueError, match="has checkpoints of an earlier run"):
            processes.place(_loaded(tmp_path, device), count)


def test_batches_are_divisible():
    training = settings.divisible(settings.TrainingConfig(batch_size=256, hidden=512), 3)
    assert (training.batch_size, training.hidden) == (255, 513)
    assert settings.divisible(settings.TrainingConfig(), 1) == settings.TrainingConfig()
    with pytest.raises(ValueError, match="too small for 3 processes"):
        settings.divisible(settings.TrainingConfig(batch_size=2), 3)
