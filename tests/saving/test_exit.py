"""The end of the program, in real programs: no save is lost, none holds it for ever, and no error is silent."""

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

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
import jaxckpt

prefix = sys.argv[1]
options = jaxckpt.CheckpointOptions(enable_async=True)
checkpoint = jaxckpt.Checkpoint(a=np.arange(300_000.0))
"""


def run(code: str, directory: Path, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "PYTHONWARNINGS": "error"}
    arguments = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(directory / "ckpt")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=timeout)
    # On a busy machine a save takes longer than the program's end waits in silence.
    done.stderr = re.sub(r"jaxckpt: the program has ended, but the save .* give it up\.\n", "", done.stderr)
    done.stderr = re.sub(r"Training waited .* for the save before, .*\n", "", done.stderr)
    return done


def assert_saved(directory: Path, number: int = 1) -> None:
    assert jaxckpt.latest_checkpoint(directory) == str(directory / f"ckpt-{number}")
    checkpoint = jaxckpt.Checkpoint(a=np.zeros(300_000))
    checkpoint.restore(directory / f"ckpt-{number}").assert_consumed()
    np.testing.assert_array_equal(checkpoint.a, np.arange(300_000.0))
    assert not [name for name in os.listdir(directory) if "tmp" in name]


@pytest.mark.parametrize(
    ("code", "returncode", "stderr"),
    [
        ("checkpoint.save(prefix, options)", 0, ""),
        ("checkpoint.save(prefix, options); sys.exit(3)", 3, ""),
        ("checkpoint.save(prefix, options); raise KeyError('mine')", 1, "KeyError: 'mine'"),
        ("checkpoint.save(prefix, options); del checkpoint; import gc; gc.collect()", 0, ""),
        ("checkpoint.save(prefix, options); os.chdir('/')", 0, ""),
        ("checkpoint.save(prefix, options); signal.raise_signal(signal.SIGINT)", 1, "KeyboardInterrupt"),
    ],
    ids=["normal end", "sys.exit", "uncaught", "dropped", "chdir", "ctrl-c"],
)
def test_a_save_in_flight_is_completed(code: str, returncode: int, stderr: str, tmp_path: Path) -> None:
    done = run(code, tmp_path)
    # Python ends with status 1 or by the signal when it was interrupted, depending on its version.
    assert done.returncode == returncode or (stderr == "KeyboardInterrupt" and done.returncode == -signal.SIGINT), (
        done.stderr
    )
    assert done.stderr.strip().endswith(stderr) if stderr else done.stderr == ""
    assert_saved(tmp_path)


@pytest.mark.parametrize(
    "first", ["", "checkpoint.save(prefix, options); checkpoint.sync()"], ids=["fresh", "used before"]
)
@pytest.mark.parametrize("kind", ["None", "options"], ids=["sync", "async"])
@pytest.mark.parametrize("place", ["thread", "exit handler"])
def test_a_save_after_the_main_thread_has_ended(place: str, first: str, kind: str, tmp_path: Path) -> None:
    """From a training thread that outlives it, or an exit handler: saved, or refused with an error that says what to do.

    Newer versions of Python start no threads in exit handlers.
    """
    begin = {
        "thread": "threading.Thread(target=lambda: (threading.main_thread().join(), time.sleep(0.5), last())).start()",
        "exit handler": "atexit.register(last)",
    }
    code = f"""
        import atexit
        {first}
        def last():
            try:
                print(checkpoint.save(prefix, {kind}), flush=True)
                checkpoint.sync()
            except jaxckpt.CheckpointError as error:
                print("refused", error, flush=True)

        {begin[place]}
        """
    done = run(code, tmp_path)
    number = 2 if first else 1
    assert (done.returncode, done.stderr) == (0, "")
    if done.stdout.startswith("refused"):
        assert sys.version_info >= (3, 12)
        assert "cannot be saved any more" in done.stdout
        assert ("main thread has ended" in done.stdout) == (place == "thread")
        if first:
            assert_saved(tmp_path, 1)
    else:
        assert done.stdout.strip() == str(tmp_path / f"ckpt-{number}")
        assert_saved(tmp_path, number)
        assert "commit_success.txt" in os.listdir(tmp_path / f"ckpt-{number}")


def test_a_manager_saves_in_an_exit_handler_before_any_save_ran(tmp_path: Path) -> None:
    code = """
        import atexit
        manager = jaxckpt.CheckpointManager(checkpoint, os.path.dirname(prefix), max_to_keep=1)
        atexit.register(manager.save)
        """
    done = run(code, tmp_path)
    if sys.version_info < (3, 12):
        assert (done.returncode, done.stderr) == (0, "")
        assert_saved(tmp_path)
    else:
        assert done.stderr == "" or "cannot be saved any more" in done.stderr


STUCK = """
checkpoint.write(prefix + "-warm")
from jaxckpt.storage.commit import moves
began = threading.Event()
moves.publish = lambda *arguments: (began.set(), time.sleep(1000))
checkpoint.save(prefix, options)
assert began.wait(60)
"""


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM with a handler", "SIGTERM"])
def test_ctrl_c_while_the_end_of_the_program_waits(kind: str, tmp_path: Path) -> None:
    """A line says what is waited for, and the end is as Python's for an interrupt: by the signal, without tracebacks."""
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))" if "handler" in kind else ""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "PYTHONWARNINGS": "error"}
    arguments = [sys.executable, "-c", PRELUDE + STUCK + handler, str(tmp_path / "ckpt")]
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT if kind == "SIGINT" else signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
    path = tmp_path / "ckpt-1"
    assert f"the save of {path}" in first
    assert "600 s (OrbaxSettings.exit_timeout_secs)" in first
    if kind == "SIGTERM":
        assert (process.returncode, rest) == (-signal.SIGTERM, "")
        return
    assert process.returncode == (-signal.SIGINT if kind == "SIGINT" else 9)
    assert rest.count("\n") == 1
    assert f"gave up waiting for the save of {path} at " in rest
    assert "it is NOT saved" in rest
    assert jaxckpt.latest_checkpoint(tmp_path) is None


def test_ctrl_c_while_a_callback_keeps_the_program_from_ending(tmp_path: Path) -> None:
    code = """
        def callback():
            threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(1000)

        options.experimental_write_callbacks = [callback]
        checkpoint.save(prefix, options)
        """
    done = run(code, tmp_path)
    assert done.returncode == -signal.SIGINT
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "it is saved, but its callbacks have not finished" in done.stderr
    assert_saved(tmp_path)


def test_callbacks_of_the_last_save_run(tmp_path: Path) -> None:
    code = """
        options.experimental_write_callbacks = [lambda path: print("saved", path, flush=True)]
        checkpoint.save(prefix, options)
        """
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"saved {tmp_path}/ckpt-1\n", "")


def test_several_checkpoints_are_waited_for(tmp_path: Path) -> None:
    code = """
        checkpoints = [jaxckpt.Checkpoint(a=np.arange(300_000.0)) for _ in range(3)]
        for checkpoint in checkpoints:
            checkpoint.save(prefix, options)
        """
    done = run(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "ckpt-1", "ckpt-2", "ckpt-3"]
    for number in (1, 2, 3):
        assert jaxckpt.verify(tmp_path / f"ckpt-{number}").ok


@pytest.mark.parametrize("stage", ["write", "callback"])
def test_the_wait_is_bounded_and_says_so(stage: str, tmp_path: Path) -> None:
    code = f"""
        options.orbax = jaxckpt.OrbaxSettings(exit_timeout_secs=1)
        checkpoint.write(prefix + "-warm")
        if {stage!r} == "write":
            from jaxckpt.storage.commit import moves
            moves.publish = lambda *arguments: time.sleep(1000)
        else:
            called = threading.Event()
            options.experimental_write_callbacks = [lambda: (called.set(), time.sleep(1000))]
        checkpoint.save(prefix, options)
        if {stage!r} == "callback":
            assert called.wait(60)
        """
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/ckpt-1" in done.stderr
    assert "exit_timeout_secs" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert ("NOT saved" in done.stderr) == (stage == "write")
    if stage == "callback":
        assert_saved(tmp_path)
    else:
        assert jaxckpt.latest_checkpoint(tmp_path) is None


def test_giving_up_in_the_middle_of_a_write_is_a_clean_end(tmp_path: Path) -> None:
    """Not an abort with a core dump, whatever the background is doing."""
    code = """
        from jaxckpt.storage.arrays import writer

        # Large, so that the write lasts until the end, and begun by then.
        checkpoint.a = np.ones(12_000_000)
        write, began = writer.write, threading.Event()
        writer.write = lambda *arguments, **named: (began.set(), write(*arguments, **named))[1]
        options.orbax = jaxckpt.OrbaxSettings(exit_timeout_secs=0.01)
        checkpoint.save(prefix, options)
        assert began.wait(60)
        """
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "terminate" not in done.stderr
    # On a busy machine the write may be over before the program notices its end.
    latest = jaxckpt.latest_checkpoint(tmp_path)
    assert ("NOT saved" in done.stderr) == (latest is None), done.stderr
    assert latest is None or jaxckpt.verify(latest).ok


@pytest.mark.parametrize("ending", ["", "sys.exit(4)", "raise KeyError('mine')"])
def test_a_failed_save_prints_its_traceback(ending: str, tmp_path: Path) -> None:
    (tmp_path / "ckpt-1").write_text("")
    code = f"""
        prefix += "-1/inside"
        checkpoint.save(prefix, options)
        {ending}
        """
    done = run(code, tmp_path)
    assert "Traceback" in done.stderr
    assert "NotADirectoryError" in done.stderr
    assert "NOT saved" in done.stderr
    assert done.returncode == (4 if "exit" in ending else 1 if ending else 0)
    if "mine" in ending:
        assert "KeyError: 'mine'" in done.stderr


def test_an_error_that_was_raised_is_not_printed_again(tmp_path: Path) -> None:
    (tmp_path / "ckpt-1").write_text("")
    code = """
        checkpoint.save(prefix + "-1/inside", options)
        try:
            checkpoint.sync()
        except NotADirectoryError:
            print("caught")
        """
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caught\n", "")


def test_a_failure_in_the_writer_is_not_logged_as_well(tmp_path: Path) -> None:
    """The caller has the exception; Orbax's own traceback of the same would only confuse."""
    code = """
        from jaxckpt.storage.arrays import writer

        def fail(*arguments, **named):
            raise OSError(28, "No space left on device", "somewhere")

        writer.write = fail
        for options.enable_async in (True, False):
            try:
                checkpoint.save(prefix, options)
                checkpoint.sync()
            except OSError as error:
                print(error.errno)
        """
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "28\n28\n", "")


@pytest.mark.parametrize("ending", ["os._exit(5)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_hard_end_leaves_the_previous_one(ending: str, tmp_path: Path) -> None:
    code = f"""
        checkpoint.save(prefix)
        checkpoint.a = np.zeros(5_000_000)
        checkpoint.save(prefix, options)
        {ending}
        """
    done = run(code, tmp_path)
    assert done.returncode in (5, -signal.SIGKILL)
    latest = jaxckpt.latest_checkpoint(tmp_path)
    assert latest is not None
    assert jaxckpt.verify(latest).ok
    if latest.endswith("-1"):
        checkpoint = jaxckpt.Checkpoint(a=np.zeros(300_000))
        checkpoint.restore(latest).assert_consumed()
        np.testing.assert_array_equal(checkpoint.a, np.arange(300_000.0))


def test_sigterm_with_a_handler_that_exits(tmp_path: Path) -> None:
    code = """
        signal.signal(signal.SIGTERM, lambda *arguments: sys.exit(9))
        checkpoint.save(prefix, options)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)
        """
    done = run(code, tmp_path)
    assert (done.returncode, done.stderr) == (9, "")
    assert_saved(tmp_path)
