"""Threads that give way have a lower priority than the program, for a limited time, and leave its own threads alone."""

import errno
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.giving_way import GivingWay
from jaxckpt._lib.threads import Threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux each thread has a priority of its own")

_SECS = 30.0


def nice_of(thread: int) -> int:
    """Returns the nice value of a thread of this process, by its native id."""
    return int(Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[16])


def lowered() -> int:
    return min(19, nice_of(threading.get_native_id()) + 10)


def run(giving_way: GivingWay | None, work: Callable[[], None], count: int = 2) -> None:
    threads = Threads(Deadline(_SECS, "the test"), "test", giving_way)
    threads.at_least(count, work)
    threads.join()


def test_only_these_threads_give_way() -> None:
    before = nice_of(threading.get_native_id())
    found: list[int] = []

    run(GivingWay(_SECS), lambda: found.append(nice_of(threading.get_native_id())))
    assert found == [lowered()] * 2

    found.clear()
    run(None, lambda: found.append(nice_of(threading.get_native_id())))
    assert found == [before] * 2
    assert nice_of(threading.get_native_id()) == before


def test_threads_of_these_threads_are_no_lower() -> None:
    found: list[int] = []
    giving_way = GivingWay(_SECS)

    run(giving_way, lambda: run(giving_way, lambda: found.append(nice_of(threading.get_native_id())), 1), 1)

    assert found == [lowered()]


def test_when_the_time_is_over_others_take_over() -> None:
    before = nice_of(threading.get_native_id())
    begun, relieved = threading.Event(), threading.Event()
    found: list[int] = []

    def work() -> None:
        found.append(nice_of(threading.get_native_id()))
        if found[-1] == before:
            relieved.set()
        begun.set()
        assert relieved.wait(_SECS)

    threads = Threads(Deadline(_SECS, "the test"), "test", GivingWay(0.0))
    other = Threads(Deadline(_SECS, "the test"), "other", GivingWay(0.0))
    other.at_least(1, work)
    threads.at_least(1, lambda: None if relieved.wait(_SECS) else pytest.fail("not relieved"))
    assert begun.wait(_SECS)
    assert found == [lowered()]
    threads.join(other)
    other.join()

    assert found == [lowered(), before]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOSYS], ids=["EPERM", "EACCES", "ENOSYS"])
@pytest.mark.parametrize("call", ["getpriority", "setpriority"])
def test_where_it_is_forbidden_the_priority_stays(call: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = nice_of(threading.get_native_id())
    found: list[int] = []

    def refuse(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    run(GivingWay(_SECS), lambda: found.append(nice_of(threading.get_native_id())))

    assert found == [before] * 2


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, who: int, priority: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "setpriority", refuse)
    with pytest.raises(OSError, match="Invalid argument"):
        run(GivingWay(_SECS), lambda: None)
