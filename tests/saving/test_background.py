"""Asynchronous saves: one in flight, errors raised once, nothing shared with what happens afterwards, no deadlock."""

import copy
import dataclasses
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxckpt
from jaxckpt.saving.background import Flight

pytestmark = pytest.mark.sampled

ASYNC = jaxckpt.CheckpointOptions(enable_async=True)
LONG = 60.0


def run_async(*callbacks: Callable[..., Any]) -> jaxckpt.CheckpointOptions:
    return jaxckpt.CheckpointOptions(enable_async=True, experimental_write_callbacks=callbacks)


class Gate:
    """A callback that waits until it is opened: a save that stays in flight."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(LONG)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs a function on a thread; its result or its error is put into the list."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


TOUCHES: dict[str, Callable[[jaxckpt.Checkpoint, str], Any]] = {
    "sync": lambda checkpoint, good: checkpoint.sync(),
    "close": lambda checkpoint, good: checkpoint.close(),
    "save": lambda checkpoint, good: checkpoint.save(f"{good}-next"),
    "async save": lambda checkpoint, good: checkpoint.save(f"{good}-next", ASYNC),
    "write": lambda checkpoint, good: checkpoint.write(f"{good}-written"),
    "restore": lambda checkpoint, good: checkpoint.restore(good),
    "restore None": lambda checkpoint, good: checkpoint.restore(None),
    "read": lambda checkpoint, good: checkpoint.read(good),
    "with": lambda checkpoint, good: checkpoint.__exit__(None, None, None),
}


class TestOneInFlight:
    @pytest.mark.parametrize("touch", TOUCHES)
    def test_everything_waits_for_the_save_in_flight(self, touch: str, gate: Gate, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=np.arange(3))
        good = checkpoint.write(tmp_path / "good")
        path = checkpoint.save(tmp_path / "ckpt", run_async(gate))
        assert gate.entered.wait(LONG)
        thread, outcome = in_thread(lambda: TOUCHES[touch](checkpoint, good))
        thread.join(0.2)
        assert thread.is_alive()
        assert os.listdir(tmp_path).count("good-next-2") == 0
        gate.opened.set()
        thread.join(LONG)
        assert not thread.is_alive()
        assert not isinstance(outcome[0], BaseException), outcome
        checkpoint.sync()
        assert jaxckpt.verify(path).ok

    def test_latest_is_the_previous_one_until_the_commit(self, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=np.arange(3))
        seen = []
        for number in (1, 2, 3):
            path = checkpoint.save(
                tmp_path / "ckpt", run_async(lambda: seen.append(jaxckpt.latest_checkpoint(tmp_path)))
            )
            latest = jaxckpt.latest_checkpoint(tmp_path)
            assert latest in (None if number == 1 else str(tmp_path / f"ckpt-{number - 1}"), path)
            if latest == path:
                assert jaxckpt.verify(path).ok
            checkpoint.sync()
            assert jaxckpt.latest_checkpoint(tmp_path) == path
        assert seen == [str(tmp_path / f"ckpt-{number}") for number in (1, 2, 3)]

    def test_two_checkpoints_do_not_wait_for_each_other(self, gate: Gate, tmp_path: Path) -> None:
        jaxckpt.Checkpoint(a=1).save(tmp_path / "one", run_async(gate))
        other = jaxckpt.Checkpoint(a=2)
        path = other.save(tmp_path / "two", ASYNC)
        other.sync()
        assert jaxckpt.verify(path).ok

    def test_a_wait_is_bounded_and_the_save_goes_on(self, gate: Gate, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=1)
        checkpoint.write(tmp_path / "warm")
        options = run_async(gate)
        options.orbax = jaxckpt.OrbaxSettings(timeout_secs=5)
        path = checkpoint.save(tmp_path / "ckpt", options)
        assert gate.entered.wait(LONG)
        with pytest.raises(TimeoutError, match="timeout_secs"):
            checkpoint.save(tmp_path / "ckpt")
        assert checkpoint.save_counter == 1
        gate.opened.set()
        checkpoint.sync()
        assert checkpoint.save(tmp_path / "ckpt") == f"{tmp_path}/ckpt-2"
        assert jaxckpt.verify(path).ok


def failing_write(tmp_path: Path) -> jaxckpt.Checkpoint:
    """A Checkpoint whose asynchronous save has failed, or will."""
    (tmp_path / "file").write_text("in the way")
    checkpoint = jaxckpt.Checkpoint(a=np.arange(3))
    checkpoint.write(tmp_path / "good")
    checkpoint.save(tmp_path / "file" / "ckpt", ASYNC)
    return checkpoint


class TestErrors:
    @pytest.mark.parametrize("touch", TOUCHES)
    def test_a_failed_write_is_raised_once_at_the_next_touch(self, touch: str, tmp_path: Path) -> None:
        checkpoint = failing_write(tmp_path)
        with pytest.raises(NotADirectoryError) as caught:
            TOUCHES[touch](checkpoint, str(tmp_path / "good"))
        assert any("file/ckpt-1" in note for note in caught.value.__notes__)
        # A save that raises it writes nothing.
        assert sorted(os.listdir(tmp_path)) == ["file", "good"]
        # The call can simply be made again.
        TOUCHES[touch](checkpoint, str(tmp_path / "good"))
        checkpoint.sync()
        assert ("good-next-2" in os.listdir(tmp_path)) == ("save" in touch)

    @pytest.mark.parametrize("touch", TOUCHES)
    @pytest.mark.parametrize("error", [ValueError("v"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
    def test_a_callbacks_error_is_raised_once_and_the_checkpoint_counts(
        self, error: BaseException, touch: str, tmp_path: Path
    ) -> None:
        ran = []

        def fail() -> None:
            raise error

        checkpoint = jaxckpt.Checkpoint(a=np.arange(3))
        good = checkpoint.write(tmp_path / "good")
        path = checkpoint.save(tmp_path / "ckpt", run_async(lambda: ran.append("before"), fail, ran.append))
        with pytest.raises(type(error)) as caught:
            TOUCHES[touch](checkpoint, good)
        assert caught.value is error
        assert ran == ["before", path]
        assert jaxckpt.verify(path).ok
        # A save that raises it is done first.
        names = {"save": "good-next-2", "async save": "good-next-2", "write": "good-written"}
        checkpoint.sync()
        assert set(os.listdir(tmp_path)) == {
            "good",
            "ckpt-1",
            "checkpoint",
            *([names[touch]] if touch in names else []),
        }
        assert jaxckpt.latest_checkpoint(tmp_path) == (str(tmp_path / names[touch]) if "save" in touch else path)

    def test_several_callbacks_fail(self, tmp_path: Path) -> None:
        def fail(error: BaseException) -> Callable[[], None]:
            def callback() -> None:
                raise error

            return callback

        errors = [ValueError(1), KeyError(2)]
        checkpoint = jaxckpt.Checkpoint(a=1)
        checkpoint.save(tmp_path / "ckpt", run_async(*map(fail, errors)))
        with pytest.raises(ExceptionGroup) as caught:
            checkpoint.sync()
        assert list(caught.value.exceptions) == errors
        checkpoint.sync()

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_an_exception_that_refuses_new_attributes_is_not_lost(self, asynchronous: bool, tmp_path: Path) -> None:
        @dataclasses.dataclass(frozen=True)
        class FrozenError(Exception):
            code: int

        def fail() -> None:
            raise FrozenError(5)

        checkpoint = jaxckpt.Checkpoint(a=1)
        options = jaxckpt.CheckpointOptions(enable_async=asynchronous, experimental_write_callbacks=[fail])
        with pytest.raises(FrozenError) as caught:
            checkpoint.save(tmp_path / "ckpt", options)
            checkpoint.sync()
        assert caught.value.code == 5
        checkpoint.sync()
        # Also where the next save is done first.
        checkpoint.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions(enable_async=asynchronous))
        checkpoint.sync()
        options.enable_async = True
        checkpoint.save(tmp_path / "ckpt", options)
        with pytest.raises(FrozenError):
            checkpoint.save(tmp_path / "ckpt")
        assert checkpoint.save_counter == 4

    def test_an_error_of_the_block_and_one_of_the_background(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError, match="mine") as caught, failing_write(tmp_path):
            raise KeyError("mine")
        assert any("NotADirectoryError" in note for note in caught.value.__notes__)

    def test_an_error_stays_until_it_is_raised(self, tmp_path: Path) -> None:
        checkpoint = failing_write(tmp_path)
        for refused in (
            lambda: checkpoint.save(5),
            lambda: checkpoint.save("x", options=5),
            lambda: checkpoint.restore(5),
        ):  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                refused()
        bad = jaxckpt.CheckpointOptions(experimental_io_device=77)
        with pytest.raises(ValueError, match="77"):
            checkpoint.save(tmp_path / "x", bad)
        with pytest.raises(NotADirectoryError):
            checkpoint.sync()

    def test_a_callbacks_error_outlives_a_save_that_fails(self, tmp_path: Path) -> None:
        def fail() -> None:
            raise ValueError("callback")

        checkpoint = jaxckpt.Checkpoint(a=1)
        checkpoint.save(tmp_path / "ckpt", run_async(fail))
        checkpoint.bad = object()
        with pytest.raises(TypeError, match="bad"):
            checkpoint.save(tmp_path / "ckpt")
        with pytest.raises(ValueError, match="callback"):
            checkpoint.sync()
        del checkpoint.bad
        assert checkpoint.save(tmp_path / "ckpt").endswith("-2")

    def test_many_threads_see_an_error_once(self, tmp_path: Path) -> None:
        for index in range(20):
            directory = tmp_path / str(index)
            directory.mkdir()
            checkpoint = failing_write(directory)
            barrier = threading.Barrier(8)
            runs = [in_thread(lambda: (barrier.wait(LONG), checkpoint.sync())[1]) for _ in range(8)]  # noqa: B023
            for thread, _ in runs:
                thread.join(LONG)
            errors = [outcome[0] for _, outcome in runs if outcome[0] is not None]
            assert [type(error) for error in errors] == [NotADirectoryError]


class TestFromTheBackgroundThread:
    @pytest.mark.parametrize("touch", TOUCHES)
    def test_its_own_checkpoint_is_refused(self, touch: str, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=1)
        good = checkpoint.write(tmp_path / "good")
        checkpoint.save(tmp_path / "ckpt", run_async(lambda: TOUCHES[touch](checkpoint, good)))
        with pytest.raises(RuntimeError, match="callback"):
            checkpoint.sync()

    @pytest.mark.timeout(100)
    @pytest.mark.parametrize("use", ["deepcopy", "copy", "attributes", "repr", "another"])
    def test_what_a_callback_may_do_while_the_next_save_waits(self, use: str, gate: Gate, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=np.arange(3))
        checkpoint.write(tmp_path / "warm")
        done = []

        def callback(path: str) -> None:
            gate()
            # By now the main thread waits in save.
            time.sleep(0.3)
            if use == "deepcopy":
                done.append(copy.deepcopy(checkpoint).a)
            elif use == "copy":
                done.append(copy.copy(checkpoint).a)
            elif use == "attributes":
                checkpoint.added = 1
                checkpoint.save_counter = 10
                done.append(checkpoint.a)
            elif use == "repr":
                done.append((repr(checkpoint), dir(checkpoint)))
            else:
                other = jaxckpt.Checkpoint(a=np.zeros(3, int))
                other.restore(path).assert_consumed()
                other.save(tmp_path / "other")
                done.append(other.a)

        options = run_async(callback)
        options.orbax = jaxckpt.OrbaxSettings(timeout_secs=20)
        checkpoint.save(tmp_path / "ckpt", options)
        assert gate.entered.wait(LONG)
        gate.opened.set()
        checkpoint.save(tmp_path / "ckpt")
        checkpoint.sync()
        assert len(done) == 1

    def test_a_synchronous_save_may_write_in_its_callback(self, tmp_path: Path) -> None:
        checkpoint = jaxckpt.Checkpoint(a=1)
        paths: list[str] = []
        options = jaxckpt.CheckpointOptions(
            experimental_write_callbacks=[lambda path: paths.append(checkpoint.write(f"{path}-copy"))]
        )
        path = checkpoint.save(tmp_path / "ckpt", options)
        assert paths == [f"{path}-copy"]
        assert jaxckpt.load_variable(paths[0], "save_counter") == 1
        assert checkpoint.save(tmp_path / "ckpt") == str(tmp_path / "ckpt-2")


class TestSnapshot:
    """What is saved is what was there when save was called."""

    def test_host_memory_and_attributes(self, tmp_path: Path) -> None:
        size = 500_000
        base = np.arange(size * 2.0)
        values: dict[str, Any] = {
            "contiguous": np.arange(size * 1.0),
            "view": base[::2],
            "fortran": np.asfortranarray(np.arange(size * 1.0).reshape(1000, -1)),
            "swapped": np.arange(size, dtype=">i4"),
            "small": np.arange(3),
            "zero_dim": np.array(5.0),
            "nested": {"list": [np.ones(4), 1]},
            "variable": nnx.Variable(np.arange(7)),
        }
        expected = copy.deepcopy({name: value for name, value in values.items() if name != "variable"})
        checkpoint = jaxckpt.Checkpoint(**values)
        path = checkpoint.save(tmp_path / "ckpt", ASYNC)
        for name in ("contiguous", "fortran", "swapped", "small", "zero_dim"):
            values[name][...] = -1
        base[...] = -1
        values["nested"]["list"][0][:] = -1
        values["nested"]["list"].append("more")
        values["nested"]["new"] = 1
        values["variable"].get_value()[:] = -1
        checkpoint.contiguous = "replaced"
        checkpoint.added = 5
        del checkpoint.small
        checkpoint.sync()
        fresh = jaxckpt.Checkpoint(variable=np.zeros(7, int), **jax.tree.map(lambda leaf: leaf * 0, expected))
        fresh.restore(path).assert_consumed()
        for name, value in expected.items():
            jax.tree.map(np.testing.assert_array_equal, getattr(fresh, name), value)
        np.testing.assert_array_equal(fresh.variable, np.arange(7))

    def test_donated_buffers(self, tmp_path: Path) -> None:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
        shardings = [
            jax.sharding.SingleDeviceSharding(jax.devices()[1]),
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y")),
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")),
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
        ]
        add = jax.jit(lambda leaf: leaf + 1, donate_argnums=0)
        roll = jax.jit(lambda keys: jax.random.wrap_key_data(jax.random.key_data(keys) + 1), donate_argnums=0)

        def step(state: list[jax.Array]) -> list[jax.Array]:
            return [add(leaf) for leaf in state]

        state = step([jax.device_put(jnp.zeros((400, 1000)), sharding) for sharding in shardings])
        keys = roll(jax.random.split(jax.random.key(1), 1000))
        checkpoint = jaxckpt.Checkpoint(state=state, keys=keys)
        for number in (1, 2, 3):
            key_data = np.array(jax.random.key_data(keys))
            path = checkpoint.save(tmp_path / "ckpt", ASYNC)
            for _ in range(3):
                state, keys = step(state), roll(keys)
            checkpoint.state, checkpoint.keys = state, keys
            checkpoint.sync()
            for index in range(len(shardings)):
                assert (jaxckpt.load_variable(path, f"state/{index}") == number * 3 - 2).all()
            np.testing.assert_array_equal(jaxckpt.load_variable(path, "keys"), key_data)

    @pytest.mark.slow
    def test_an_nnx_training_step(self, tmp_path: Path) -> None:
        model = nnx.Linear(50, 50, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

        @nnx.jit
        def step(model: Any, optimizer: Any) -> None:
            optimizer.update(model, nnx.grad(lambda model: (model(jnp.ones((2, 50))) ** 2).sum())(model))

        checkpoint = jaxckpt.Checkpoint(model=model, optimizer=optimizer)
        for _ in range(4):
            expected = np.array(model.kernel.get_value())
            path = checkpoint.save(tmp_path / "ckpt", ASYNC)
            step(model, optimizer)
            checkpoint.sync()
            np.testing.assert_array_equal(jaxckpt.load_variable(path, "model/kernel"), expected)

    def test_the_options_may_change_as_well(self, gate: Gate, tmp_path: Path) -> None:
        ran: list[str] = []
        options = run_async(gate, lambda: ran.append("original"))
        checkpoint = jaxckpt.Checkpoint(a=1)
        checkpoint.save(tmp_path / "ckpt", options)
        options.experimental_write_callbacks = [lambda: ran.append("changed")]
        options.enable_async = False
        gate.opened.set()
        checkpoint.sync()
        assert ran == ["original"]


@pytest.mark.slow
def test_eight_threads_mix_everything(tmp_path: Path) -> None:
    """Numbers never repeat, every checkpoint is whole, a wait has an end."""
    checkpoint = jaxckpt.Checkpoint(value=np.zeros(2000), twin=np.zeros(2000))
    first = checkpoint.save(tmp_path / "ckpt")
    paths: list[str] = [first]
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(12):
                action = rng.randrange(6)
                if action < 2:
                    paths.append(checkpoint.save(tmp_path / "ckpt", ASYNC if action else None))
                elif action == 2:
                    checkpoint.restore(rng.choice(paths[:1])).expect_partial()
                elif action == 3:
                    checkpoint.write(tmp_path / f"exact{seed % 2}", ASYNC)
                elif action == 4:
                    checkpoint.sync()
                else:
                    copy.deepcopy(checkpoint).save(tmp_path / "ckpt")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not any(thread.is_alive() for thread in threads)
    checkpoint.sync()
    assert failures == []
    assert len(set(paths)) == len(paths)
    names = [name for name in os.listdir(tmp_path) if name != "checkpoint"]
    assert not [name for name in names if "tmp" in name]
    for name in names:
        assert jaxckpt.verify(tmp_path / name).ok


@pytest.mark.slow
def test_a_thread_may_sync_while_another_starts_a_save(tmp_path: Path) -> None:
    """Switching between threads as often as Python can, so that every gap is hit."""
    checkpoint = jaxckpt.Checkpoint(a=1)
    failures: list[BaseException] = []
    done = threading.Event()

    def touch() -> None:
        while not done.is_set():
            try:
                checkpoint.sync()
            except BaseException as error:
                failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=touch) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(30):
            checkpoint.write(tmp_path / "c", ASYNC)
    finally:
        done.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(LONG)
    checkpoint.sync()
    assert failures == []


def test_the_caller_goes_on_before_the_background_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the call would take until the new thread waits for something: Python has one lock for all threads."""
    # On a busy machine it takes a while until the caller goes on.
    monkeypatch.setattr("jaxckpt.saving.background._PAUSE_SECS", 1.0)
    worked: list[float] = []

    def work(saved: Callable[[], None]) -> None:
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass
        worked.append(end)

    flight = Flight(work, "ckpt", LONG, LONG)
    before = sys.getswitchinterval()
    sys.setswitchinterval(LONG)
    try:
        flight.launch()
        assert not worked
    finally:
        sys.setswitchinterval(before)
    assert flight.wait(LONG)
    assert worked
