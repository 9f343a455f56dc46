"""What saves, restores and deletions tell: lines of the logger jaxckpt, and events of jax.monitoring."""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxckpt
from jaxckpt import storage, telemetry
from jaxckpt.telemetry import events, progress, save_times

ASYNC = jaxckpt.CheckpointOptions(enable_async=True)
TIME = r"[0-9.]+ m?s"


@contextlib.contextmanager
def listening() -> Iterator[list[tuple[str, float, str]]]:
    """Yields a list of the events of jaxckpt: name, value and mode."""
    heard: list[tuple[str, float, str]] = []
    ended = False

    def hear(name: str, value: float = 1.0, **labels: str) -> None:
        if name.startswith("/jaxckpt/") and not ended:
            heard.append((name, value, labels["mode"]))

    jax.monitoring.register_event_duration_secs_listener(hear)
    jax.monitoring.register_scalar_listener(hear)
    jax.monitoring.register_event_listener(hear)
    try:
        yield heard
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
        jax.monitoring.unregister_scalar_listener(hear)
        jax.monitoring.unregister_event_listener(hear)
        ended = True


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "jaxckpt" and record.levelno == level]


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "jaxckpt")
    return caplog


@pytest.mark.parametrize("options", [None, ASYNC], ids=["sync", "async"])
def test_events_of_saves_deletions_and_restores(options: jaxckpt.CheckpointOptions | None, tmp_path: Path) -> None:
    mode = "sync" if options is None else "async"
    checkpoint = jaxckpt.Checkpoint(w=np.ones(1000))
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, max_to_keep=1, options=options)
    with listening() as heard:
        manager.save()
        manager.save()
        manager.sync()
        first = {(name, mode) for name, _, mode in heard}
        checkpoint.restore(manager.latest_checkpoint)
    names = [name for name, _, _ in heard]
    assert first == {
        (name, mode)
        for name in (
            events.SAVE_BLOCKED,
            events.SAVE_WAITED,
            events.SAVE_WRITTEN,
            events.SAVE_SINCE_PREVIOUS,
            events.SAVE_BYTES,
            events.DELETE_SECS,
        )
    }
    assert names.count(events.SAVE_BLOCKED) == names.count(events.SAVE_WAITED) == names.count(events.SAVE_WRITTEN) == 2
    assert names.count(events.SAVE_SINCE_PREVIOUS) == names.count(events.DELETE_SECS) == 1
    assert [value for name, value, _ in heard if name in (events.SAVE_BYTES, events.RESTORE_BYTES)] == [8000] * 3
    assert {(name, mode) for name, _, mode in heard[-2:]} == {
        (events.RESTORE_SECS, "sync"),
        (events.RESTORE_BYTES, "sync"),
    }
    assert all(value >= 0 for _, value, _ in heard)


def test_the_names_are_those_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    names = {value for value in vars(events).values() if isinstance(value, str) and value.startswith("/jaxckpt/")}
    assert names == set(re.findall(r"`(/jaxckpt/[a-z_/]+)`", page))


@pytest.mark.parametrize("options", [None, ASYNC], ids=["sync", "async"])
def test_a_failed_save(
    options: jaxckpt.CheckpointOptions | None, info: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "ckpt-1").mkdir()
    (tmp_path / "ckpt-1" / "mine").touch()
    checkpoint = jaxckpt.Checkpoint(w=np.ones(10))
    with listening() as heard, pytest.raises(FileExistsError):
        checkpoint.write(tmp_path / "ckpt-1", options)
        checkpoint.sync()
    assert [event for event in heard if event[0] != events.SAVE_BLOCKED and event[0] != events.SAVE_WAITED] == [
        (events.SAVE_FAILED, 1.0, "sync" if options is None else "async")
    ]
    (line,) = lines(info)
    assert re.fullmatch(
        rf"did not save {tmp_path}/ckpt-1 after {TIME}: FileExistsError: .*This is not a checkpoint.*", line
    )


def test_a_save_whose_callback_fails_has_not_failed(info: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    options = jaxckpt.CheckpointOptions(experimental_write_callbacks=[lambda: 1 / 0])
    with listening() as heard, pytest.raises(ZeroDivisionError):
        jaxckpt.Checkpoint(w=np.ones(10)).save(tmp_path / "ckpt", options)
    assert events.SAVE_WRITTEN in [name for name, _, _ in heard]
    assert events.SAVE_FAILED not in [name for name, _, _ in heard]


def test_a_listener_that_fails_fails_no_save(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    def fail(name: str, seconds: float, **labels: str) -> None:
        if name.startswith("/jaxckpt/"):
            raise ZeroDivisionError("mine")

    jax.monitoring.register_event_duration_secs_listener(fail)
    try:
        path = jaxckpt.Checkpoint(w=np.ones(10)).save(tmp_path / "ckpt")
    finally:
        jax.monitoring.unregister_event_duration_listener(fail)
    assert jaxckpt.verify(path).ok
    assert f"A listener of jax.monitoring failed at {events.SAVE_BLOCKED}: ZeroDivisionError: mine" in lines(
        caplog, logging.WARNING
    )


def test_lines_of_saves_deletions_and_restores(info: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(w=np.ones(1024, np.float32))
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, max_to_keep=1)
    manager.save()
    manager.save()
    checkpoint.restore(tmp_path / "ckpt-2")
    checkpoint.read(tmp_path / "ckpt-2")
    saved = rf"4\.0 KiB in {TIME}; training was blocked for {TIME}, {TIME} of it waiting for the save before"
    patterns = [
        # A save that blocks the program has ended when its call returns, after the deletions.
        rf"saved {tmp_path}/ckpt-1: {saved}",
        rf"deleted {tmp_path}/ckpt-1 \(4\.0 KiB\) in {TIME}",
        rf"saved {tmp_path}/ckpt-2: {saved}",
        rf"restored {tmp_path}/ckpt-2: 4\.0 KiB in {TIME}",
        rf"read {tmp_path}/ckpt-2: 4\.0 KiB in {TIME}",
    ]
    assert len(lines(info)) == len(patterns)
    for line, pattern in zip(lines(info), patterns, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_wait_for_the_save_before(
    info: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far less than the wait below, which may begin late on a busy machine.
    monkeypatch.setattr(save_times, "WORTH_A_WARNING_SECS", 0.05)
    callback = threading.Event()
    checkpoint = jaxckpt.Checkpoint(w=np.ones(10))
    slow = jaxckpt.CheckpointOptions(enable_async=True, experimental_write_callbacks=[lambda: callback.wait(60)])
    checkpoint.save(tmp_path / "ckpt", slow)
    assert not lines(info, logging.WARNING)
    threading.Timer(1.0, callback.set).start()
    checkpoint.save(tmp_path / "ckpt", ASYNC)
    checkpoint.sync()
    (warning,) = lines(info, logging.WARNING)
    assert re.fullmatch(rf"Training waited {TIME} for the save before, .* began to save {tmp_path}/ckpt\. .*", warning)


@pytest.mark.parametrize("options", [None, ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("engine", ["", "tensorstore"], ids=["own", "tensorstore"])
def test_progress_of_what_takes_long(
    engine: str,
    options: jaxckpt.CheckpointOptions | None,
    info: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECS", 0.002)
    monkeypatch.setenv("JAXCKPT_ENGINE", engine)
    checkpoint = jaxckpt.Checkpoint(a=np.ones(4 << 20, np.float32), b=np.ones(4 << 20, np.float32))
    path = checkpoint.save(tmp_path / "ckpt", options)
    checkpoint.sync()
    found = [re.fullmatch(rf"saving {path}: (.*) of 32\.0 MiB after {TIME}", line) for line in lines(info)]
    assert any(found)
    assert {match[1] for match in found if match} <= {"0 B", "16.0 MiB", "32.0 MiB"}
    checkpoint.restore(path)
    assert not [thread for thread in threading.enumerate() if thread.name == "jaxckpt progress" and not _ends(thread)]


def _ends(thread: threading.Thread) -> bool:
    thread.join(60)
    return not thread.is_alive()


def test_progress_ends_with_work_that_an_interrupt_dropped(
    info: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECS", 0.002)
    telemetry.GoingOn("forgotten").__enter__()
    assert all(_ends(thread) for thread in threading.enumerate() if thread.name == "jaxckpt progress")


def test_without_a_reader_of_the_log_no_thread_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_SECS", 0.0)
    started: list[str] = []
    monkeypatch.setattr(progress, "start", lambda thread: started.append(thread.name))
    jaxckpt.Checkpoint(w=np.ones(10)).save(tmp_path / "ckpt")
    assert started == []


@pytest.mark.parametrize("options", [None, ASYNC], ids=["sync", "async"])
def test_orbax_is_quiet_only_in_calls_of_jaxckpt(
    options: jaxckpt.CheckpointOptions | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def heard() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "absl"]

    caplog.set_level(logging.INFO, "absl")
    checkpoint = jaxckpt.Checkpoint(w=np.ones(10))
    checkpoint.save(tmp_path / "ckpt", options)
    checkpoint.sync()
    checkpoint.restore(tmp_path / "ckpt-1")
    assert heard() == []
    # In the middle of a save of jaxckpt, on another thread.
    callback, inside = threading.Event(), threading.Event()
    slow = jaxckpt.CheckpointOptions(
        enable_async=True, experimental_write_callbacks=[lambda: inside.set() or callback.wait(60)]
    )
    checkpoint.save(tmp_path / "ckpt", slow)
    assert inside.wait(60)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", {"a": np.ones(3)})
        checkpointer.wait_until_finished()
    callback.set()
    checkpoint.sync()
    assert any(str(tmp_path / "plain") in line for line in heard())
    assert not any("ckpt-2" in line for line in heard())


@pytest.mark.parametrize("options", [None, ASYNC], ids=["sync", "async"])
def test_a_checkpoint_remembers_its_save(options: jaxckpt.CheckpointOptions | None, tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(w=np.ones(100))
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, None, step_counter=lambda: 7, options=options)
    path = manager.save(metrics={"loss": 0.5})
    assert path is not None
    manager.sync()
    step, metrics, account = storage.read_facts(path)
    assert (step, metrics) == (7, {"loss": 0.5})
    assert account is not None
    assert (account.bytes, account.processes, account.asynchronous) == (800, 1, options is not None)
    assert account.versions["jax"] == jax.__version__
    assert 0 <= account.waited_secs <= account.blocked_secs <= account.written_secs
    # It is covered by the checksum of its file.
    file = Path(path) / "_JAXCKPT"
    file.write_bytes(file.read_bytes().replace(b'"bytes": 800', b'"bytes": 801'))
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        storage.read_facts(path)
    assert not jaxckpt.verify(path).ok


def test_golden_checkpoints_remember_less() -> None:
    golden = Path(__file__).parents[1] / "golden"
    paths = [path.parent for path in golden.rglob("_JAXCKPT")]
    assert paths
    assert {storage.read_facts(str(path)).account for path in paths} == {None}
