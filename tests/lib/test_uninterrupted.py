"""Ctrl-C at any moment: the work is done, once, and then the interrupt is raised."""

import linecache
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from waiting import interrupt, wait_until

import jaxckpt
from jaxckpt._lib.uninterrupted import finish_left, interrupt_of, start, uninterrupted
from jaxckpt.storage import orbax


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    def handle(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, handle)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_work_is_done() -> None:
    done: list[threading.Thread] = []
    uninterrupted(lambda: done.append(threading.current_thread()))
    assert len(done) == 1


def test_its_error_is_raised() -> None:
    def work() -> None:
        raise FileNotFoundError("x")

    with pytest.raises(FileNotFoundError):
        uninterrupted(work)


def test_an_interrupt_is_raised_when_the_work_is_done() -> None:
    done: list[int] = []
    interrupts: list[BaseException] = []

    def work() -> None:
        interrupt(signal.SIGUSR1)
        wait_until(lambda: interrupts, "word of the interrupt while the work goes on")
        done.append(1)

    with pytest.raises(KeyboardInterrupt) as caught:
        uninterrupted(work, interrupts.append)
    assert done == [1]
    assert interrupts == [caught.value]


def test_a_second_interrupt_is_raised_at_once_and_the_work_goes_on() -> None:
    go_on, done = threading.Event(), threading.Event()
    interrupts: list[BaseException] = []

    def work() -> None:
        interrupt(signal.SIGUSR1)
        wait_until(lambda: interrupts)
        interrupt(signal.SIGUSR1)
        assert go_on.wait(60)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(work, interrupts.append)
    assert len(interrupts) == 1
    assert not done.is_set()
    go_on.set()
    assert done.wait(60)


def test_two_interrupts_before_the_work_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[threading.Thread] = []
    done: list[int] = []

    def interrupted(thread: threading.Thread) -> None:
        calls.append(thread)
        if len(calls) <= 2:
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr("jaxckpt._lib.uninterrupted.start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(lambda: done.append(1))
    assert done == [1]


def test_a_second_interrupt_between_two_rounds_of_the_loop() -> None:
    """The work has not begun then, because the first one came before its thread was started."""
    done, calls = threading.Event(), []
    first = next(
        line
        for _, _, line in uninterrupted.__code__.co_lines()
        if line is not None and _text_of(line) == "while not ended:"
    )

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        if frame.f_code is not uninterrupted.__code__:
            return None
        if event == "line" and frame.f_lineno == first and frame.f_locals["interrupt"] is not None and len(calls) == 1:
            calls.append(2)
            raise KeyboardInterrupt
        return trace

    def interrupted(thread: threading.Thread) -> None:
        if not calls:
            calls.append(1)
            raise KeyboardInterrupt
        start(thread)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("jaxckpt._lib.uninterrupted.start", interrupted)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            uninterrupted(done.set)
        finally:
            sys.settrace(before)
    assert calls == [1, 2]
    assert done.wait(60)


@pytest.mark.parametrize("is_twice", [False, True])
def test_an_interrupt_at_any_instruction_where_no_thread_can_be_started(
    is_twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread does the work itself then. It is never done twice, and the call ends, wherever the interrupt comes."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def again(error: BaseException) -> None:
        if is_twice:
            raise KeyboardInterrupt

    monkeypatch.setattr("jaxckpt._lib.uninterrupted.start", refused)
    code = next(each for each in uninterrupted.__code__.co_consts if getattr(each, "co_name", "") == "run")
    for instruction in range(1000):
        done: list[int] = []
        seen = [0]

        def trace(
            frame: FrameType, event: str, _: object, instruction: int = instruction, seen: list[int] = seen
        ) -> Any:
            if frame.f_code is not code:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                seen[0] += 1
                if seen[0] == instruction + 1:
                    raise KeyboardInterrupt
            return trace

        ended = threading.Event()
        timer = threading.Timer(60, lambda ended=ended: ended.is_set() or os.kill(os.getpid(), signal.SIGABRT))
        timer.daemon = True
        timer.start()
        before = sys.gettrace()
        sys.settrace(trace)
        is_raised = False
        try:
            uninterrupted(lambda done=done: done.append(1), again)  # type: ignore[misc]
        except KeyboardInterrupt:
            is_raised = True
        finally:
            sys.settrace(before)
            ended.set()
            timer.cancel()
        # In the work itself the interrupt is an error of the work, and so it is at the instructions that lead to it.
        assert done == [1] or (done == [] and instruction > 0), instruction
        assert is_raised == (seen[0] > instruction)
        if not is_raised:
            break
    assert instruction > 10
    finish_left(0.05)


def _text_of(line: int) -> str:
    return linecache.getline(uninterrupted.__code__.co_filename, line).strip()


def _is_inside(frame: FrameType | None) -> bool:
    """Whether the main thread is in the loop of `uninterrupted`, in front of which there are a few lines that begin nothing."""
    while frame is not None:
        if frame.f_code is uninterrupted.__code__:
            return "told" in frame.f_locals
        frame = frame.f_back
    return False


@pytest.mark.parametrize("times", [1, 2])
def test_interrupts_at_random_moments(times: int) -> None:
    """However soon they come, the work is done, once; with one interrupt, before the call returns."""
    chance = random.Random(times)
    done: list[int] = []
    heard = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if _is_inside(frame):
            heard += 1
            raise KeyboardInterrupt

    def interrupt_often() -> None:
        for longest in (0.002, 0.0003)[:times]:
            time.sleep(chance.uniform(0, longest))
            interrupt(signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handle)
    raised = twice = 0
    try:
        # How many of them come inside depends on what else the machine does.
        for turn in range(20_000):
            thread = threading.Thread(target=interrupt_often, daemon=True)

            def work(turn: int = turn) -> None:
                time.sleep(0.001)
                done.append(turn)

            thread.start()
            heard, is_raised = 0, False
            try:
                uninterrupted(work)
            except KeyboardInterrupt:
                is_raised = True
            assert is_raised == (heard > 0)
            raised += is_raised
            twice += heard > 1
            if heard < 2:
                assert done[-1:] == [turn]
            wait_until(lambda turn=turn: done.count(turn) == 1)  # type: ignore[misc]
            thread.join()
            if raised >= 100 and (times == 1 or twice >= 20):
                break
        else:
            pytest.fail(f"{raised} calls were interrupted, {twice} of them twice")
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert done == sorted(set(done))


def test_two_interrupts_while_a_thread_is_started() -> None:
    """They are not taken for a thread that cannot be had: it runs."""
    ran = threading.Event()

    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            try:
                raise KeyboardInterrupt
            finally:
                # As in `Condition.wait`, whose lock the second one left released.
                threading.Lock().release()

    with pytest.raises(KeyboardInterrupt):
        start(Interrupted(target=ran.set))
    assert ran.wait(30)

    class Refused(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="can't start"):
        start(Refused())


def test_another_thread_does_it_itself() -> None:
    """Nothing interrupts it."""
    found: list[threading.Thread] = []
    thread = threading.Thread(target=lambda: uninterrupted(lambda: found.append(threading.current_thread())))
    thread.start()
    thread.join(10)
    assert found == [thread]


def test_the_next_call_waits_for_what_two_interrupts_left() -> None:
    gate, done = threading.Event(), threading.Event()
    interrupts: list[BaseException] = []

    def work() -> None:
        interrupt(signal.SIGUSR1)
        wait_until(lambda: interrupts)
        interrupt(signal.SIGUSR1)
        assert gate.wait(60)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(work, interrupts.append)
    assert not done.is_set()
    finish_left(0.05)
    assert not done.is_set()
    threading.Timer(0.2, gate.set).start()
    finish_left(60)
    assert done.is_set()


class _Interrupting:
    """A lock behind whose release an interrupt comes, before another thread knows of the release."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acquire = self._lock.acquire

    def release(self) -> None:
        self._lock.release()
        raise KeyboardInterrupt

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *args: object) -> None:
        self._lock.__exit__()


def _wait() -> None:
    """As Python's own waits do, which an interrupt turns into a RuntimeError."""
    changed = threading.Condition(_Interrupting())  # type: ignore[arg-type]
    with changed:
        changed.wait(1)


def test_an_interrupt_of_one_of_pythons_waits_is_recognized() -> None:
    with pytest.raises(RuntimeError, match="release unlocked lock") as caught:
        _wait()
    assert isinstance(interrupt_of(caught.value), KeyboardInterrupt)
    assert interrupt_of(KeyboardInterrupt()) is None


def test_an_exception_of_a_signal_handler_is_raised_as_itself_while_a_thread_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes when the thread runs already, and Python then looks in vain for the thread among those that wait to be started."""

    class AlarmError(Exception):
        pass

    def ring(*_: object) -> None:
        raise AlarmError

    def started(run: Callable[..., None], arguments: tuple[object, ...]) -> None:
        begin(run, arguments)
        assert thread._started.wait(10)  # type: ignore[attr-defined]
        while thread in threading._limbo:  # type: ignore[attr-defined]
            time.sleep(0.001)
        signal.raise_signal(signal.SIGUSR1)

    begin = threading._start_new_thread  # type: ignore[attr-defined]
    monkeypatch.setattr(threading, "_start_new_thread", started)
    before = signal.signal(signal.SIGUSR1, ring)
    thread = threading.Thread(target=lambda: None)
    try:
        with pytest.raises(AlarmError):
            start(thread)
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join(10)


def test_an_exception_of_a_signal_handler_in_one_of_pythons_waits_is_recognized() -> None:
    def ring(*_: object) -> None:
        raise ValueError

    before = signal.signal(signal.SIGUSR1, ring)
    lock = threading.Lock()
    try:
        with pytest.raises(RuntimeError) as caught, lock:
            lock.release()
            signal.raise_signal(signal.SIGUSR1)
        assert isinstance(interrupt_of(caught.value), ValueError)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_the_handler_of_an_interrupt_meets_is_no_interrupt() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError, match="only be started once") as caught:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            start(thread)
    assert interrupt_of(caught.value) is None


def test_a_save_raises_an_interrupt_of_a_wait_of_orbax_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax, "write_item", lambda *args: _wait())
    with pytest.raises(KeyboardInterrupt):
        jaxckpt.Checkpoint(a=1).save(tmp_path / "ckpt")
    assert os.listdir(tmp_path) == []
