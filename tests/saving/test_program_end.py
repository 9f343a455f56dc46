"""How programs end: real processes, with a save in flight."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jaxckpt

pytestmark = pytest.mark.slow

SCRIPT = """
import os, signal, sys, threading, time
import numpy as np, jaxckpt
mode, directory = sys.argv[1:]
checkpoint = jaxckpt.Checkpoint(value=np.ones(3_000_000), step=1)
checkpoint.save(directory + "/ckpt")
checkpoint.step = 2
options = jaxckpt.CheckpointOptions(enable_async=True)
wait = threading.Event()
if mode == "callback":
    options.experimental_write_callbacks = [lambda: time.sleep(0.5), lambda path: print("called", path)]
if mode == "stuck":
    options.orbax = jaxckpt.OrbaxSettings(exit_timeout_secs=2)
    options.experimental_write_callbacks = [lambda: wait.wait()]
if mode == "failing callback":
    options.experimental_write_callbacks = [lambda: 1 / 0]
if mode == "failing":
    open(directory + "/file", "w").close()
    checkpoint.save(directory + "/file/ckpt", options)
else:
    checkpoint.save(directory + "/ckpt", options)
print("saved", flush=True)
if mode == "exit":
    sys.exit(3)
if mode == "uncaught":
    raise RuntimeError("uncaught")
if mode == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "thread":
    threading.Thread(target=lambda: (time.sleep(0.3), checkpoint.sync(), print("synced"))).start()
if mode == "atexit":
    import atexit
    atexit.register(lambda: (checkpoint.save(directory + "/ckpt", options), checkpoint.sync(), print("at exit")))
"""


def run(mode: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, mode, str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("mode", "code"), [("end", 0), ("exit", 3), ("uncaught", 1), ("callback", 0), ("thread", 0)])
def test_a_program_that_ends_without_sync_completes_its_save(mode: str, code: int, tmp_path: Path) -> None:
    done = run(mode, tmp_path)
    assert done.returncode == code, done.stderr
    assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-2")
    assert jaxckpt.load_variable(tmp_path, "step") == 2
    assert jaxckpt.verify(tmp_path / "ckpt-2").ok
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "ckpt-1", "ckpt-2"]
    assert ("called" in done.stdout) == (mode == "callback")
    assert "jaxckpt" not in done.stderr.replace("jaxckpt: the program has ended, but the save", "")


def test_a_save_in_an_exit_handler(tmp_path: Path) -> None:
    done = run("atexit", tmp_path)
    if "at exit" in done.stdout:
        assert sorted(os.listdir(tmp_path)) == ["checkpoint", "ckpt-1", "ckpt-2", "ckpt-3"]
        assert jaxckpt.verify(tmp_path / "ckpt-3").ok
    else:
        # Newer versions of Python start no threads by then.
        assert sys.version_info >= (3, 12)
        assert "the program is ending (an exit handler?)" in done.stderr
        assert sorted(os.listdir(tmp_path)) == ["checkpoint", "ckpt-1", "ckpt-2"]
    assert jaxckpt.verify(tmp_path / "ckpt-2").ok


def test_the_wait_is_bounded_and_says_when_it_gives_up(tmp_path: Path) -> None:
    done = run("stuck", tmp_path)
    assert done.returncode == 0
    assert "gave up waiting for the save of" in done.stderr
    assert "ckpt-2 after 2 s (OrbaxSettings.exit_timeout_secs)" in done.stderr


def test_a_failed_save_prints_its_traceback(tmp_path: Path) -> None:
    done = run("failing", tmp_path)
    assert done.returncode == 0
    assert "was NOT saved" in done.stderr
    assert "NotADirectoryError" in done.stderr
    assert "Traceback" in done.stderr
    done = run("failing callback", tmp_path)
    assert "was saved, but a callback failed" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_killed_program_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    done = run("kill", tmp_path)
    assert done.returncode == -signal.SIGKILL
    latest = jaxckpt.latest_checkpoint(tmp_path)
    assert latest is not None
    assert jaxckpt.verify(latest).ok
    checkpoint = jaxckpt.Checkpoint(step=0)
    checkpoint.restore(latest).expect_partial()
    checkpoint.save(tmp_path / "ckpt")
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]
