"""What one program does that is preempted. Each function runs in a process of its own, which a failed assertion ends with status 1."""

import os
import signal
import threading
import time
import warnings
from typing import Any

import numpy as np

import jaxckpt

HANDLER = jaxckpt.PreemptionCheckpointHandler


def make(directory: str, **arguments: Any) -> tuple[Any, jaxckpt.CheckpointManager]:
    checkpoint: Any = jaxckpt.Checkpoint(value=np.zeros(4), step=0)
    arguments = {"checkpoint_interval": 1000, "last_checkpoint_step": 0, "numbers": "step", **arguments}
    return checkpoint, jaxckpt.CheckpointManager(
        checkpoint, directory, 3, step_counter=lambda: checkpoint.step, **arguments
    )


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def before_the_first_step(directory: str) -> None:
    """There is nothing to save yet but the initial values, and those are saved."""
    _, manager = make(directory, last_checkpoint_step=None)
    handler = HANDLER(manager)
    terminate()
    handler.save_checkpoint_if_preempted()


def after_a_restore(directory: str) -> None:
    """The step is saved already, and not saved a second time."""
    checkpoint, manager = make(directory)
    checkpoint.step = 7
    manager.save(check_interval=False)
    checkpoint, manager = make(directory)
    handler = HANDLER(manager)
    assert manager.restore_or_initialize() is not None
    terminate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handler.save_checkpoint_if_preempted()


def an_earlier_handler_is_called(directory: str) -> None:
    called = []
    signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    checkpoint, manager = make(directory)
    handler = HANDLER(manager)
    HANDLER(manager)
    handler.save_checkpoint_if_preempted()
    checkpoint.step = 3
    terminate()
    assert called == [signal.SIGTERM]
    handler.save_checkpoint_if_preempted()


def a_save_in_flight_is_finished_first(directory: str) -> None:
    """A callback keeps the save of step 1 running. Its end and the next save come in this order."""
    order: list[str] = []

    def slow(path: str) -> None:
        time.sleep(0.3)
        order.append(os.path.basename(path))

    options = jaxckpt.CheckpointOptions(enable_async=True, experimental_write_callbacks=[slow])
    checkpoint, manager = make(directory, last_checkpoint_step=None, options=options)
    handler = HANDLER(manager, jaxckpt.TerminationConfig(exit_fn=lambda: order.append("exit")))
    checkpoint.step = 1
    manager.save()
    checkpoint.step = 2
    terminate()
    handler.save_checkpoint_if_preempted()
    assert order == ["ckpt-1", "ckpt-2", "exit"], order
    # The exit function has returned, so the program goes on.
    checkpoint.step = 3
    handler.save_checkpoint_if_preempted()
    assert order[-1] == "exit"
    assert len(order) == 3


def a_save_in_flight_that_fails(directory: str) -> None:
    checkpoint, manager = make(directory, options=jaxckpt.CheckpointOptions(enable_async=True))
    handler = HANDLER(manager)
    os.makedirs(directory)
    obstacle = os.path.join(directory, "ckpt-5")
    open(obstacle, "w").close()
    checkpoint.step = 5
    manager.save(check_interval=False)
    while manager.last_checkpoint_step == 5:
        time.sleep(0.01)
    os.unlink(obstacle)
    terminate()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            handler.save_checkpoint_if_preempted()
        finally:
            assert any("The save before failed (FileExistsError" in str(warning.message) for warning in caught)


def a_second_signal_ends_it(directory: str) -> None:
    checkpoint, manager = make(directory)
    handler = HANDLER(manager, jaxckpt.TerminationConfig(exit_fn=lambda: (terminate(), time.sleep(60))))
    checkpoint.step = 2
    terminate()
    handler.save_checkpoint_if_preempted()


def a_save_that_fails(directory: str) -> None:
    """The error is raised, and the exit function is not called."""
    checkpoint, manager = make(directory)
    handler = HANDLER(manager, jaxckpt.TerminationConfig(exit_fn=lambda: os._exit(99)))
    checkpoint.step, checkpoint.value = 2, object()
    terminate()
    try:
        handler.save_checkpoint_if_preempted()
    except TypeError as error:
        assert "value" in str(error)
    else:
        raise AssertionError


def closed_it_gives_the_signal_back(directory: str) -> None:
    _, manager = make(directory)
    with HANDLER(manager) as handler:
        handler.save_checkpoint_if_preempted()
    handler.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    terminate()
    time.sleep(60)


def a_signal_after_the_last_step(directory: str) -> None:
    _, manager = make(directory)
    with HANDLER(manager):
        terminate()
    time.sleep(60)


def an_earlier_handler_comes_back(directory: str) -> None:
    called = []

    def mine(number: int, frame: object) -> None:
        called.append(number)

    signal.signal(signal.SIGTERM, mine)
    _, manager = make(directory)
    with HANDLER(manager):
        terminate()
    assert signal.getsignal(signal.SIGTERM) == mine
    assert called == [signal.SIGTERM]


def too_little_time(directory: str) -> None:
    """It says so as soon as a save has shown it, and once."""
    checkpoint, manager = make(directory, checkpoint_interval=1)
    handler = HANDLER(manager, jaxckpt.TerminationConfig(grace_period=1e-6))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 4):
            checkpoint.step = step
            handler.save_checkpoint_if_preempted()
            assert len(caught) == (step > 1)
            manager.save()
    text = str(caught[0].message)
    assert "longer than the grace_period of 1e-06 s" in text, text
    assert caught[0].category is RuntimeWarning
    assert caught[0].filename == __file__


def enough_time(directory: str) -> None:
    checkpoint, manager = make(directory, checkpoint_interval=1)
    handler = HANDLER(manager, jaxckpt.TerminationConfig(grace_period=600))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(1, 4):
            checkpoint.step = step
            manager.save()
            handler.save_checkpoint_if_preempted()


def on_another_thread(directory: str) -> None:
    _, manager = make(directory)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            HANDLER(manager)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "on the main thread" in str(errors[0])


def a_policy_sees_it(directory: str) -> None:
    """Orbax's own policy for preemptions, with the handler that takes the signal."""
    from orbax.checkpoint import checkpoint_managers as orbax

    checkpoint, manager = make(
        directory, checkpoint_interval=None, save_decision_policy=orbax.PreemptionCheckpointingPolicy()
    )
    HANDLER(manager)
    checkpoint.step = 1
    assert manager.save() is None
    terminate()
    checkpoint.step = 2
    assert manager.save() is not None
