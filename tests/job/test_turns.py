"""One meeting of a process at a time, and an interrupt while it waits for its turn: the next call gets it."""

import threading

import pytest
from waiting import interrupt, wait_until

from jaxckpt.job.agree import attendance, meeting
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.storage import compat


@pytest.fixture
def _coordinated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a job of several processes, whose coordination service is never asked here."""
    monkeypatch.setattr(compat, "coordination", lambda: (None, None))


def _meet(secs: float) -> None:
    meeting._meet(Call("save", "ckpt", 0, secs), Contribution(), None)


@pytest.mark.usefixtures("_coordinated")
def test_a_turn_that_does_not_come() -> None:
    with meeting._turns, pytest.raises(TimeoutError, match="another call of this process still waits"):
        _meet(0.2)
    assert not meeting._turns.locked()


@pytest.mark.usefixtures("_coordinated")
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_while_it_waits_for_its_turn(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # One interrupt ends the wait after a moment; where there are two, the second one has to.
    monkeypatch.setattr(attendance, "INTERRUPTED_SECS", 0.5 if times == 1 else 1000.0)
    before = set(threading.enumerate())
    noted: list[BaseException] = []
    give_up = attendance.Attendance.give_up

    def note(self: attendance.Attendance, error: BaseException) -> None:
        give_up(self, error)
        noted.append(error)

    def waiting() -> bool:
        return any("uninterrupted" in each.name for each in set(threading.enumerate()) - before)

    def press() -> None:
        wait_until(waiting)
        interrupt()
        if times == 2:
            wait_until(lambda: noted)
            interrupt()

    monkeypatch.setattr(attendance.Attendance, "give_up", note)
    pressing = threading.Thread(target=press)
    with meeting._turns:
        pressing.start()
        with pytest.raises(KeyboardInterrupt):
            _meet(1000)
    pressing.join()
    # A second one leaves the thread behind that waits for the turn: it does not keep it.
    wait_until(lambda: not waiting())
    assert meeting._turns.acquire(timeout=1)
    meeting._turns.release()


@pytest.mark.usefixtures("_coordinated")
def test_an_interrupt_in_a_meeting_gives_the_turn_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(mine: attendance.Attendance) -> None:
        interrupt()
        wait_until(lambda: mine.interrupt is not None)
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
