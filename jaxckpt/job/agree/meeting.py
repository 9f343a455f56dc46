"""The beginning of every call that the processes of a job make together: all are there, and all mean the same.

Process 0 collects what each process is about to do and compares. Nothing has been written or changed by then. It is always process 0,
also where another one does the file access: so processes that disagree about *that* find out at once.
"""

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxckpt._lib.deadline import CancelledError
from jaxckpt._lib.uninterrupted import uninterrupted
from jaxckpt.job.agree.attendance import INTERRUPTED_SECS, LEADER, Attendance
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.job.agree.leader import Leader
from jaxckpt.job.agree.member import Member
from jaxckpt.job.protocol import handshake
from jaxckpt.job.protocol.handshake import Listener
from jaxckpt.job.session.session import Session

_SLICE_SECS = 0.1
# One meeting at a time: calls of several threads must not be taken for one another.
_turns = threading.Lock()
_here = threading.local()


class on_one_process:  # noqa: N801
    """Marks code that runs on one process only (write callbacks): a collective call from it raises instead of deadlocking.

    Not a generator with contextlib.contextmanager: that sets attributes of exceptions, which some refuse.
    """

    def __enter__(self) -> None:
        _here.alone = True

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        _here.alone = False


def several() -> bool:
    """Whether this job has several processes."""
    return int(jax.process_count()) > 1


def meet(call: Call, prepare: Callable[[], Contribution]) -> Session:
    """Waits for the other processes of the job and makes sure that all mean the same.

    An interrupt never comes in the midst of a message: the meeting is held on a thread of its own, and given up.

    Args:
      call: what this process is about to do.
      prepare: what it does before; it runs first, on the caller's thread, and what it raises is told to the others, and raised.

    Returns:
      The session of the call. The caller closes it.

    Raises:
      ProcessError: a process did not come in time, failed, or means something else; the same on every process, of the kind of the
        error of the process that failed.
      BaseException: what `prepare` raised.
    """
    if not several():
        return Session(jax.process_index(), prepare().facts)
    if getattr(_here, "alone", False):
        raise RuntimeError(
            f"{call} was called from a write callback. Callbacks run on process {jax.process_index()} only, and this call has to be made "
            "by every process of the job. Make it after the save."
        )
    try:
        contribution = prepare()
    except BaseException as error:
        if not isinstance(error, Exception):
            call = dataclasses.replace(call, timeout=min(call.timeout, INTERRUPTED_SECS))
        # The others will have to find out by themselves.
        with contextlib.suppress(Exception):
            _meet(call, Contribution(), error)
        raise
    return _meet(call, contribution, None)


def _meet(call: Call, contribution: Contribution, error: BaseException | None) -> Session:
    attendance = Attendance(call, contribution, error)
    met: list[Session] = []

    def hold() -> None:
        session, warned = _in_turn(attendance)
        met.append(session)
        if attendance.interrupt is not None:
            # After a second interrupt nobody would close it.
            session.close()
            raise CancelledError(str(call))
        _warn(warned)

    try:
        uninterrupted(hold, attendance.give_up)
    except BaseException as raised:
        for session in met:
            session.close()
        if attendance.interrupt is not None and isinstance(raised, Exception):
            raise attendance.interrupt from None
        raise
    return met[0]


def _in_turn(attendance: Attendance) -> tuple[Session, Sequence[str]]:
    call = attendance.call
    while not _turns.acquire(timeout=min(_SLICE_SECS, attendance.secs())):
        if attendance.left() <= 0:
            raise TimeoutError(
                f"{call}: another call of this process still waits for other processes after {call.timeout:g} s "
                "(OrbaxSettings.timeout_secs)."
            )
    try:
        return _hold(attendance)
    finally:
        _turns.release()


def _hold(attendance: Attendance) -> tuple[Session, Sequence[str]]:
    listener: Listener | None = None
    if attendance.me in (LEADER, attendance.call.center):
        listener = Listener(handshake.interface_towards(attendance.coordinator), attendance.others)
    try:
        if attendance.me == LEADER:
            assert listener is not None
            return Leader(attendance, listener).hold()
        return Member(attendance, listener).hold()
    finally:
        if listener is not None:
            listener.close()


def _warn(texts: Sequence[str]) -> None:
    for text in texts:
        warnings.warn(text, UserWarning, stacklevel=2)
