"""One meeting of a process at a time, and an interrupt while it waits for its turn: the next call gets it."""

import signal
import threading
import time

import pytest

from jaxckpt.job.agree import attendance, meeting
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.storage import compat


@pytest.fixture
def _coordinated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a job of several processes, whose coordination service is never asked here."""
    monkeypatch.setattr(compat, "coordination", lambda: (None, None))
    monkeypatch.setattr(attendance, "INTERRUPTED_SECS", 0.5)


def _meet(secs: float) -> None:
    meeting._meet(Call("save", "ckpt", 0, secs), Contribution(), None)


def _interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.usefixtures("_coordinated")
def test_a_turn_that_does_not_come() -> None:
    with meeting._turns, pytest.raises(TimeoutError, match="another call of this process still waits"):
        _meet(0.2)
    assert not meeting._turns.locked()


@pytest.mark.usefixtures("_coordinated")
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_while_it_waits_for_its_turn(times: int) -> None:
    began = time.monotonic()
    with meeting._turns:
        for number in range(times):
            threading.Timer(0.2 * (number + 1), _interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            _meet(60)
    assert time.monotonic() - began < 30
    # A second one leaves the thread behind that waits for the turn: it does not keep it.
    end = time.monotonic() + 20
    while any("uninterrupted" in each.name for each in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert meeting._turns.acquire(timeout=1)
    meeting._turns.release()


@pytest.mark.usefixtures("_coordinated")
def test_an_interrupt_in_a_meeting_gives_the_turn_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(mine: attendance.Attendance) -> None:
        _interrupt()
        end = time.monotonic() + 20
        while mine.interrupt is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        raise OSError("the peer did not come")

    monkeypatch.setattr(meeting, "_hold", hold)
    with pytest.raises(KeyboardInterrupt):
        _meet(60)
    assert not meeting._turns.locked()


def test_a_mark_of_code_that_runs_on_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "several", lambda: True)
    call = Call("save", "ckpt", 0, 1.0)
    with meeting.on_one_process(), pytest.raises(RuntimeError, match="from a write callback"):
        meeting.meet(call, Contribution)
