"""Ctrl-C at any moment: the work is done, once, and then the interrupt is raised."""

import _thread
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jaxckpt
from jaxckpt._lib.uninterrupted import finish_left, interrupt_of, start, uninterrupted
from jaxckpt.storage import orbax


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
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
        _thread.interrupt_main(signal.SIGUSR1)
        time.sleep(0.05)
        # The interrupt was heard of at once.
        assert len(interrupts) == 1
        done.append(1)

    with pytest.raises(KeyboardInterrupt) as caught:
        uninterrupted(work, interrupts.append)
    assert done == [1]
    assert interrupts == [caught.value]


def test_a_second_interrupt_is_raised_at_once_and_the_work_goes_on() -> None:
    go_on, done = threading.Event(), threading.Event()
    interrupts: list[BaseException] = []

    def work() -> None:
        for _ in range(2):
            _thread.interrupt_main(signal.SIGUSR1)
            time.sleep(0.05)
        assert go_on.wait(30)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(work, interrupts.append)
    assert len(interrupts) == 1
    assert not done.is_set()
    go_on.set()
    assert done.wait(30)


def test_two_interrupts_at_random_moments() -> None:
    """However soon they come, the work is done, once."""
    chance = random.Random(2)
    done: list[int] = []
    inside = False
    let_out = 0

    def interrupt(*_: object) -> None:
        # Only what runs inside: an interrupt of `Thread.start` here would be the test's own.
        if inside:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, interrupt)

    def interrupt_twice(first: float, second: float) -> None:
        for seconds in (first, second):
            time.sleep(seconds)
            _thread.interrupt_main(signal.SIGUSR2)

    try:
        for turn in range(200):
            thread = threading.Thread(
                target=interrupt_twice, args=(chance.uniform(0, 0.001), chance.uniform(0, 0.0003)), daemon=True
            )

            def work(turn: int = turn) -> None:
                time.sleep(0.0005)
                done.append(turn)

            thread.start()
            try:
                try:
                    inside = True
                    uninterrupted(work)
                finally:
                    inside = False
            except KeyboardInterrupt:
                let_out += 1
            inside = False
            thread.join()
        time.sleep(0.2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert let_out > 50
    assert len(done) == len(set(done))
    # An interrupt may come before the first instruction of `uninterrupted`.
    assert len(done) >= 180


def test_interrupts_at_random_moments() -> None:
    chance = random.Random(1)
    done: list[int] = []
    interrupted = unfinished = 0

    def work() -> None:
        time.sleep(0.001)
        done.append(1)

    for turn in range(300):
        timer = threading.Timer(chance.uniform(0, 0.002), _thread.interrupt_main, (signal.SIGUSR1,))
        begun = False
        try:
            timer.start()
            begun = True
            uninterrupted(work)
            timer.join()
        except KeyboardInterrupt:
            interrupted += 1
            timer.join()
        unfinished += len(done) != turn + 1 - unfinished
        assert len(done) == turn + 1 - unfinished
        assert begun or len(done) < turn + 1
    assert interrupted > 200
    # The interrupt came before the end in these.
    assert unfinished < 100


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

    def work() -> None:
        assert gate.wait(60)
        done.set()

    for delay in (0.2, 0.5):
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(work)
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
