"""The meeting at the beginning of every call of a job: it makes sure that all processes have come, and that all make the same call.

The leader, process 0, collects the calls of all processes and compares them, before anything is written or changed. Process 0 leads even
if another process does the file access. So the processes find out at once if they disagree about which process that is.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxckpt._lib import user_code
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
# A process takes part in one meeting at a time: otherwise the calls of two threads could be mixed up.
_turns = threading.Lock()
_here = threading.local()


class on_one_process:  # noqa: N801
    """Marks code that runs on one process only (write callbacks): a collective call from it raises instead of deadlocking.

    Not a generator with contextlib.contextmanager: that sets attributes of exceptions, which some exception classes refuse.
    """

    def __enter__(self) -> None:
        _here.alone = True

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        _here.alone = False


def several() -> bool:
    """Returns whether this job has several processes."""
    return int(jax.process_count()) > 1


def meet(call: Call, prepare: Callable[[], Contribution]) -> Session:
    """Waits for the other processes of the job, and makes sure that all of them make the same call.

    The meeting runs on a thread of its own, so an interrupt cannot stop it in the middle of a message: the meeting is given up between
    two messages.

    Args:
      call: the call that this process is about to make.
      prepare: returns the contribution of this process. It runs first, on the caller's thread. If it raises, the others are told of the
        error, and it is raised here.

    Returns:
      The session of the call. The caller closes it.

    Raises:
      ProcessError: a process did not come in time, failed, or makes a different call. Every process raises the same error; if a process
        failed, it is also of the class of that process's error.
      BaseException: the error of `prepare`.
    """
    if not several():
        return Session(jax.process_index(), prepare().facts)
    if getattr(_here, "alone", False):
        raise RuntimeError(
            f"{call} was called from a write callback. Callbacks run on process {jax.process_index()} only, but every process of the job "
            "has to make this call. Make it after the save."
        )
    try:
        contribution = prepare()
    except BaseException as error:
        if not isinstance(error, Exception):
            call = dataclasses.replace(call, timeout=min(call.timeout, INTERRUPTED_SECS))
        # If the others cannot be told, they find out by their timeouts.
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
            # The caller cannot close it: after a second interrupt it has gone on without this thread.
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
        user_code.warn(text, UserWarning)
