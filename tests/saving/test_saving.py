"""Checkpoint: numbers, paths, names, failures, callbacks, and saves in the background."""

import copy
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxckpt

ASYNC = jaxckpt.CheckpointOptions(enable_async=True)


def make(**values: Any) -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(**(values or {"model": {"w": jnp.ones((4, 3))}, "step": 1}))


def with_callbacks(*callbacks: Callable[..., Any], asynchronous: bool = False) -> jaxckpt.CheckpointOptions:
    return jaxckpt.CheckpointOptions(experimental_write_callbacks=callbacks, enable_async=asynchronous)


def listing(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.exists() else []


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def options(request: pytest.FixtureRequest) -> jaxckpt.CheckpointOptions:
    return jaxckpt.CheckpointOptions(enable_async=request.param)


class TestNumbersAndPaths:
    def test_numbers_count_up_and_the_last_is_the_latest(self, tmp_path: Path, options: Any) -> None:
        checkpoint = make()
        for number in (1, 2, 3):
            assert checkpoint.save(tmp_path / "a" / "b" / "ckpt", options) == str(
                tmp_path / "a" / "b" / f"ckpt-{number}"
            )
            checkpoint.sync()
            assert jaxckpt.latest_checkpoint(tmp_path / "a" / "b") == str(tmp_path / "a" / "b" / f"ckpt-{number}")
            assert checkpoint.save_counter == number
        assert listing(tmp_path / "a" / "b") == ["checkpoint", "ckpt-1", "ckpt-2", "ckpt-3"]

    def test_nothing_is_overwritten(self, tmp_path: Path, options: Any) -> None:
        first = make(value=np.asarray(1))
        for _ in range(3):
            first.save(tmp_path / "ckpt")
        second = make(value=np.asarray(2))
        assert second.save(tmp_path / "ckpt", options) == str(tmp_path / "ckpt-4")
        second.restore(tmp_path / "ckpt-1")
        assert second.save_counter == 1
        assert second.save(tmp_path / "ckpt", options).endswith("-5")
        second.sync()
        assert [int(jaxckpt.load_variable(tmp_path / f"ckpt-{n}", "value")) for n in range(1, 6)] == [1, 1, 1, 2, 1]

    def test_numbers_of_deleted_checkpoints_are_not_given_again(self, tmp_path: Path) -> None:
        checkpoint = make()
        paths = [checkpoint.save(tmp_path / "ckpt") for _ in range(4)]
        for path in paths[1:]:
            shutil.rmtree(path)
        checkpoint.restore(paths[0])
        assert checkpoint.save(tmp_path / "ckpt").endswith("-5")
        checkpoint.save_counter = 1
        assert checkpoint.save(tmp_path / "ckpt").endswith("-2")
        assert make().save(tmp_path / "new" / "ckpt").endswith("-1")

    def test_two_checkpoints_under_one_name(self, tmp_path: Path) -> None:
        checkpoints = [make(value=np.asarray(number)) for number in range(4)]
        paths = [checkpoint.save(tmp_path / "ckpt", ASYNC) for checkpoint in checkpoints for _ in range(2)]
        for checkpoint in checkpoints:
            checkpoint.sync()
        assert len(set(paths)) == 8
        assert sorted(int(jaxckpt.load_variable(path, "value")) for path in paths) == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_other_files_take_their_numbers(self, tmp_path: Path) -> None:
        (tmp_path / "ckpt-1").write_text("mine")
        assert make().save(tmp_path / "ckpt").endswith("ckpt-2")
        assert (tmp_path / "ckpt-1").read_text() == "mine"

    def test_relative_paths_stay_as_they_were_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        checkpoint = make()
        path = checkpoint.save("d/ckpt", options)
        (tmp_path / "other").mkdir()
        os.chdir(tmp_path / "other")
        checkpoint.sync()
        os.chdir(tmp_path)
        assert path == "d/ckpt-1"
        assert jaxckpt.latest_checkpoint("d") == "d/ckpt-1"
        assert listing(tmp_path / "other") == []

    def test_write_replaces_and_does_not_register(self, tmp_path: Path, options: Any) -> None:
        checkpoint = make(value=1)
        assert checkpoint.write(tmp_path / "exact", options) == str(tmp_path / "exact")
        checkpoint.value = 2
        checkpoint.write(tmp_path / "exact", options)
        checkpoint.sync()
        assert jaxckpt.load_variable(tmp_path / "exact", "value") == 2
        assert checkpoint.save_counter == 0
        assert jaxckpt.latest_checkpoint(tmp_path) is None
        assert listing(tmp_path) == ["exact"]

    def test_write_does_not_replace_what_is_no_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "thesis.txt").write_text("x")
        with pytest.raises(FileExistsError, match="not a checkpoint"):
            make().write(tmp_path / "precious")
        assert listing(tmp_path) == ["precious"]

    def test_write_does_not_replace_what_only_has_a_file_of_such_a_name(self, tmp_path: Path) -> None:
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "_METADATA").write_text("author: me")
        with pytest.raises(FileExistsError, match="not a checkpoint"):
            make().write(tmp_path / "precious")
        assert (tmp_path / "precious" / "_METADATA").read_text() == "author: me"

    def test_both_save_and_write_store_the_counter(self, tmp_path: Path) -> None:
        checkpoint = make()
        checkpoint.save_counter = 6
        assert checkpoint.save(tmp_path / "ckpt").endswith("-7")
        checkpoint.write(tmp_path / "exact")
        for path in ("ckpt-7", "exact"):
            fresh = make()
            fresh.read(tmp_path / path)
            assert fresh.save_counter == 0
            fresh.restore(tmp_path / path)
            assert fresh.save_counter == 7

    @pytest.mark.parametrize("bad", [3, None, b"x", ["a"]])
    def test_paths_of_a_wrong_type(self, bad: Any) -> None:
        for call in (make().save, make().write):
            with pytest.raises(TypeError, match="file_prefix must be a str or os.PathLike"):
                call(bad)
        if bad is not None:
            with pytest.raises(TypeError, match="save_path"):
                make().restore(bad)

    @pytest.mark.parametrize("bad", ["", "a\0b", "gs://", "s3://", "ftp://bucket/ckpt"])
    def test_paths_that_cannot_be(self, bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for call in (make().save, make().write, make().restore):
            with pytest.raises(ValueError, match="file_prefix|save_path"):
                call(bad)
        assert listing(tmp_path) == []

    @pytest.mark.parametrize("bad", [{}, "async", True, jaxckpt.OrbaxSettings()])
    def test_options_of_a_wrong_type(self, bad: Any, tmp_path: Path) -> None:
        for call in (make().save, make().write, make().restore, make().read):
            with pytest.raises(TypeError, match="CheckpointOptions"):
                call(tmp_path / "ckpt", bad)
        assert listing(tmp_path) == []

    @pytest.mark.parametrize("bad", [1.0, "1", True, None])
    def test_a_counter_of_a_wrong_type(self, bad: Any) -> None:
        with pytest.raises(TypeError, match="save_counter must be an int"):
            make().save_counter = bad
        with pytest.raises(ValueError, match="save_counter"):
            make().save_counter = -1


class TestNamesAndRoots:
    def test_attributes_are_read_when_they_are_saved(self, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(step=0)
        checkpoint.step = 5
        checkpoint.added = np.ones(2)
        path = checkpoint.save(tmp_path / "ckpt")
        assert [name for name, _ in jaxckpt.list_variables(path)] == ["added", "save_counter", "step"]
        del checkpoint.added
        with pytest.raises(AttributeError, match="no value 'added'.*step"):
            _ = checkpoint.added
        assert jaxckpt.load_variable(path, "step") == 5

    @pytest.mark.parametrize(
        "name", ["save", "restore", "save_counter", "sync", "close", "write", "read", "_saver", "__init__"]
    )
    def test_reserved_names(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"'{name}' is a reserved name"):
            jaxckpt.Checkpoint({name: 1})
        if name not in ("save_counter", "__init__"):
            with pytest.raises(ValueError, match="reserved"):
                setattr(make(), name, 1)

    def test_a_root_and_its_fields_by_name_are_the_same_on_disk(self, tmp_path: Path) -> None:
        value = {"v": np.arange(3), "w": {"x": 1}}
        by_root = jaxckpt.Checkpoint(value).save(tmp_path / "root")
        by_name = jaxckpt.Checkpoint(**value).save(tmp_path / "name")
        for path in (by_root, by_name):
            for target in (
                jaxckpt.Checkpoint({"v": np.zeros(3, int), "w": {"x": 0}}),
                jaxckpt.Checkpoint(v=np.zeros(3, int), w={"x": 0}),
            ):
                target.restore(path).assert_consumed()
                assert target.v[2] == 2
                assert target.w == {"x": 1}

    def test_a_mapping_root_is_not_written_into_and_its_fields_are_read_when_saved(self, tmp_path: Path) -> None:
        root = {"v": 1}
        checkpoint = jaxckpt.Checkpoint(root)
        path = checkpoint.save(tmp_path / "ckpt")
        root["v"] = 2
        second = checkpoint.save(tmp_path / "ckpt")
        assert jaxckpt.load_variable(second, "v") == 2
        checkpoint.restore(path)
        assert (checkpoint.v, root["v"]) == (1, 2)
        root["v"] = 3
        assert checkpoint.v == 3

    def test_the_same_name_twice(self) -> None:
        value = np.ones(1)
        assert jaxckpt.Checkpoint({"v": value}, v=value).v is value
        with pytest.raises(ValueError, match="'v' is in root and among the keywords"):
            jaxckpt.Checkpoint({"v": value}, v=np.ones(1))

    @pytest.mark.parametrize("bad", [3, "x", [1], (1, 2), {1: 2}, jnp.ones(3)], ids=str)
    def test_roots_without_names(self, bad: Any) -> None:
        with pytest.raises(TypeError, match="root"):
            jaxckpt.Checkpoint(bad)

    def test_a_deep_copy_is_independent(self, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(value=np.zeros(2))
        checkpoint.save(tmp_path / "ckpt", ASYNC)
        other = copy.deepcopy(checkpoint)
        other.value += 1
        other.extra = 1
        assert checkpoint.value[0] == 0
        other.save(tmp_path / "other")
        assert (checkpoint.save_counter, other.save_counter) == (1, 2)
        checkpoint.sync()


class TestFailures:
    def test_a_failed_save_leaves_nothing_and_uses_no_number(self, tmp_path: Path) -> None:
        checkpoint = make()
        checkpoint.save(tmp_path / "ckpt")
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError) as caught:
            checkpoint.save(tmp_path / "file" / "ckpt")
        assert caught.value.errno == errno.ENOTDIR
        with pytest.raises(OSError, match="ckptx") as long:
            checkpoint.save(tmp_path / ("ckpt" + "x" * 300))
        assert long.value.errno == errno.ENAMETOOLONG
        assert checkpoint.save_counter == 1
        assert listing(tmp_path) == ["checkpoint", "ckpt-1", "file"]
        assert checkpoint.save(tmp_path / "ckpt").endswith("-2")

    def test_a_device_that_does_not_exist(self, tmp_path: Path, options: Any) -> None:
        options.experimental_io_device = "/job:worker/task:7"
        checkpoint = make()
        for call in (checkpoint.save, checkpoint.write, checkpoint.restore):
            with pytest.raises(ValueError, match="task"):
                call(tmp_path / "d" / "ckpt", options)
        assert listing(tmp_path) == []
        options.experimental_io_device = "/job:localhost"
        checkpoint.save(tmp_path / "d" / "ckpt", options)
        checkpoint.sync()
        assert jaxckpt.latest_checkpoint(tmp_path / "d") is not None

    @pytest.mark.parametrize("touch", ["sync", "save", "write", "restore", "read", "close", "with"])
    def test_a_failed_background_save_is_raised_once_at_the_next_touch(self, touch: str, tmp_path: Path) -> None:
        good = make().save(tmp_path / "good")
        (tmp_path / "file").write_text("")
        checkpoint = make()
        checkpoint.save(tmp_path / "file" / "ckpt", ASYNC)
        touches: dict[str, Callable[[], Any]] = {
            "sync": checkpoint.sync,
            "save": lambda: checkpoint.save(tmp_path / "n" / "ckpt"),
            "write": lambda: checkpoint.write(tmp_path / "n" / "exact"),
            "restore": lambda: checkpoint.restore(good),
            "read": lambda: checkpoint.read(good),
            "close": checkpoint.close,
            "with": lambda: checkpoint.__exit__(None, None, None),
        }
        with pytest.raises(NotADirectoryError) as caught:
            touches[touch]()
        assert any("file/ckpt-1" in note for note in caught.value.__notes__)
        assert listing(tmp_path / "n") == []
        touches[touch]()

    def test_the_error_of_the_block_is_not_hidden(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ZeroDivisionError) as caught, make() as checkpoint:
            checkpoint.save(tmp_path / "file" / "ckpt", ASYNC)
            _ = 1 / 0
        assert "NotADirectoryError" in caught.value.__notes__[0]

    def test_a_state_file_that_cannot_be_written_fails_the_save(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint").mkdir()
        checkpoint = make()
        with pytest.raises(OSError, match="checkpoint"):
            checkpoint.save(tmp_path / "ckpt")
        assert checkpoint.save_counter == 0
        assert listing(tmp_path) == ["checkpoint"]


class TestCallbacks:
    def test_they_run_after_the_commit_in_order_with_the_path(self, tmp_path: Path, options: Any) -> None:
        seen: list[Any] = []

        def restorable(path: str) -> None:
            target = make(value=0)
            target.restore(path).assert_consumed()
            seen.append((path, target.value, jaxckpt.latest_checkpoint(tmp_path), threading.current_thread()))

        options.experimental_write_callbacks = [
            restorable,
            lambda: seen.append("none"),
            lambda path="x": seen.append(path),
        ]
        checkpoint = make(value=7)
        path = checkpoint.save(str(tmp_path / "ckpt"), options)
        checkpoint.sync()
        assert seen[0][:3] == (path, 7, path)
        assert seen[1:] == ["none", path]
        assert (seen[0][3] is threading.main_thread()) == (not options.enable_async)
        seen.clear()
        checkpoint.restore(path, options)
        checkpoint.read(path, options)
        assert seen == []
        checkpoint.write(tmp_path / "exact", options)
        checkpoint.sync()
        assert seen[0][0] == str(tmp_path / "exact")

    def test_a_raising_callback(self, tmp_path: Path, options: Any) -> None:
        seen: list[str] = []

        def bad() -> None:
            raise KeyError("bad")

        options.experimental_write_callbacks = [bad, seen.append]
        checkpoint = make()
        with pytest.raises(KeyError, match="bad"):
            checkpoint.save(tmp_path / "ckpt", options)
            checkpoint.sync()
        assert seen == [str(tmp_path / "ckpt-1")] == [jaxckpt.latest_checkpoint(tmp_path)]
        assert checkpoint.save_counter == 1
        checkpoint.sync()
        options.experimental_write_callbacks = [bad, bad]
        with pytest.raises(ExceptionGroup):
            checkpoint.save(tmp_path / "ckpt", options)
            checkpoint.sync()

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
    def test_errors_that_end_programs_reach_the_caller(
        self, error: BaseException, tmp_path: Path, options: Any
    ) -> None:
        def bad() -> None:
            raise error

        options.experimental_write_callbacks = [bad]
        checkpoint = make()
        with pytest.raises(type(error)):
            checkpoint.save(tmp_path / "ckpt", options)
            checkpoint.sync()
        assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-1")

    def test_the_next_save_is_done_before_a_callbacks_error_is_raised(self, tmp_path: Path) -> None:
        checkpoint = make()
        checkpoint.save(tmp_path / "ckpt", with_callbacks(lambda: 1 / 0, asynchronous=True))
        with pytest.raises(ZeroDivisionError):
            checkpoint.save(tmp_path / "ckpt")
        assert listing(tmp_path) == ["checkpoint", "ckpt-1", "ckpt-2"]
        checkpoint.sync()

    @pytest.mark.parametrize("action", ["sync", "save", "write", "restore", "read", "close"])
    def test_its_own_checkpoint_cannot_be_used_from_the_background(self, action: str, tmp_path: Path) -> None:
        checkpoint = make()
        arguments = () if action in ("sync", "close") else (tmp_path / "x",)
        checkpoint.save(
            tmp_path / "ckpt", with_callbacks(lambda: getattr(checkpoint, action)(*arguments), asynchronous=True)
        )
        with pytest.raises(RuntimeError, match=r"write callback of an asynchronous save"):
            checkpoint.sync()

    def test_what_a_callback_may_use(self, tmp_path: Path, options: Any) -> None:
        checkpoint = make()

        def use(path: str) -> None:
            other = make()
            other.restore(path)
            other.save(tmp_path / "other", ASYNC)
            other.sync()
            if not options.enable_async:
                checkpoint.write(tmp_path / "again")
                checkpoint.save_counter = 10

        options.experimental_write_callbacks = [use]
        checkpoint.save(tmp_path / "ckpt", options)
        checkpoint.sync()
        assert "other-2" in listing(tmp_path)
        assert ("again" in listing(tmp_path)) == (not options.enable_async)


class TestBackground:
    def test_later_changes_are_not_in_the_checkpoint(self, tmp_path: Path) -> None:
        class Counter:
            n = 1

            def get_state(self) -> dict[str, int]:
                return {"n": self.n}

            def set_state(self, state: dict[str, int]) -> None:
                self.n = state["n"]

        gate = threading.Event()
        counter, array = Counter(), np.zeros(1000)
        donated = jnp.zeros((300, 300))
        checkpoint = jaxckpt.Checkpoint(array=array, nested=[array], counter=counter, donated=donated, step=1)
        # A first save that is still running keeps the second one from being written before the changes.
        blocked = jaxckpt.Checkpoint(x=1)
        blocked.save(tmp_path / "other", with_callbacks(lambda: gate.wait(), asynchronous=True))
        path = checkpoint.save(tmp_path / "ckpt", ASYNC)
        array += 1
        counter.n = 2
        new = jax.jit(lambda x: x + 1, donate_argnums=0)(donated)
        checkpoint.step = 2
        jax.block_until_ready(new)
        gate.set()
        blocked.sync()
        checkpoint.sync()
        reader = jaxckpt.load_checkpoint(path)
        assert not reader.get_tensor("array").any()
        assert not reader.get_tensor("nested/0").any()
        assert not reader.get_tensor("donated").any()
        assert reader.get_tensor("step") == 1
        assert reader.get_tensor("counter") == '{"n": 1}'

    def test_latest_is_the_previous_one_until_the_commit(self, tmp_path: Path) -> None:
        gate = threading.Event()
        checkpoint = make()
        first = checkpoint.save(tmp_path / "ckpt")
        checkpoint.save(tmp_path / "ckpt", with_callbacks(lambda: gate.wait(), asynchronous=True))
        threading.Timer(0.3, gate.set).start()
        # The save waits for the one in flight.
        third = checkpoint.save(tmp_path / "ckpt", ASYNC)
        assert gate.is_set()
        # A restore waits for it too.
        checkpoint.restore(first)
        assert jaxckpt.latest_checkpoint(tmp_path) == third

    @pytest.mark.slow
    def test_waits_are_bounded(self, tmp_path: Path) -> None:
        inside, gate = threading.Event(), threading.Event()
        checkpoint = make()
        checkpoint.write(tmp_path / "warm")
        options = with_callbacks(lambda: (inside.set(), gate.wait()), asynchronous=True)
        # Enough for the write itself, which it bounds too.
        options.orbax = jaxckpt.OrbaxSettings(timeout_secs=5)
        checkpoint.save(tmp_path / "ckpt", options)
        assert inside.wait(60)
        with pytest.raises(TimeoutError, match=r"ckpt-1 is still running after 5 s .*timeout_secs"):
            checkpoint.sync()
        gate.set()
        checkpoint.sync()

    @pytest.mark.slow
    def test_eight_threads_never_get_a_number_twice(self, tmp_path: Path) -> None:
        checkpoint = make(value=np.zeros(10))
        manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, 2)
        other = make(value=np.zeros(10))
        checkpoint.save(tmp_path / "ckpt")
        paths: list[str] = []

        def work(seed: int) -> None:
            for turn in range(8):
                mine = checkpoint if seed % 4 else other
                options = jaxckpt.CheckpointOptions(enable_async=(seed + turn) % 2 == 0)
                match (seed + turn) % 4:
                    case 0 | 1:
                        paths.append(mine.save(tmp_path / ("other" if mine is other else "ckpt"), options))
                    case 2:
                        path = manager.save(options=options)
                        assert path is not None
                        paths.append(path)
                    case 3:
                        manager.restore_or_initialize()

        threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
            assert not thread.is_alive()
        checkpoint.sync()
        other.sync()
        assert len(paths) == len(set(paths)) == 48
        latest = jaxckpt.latest_checkpoint(tmp_path)
        assert latest is not None
        assert jaxckpt.verify(latest).ok


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 20
    # Python goes on to list a thread if a signal handler raised an exception while it was started.
    while any("jaxckpt" in thread.name and thread.is_alive() for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_refused_save_uses_no_number_while_its_error_is_alive(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    checkpoint = jaxckpt.Checkpoint(value=np.zeros(3))
    with pytest.raises(IsADirectoryError) as caught:
        checkpoint.save(tmp_path / "ckpt")
    (tmp_path / "checkpoint").rmdir()
    assert checkpoint.save(tmp_path / "ckpt") == str(tmp_path / "ckpt-1")
    assert caught.value.errno is not None


class AlarmError(Exception):
    """An ordinary exception, raised by a signal handler."""


# Python itself ignores what is raised while it collects garbage, for example.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_handler_that_raises_an_exception_hangs_nothing(tmp_path: Path) -> None:
    """Orbax waits in an event loop, which would only log it, and wait on."""

    def ring(*_: object) -> None:
        raise AlarmError

    checkpoint = jaxckpt.Checkpoint(value=np.zeros(100_000))
    checkpoint.write(tmp_path / "warm")
    before = signal.signal(signal.SIGALRM, ring)
    raised = 0
    try:
        for number in range(40):
            try:
                # Inside: on a busy machine it may ring before the next line.
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0005 * (number % 20))
                checkpoint.save(tmp_path / "ckpt")
                time.sleep(0.05)
            except AlarmError:
                raised += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        # Event loops of Orbax that were interrupted while they were made complain now, and not during another test.
        gc.collect()
    assert raised > 30
    on_disk = {name for name in os.listdir(tmp_path) if name.startswith("ckpt-") and "tmp" not in name}
    state = jaxckpt.get_checkpoint_state(tmp_path)
    assert on_disk == {os.path.basename(path) for path in (state.all_model_checkpoint_paths if state else [])}
    assert all(jaxckpt.verify(tmp_path / name).ok for name in on_disk)
    checkpoint.save(tmp_path / "ckpt")


@pytest.mark.slow
def test_more_axes_than_orbax_knows_are_refused_and_read(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(model={"x": np.full((1,) * 33, 3)})
    with pytest.raises(ValueError, match="^model/x: .*33 axes.*32"):
        checkpoint.save(tmp_path / "ckpt")
    assert os.listdir(tmp_path) == []
    # jaxckpt 0.1 saved them.
    code = """
        import sys
        import numpy as np
        import jaxckpt
        from jaxckpt.leaf_kinds import contents
        contents.AXES = 64
        jaxckpt.Checkpoint(model={"x": np.full((1,) * 64, 3)}).write(sys.argv[1])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "c")], check=True, timeout=120)
    checkpoint.model = {"x": np.zeros((1,) * 64, int)}
    checkpoint.read(tmp_path / "c").assert_consumed()
    assert checkpoint.model["x"].shape == (1,) * 64
    assert checkpoint.model["x"].item() == 3
    assert jaxckpt.verify(tmp_path / "c").ok
