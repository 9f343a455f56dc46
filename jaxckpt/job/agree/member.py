"""The side of a member, a process other than process 0, in a meeting: it tells process 0 its call, and receives the verdict."""

import contextlib
import time
from collections.abc import Sequence

from jaxckpt.errors import ProcessError
from jaxckpt.job.agree.attendance import KEY, LEADER, LINGER_SECS, Attendance
from jaxckpt.job.agree.call import named
from jaxckpt.job.protocol import handshake
from jaxckpt.job.protocol.grammar import SAYS, Phase, Side
from jaxckpt.job.protocol.handshake import Listener
from jaxckpt.job.protocol.link import Link, close_gently
from jaxckpt.job.protocol.meeting_messages import Agreed, AskLines, Begun, Lines
from jaxckpt.job.protocol.messages import Failed
from jaxckpt.job.protocol.parts import Message
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.session import Session, patience

_SLICE_SECS = 0.5
_PAUSE_SECS = 0.01
_CONNECT_SECS = 10.0


class Member:
    """The steps of a process that is not process 0: `_reach_leader`, `_hear_verdict`, and then connecting to the center or being it."""

    def __init__(self, attendance: Attendance, listener: Listener | None) -> None:
        """Creates the member. `hold` takes part in the meeting.

        Args:
          attendance: this process's part in the meeting.
          listener: accepts the connections of the other processes, if this one is the center; otherwise None. The caller closes it.
        """
        self._mine = attendance
        self._listener = listener

    def hold(self) -> tuple[Session, Sequence[str]]:
        """Takes part in the meeting. Returns and raises as `Leader.hold`."""
        mine = self._mine
        while True:
            link = self._reach_leader()
            kept = False
            try:
                verdict = self._hear_verdict(link)
                if verdict is None:
                    time.sleep(_PAUSE_SECS)
                    continue
                if isinstance(verdict, Failed):
                    raise mine.refusal(verdict.failure)
                if mine.call.center == LEADER:
                    session = Peer(mine.me, link, verdict.facts, mine.call.timeout, str(mine.call))
                    kept = True
                    return session, verdict.warnings
                link.finish()
                # All processes have come, and they only have to connect now. So a short deadline is enough to notice one that was lost.
                mine.end = min(mine.end, time.monotonic() + min(mine.call.timeout, _CONNECT_SECS))
                try:
                    return self._session_without_leader(verdict), verdict.warnings
                except ProcessError:
                    self._heed(link)
                    raise
            finally:
                if not kept:
                    link.close()

    def _reach_leader(self) -> Link:
        """Finds the address of process 0, and connects. Tries again if the address is that of a meeting that is over."""
        mine = self._mine
        reason: Exception | None = None
        while (left := mine.left()) > _PAUSE_SECS:
            try:
                content = mine.store.blocking_key_value_get_bytes(KEY, max(1, int(1000 * min(left, _SLICE_SECS))))
            except Exception as error:
                # A JaxRuntimeError: the key does not exist yet, or JAX is shutting down.
                if "DEADLINE_EXCEEDED" not in str(error) and "NOT_FOUND" not in str(error):
                    raise ProcessError(
                        f"{mine.call}: JAX's coordination service, which runs on process 0, does not answer: {error}.",
                        (LEADER,),
                    ) from error
                reason = error
                continue
            try:
                return handshake.dial(handshake.from_bytes(content), mine.me, LEADER, mine.end)
            except OSError as error:
                reason = error
                time.sleep(_PAUSE_SECS)
        raise ProcessError(
            f"Process {LEADER} did not join {mine.call} within {mine.call.timeout:g} s (OrbaxSettings.timeout_secs). Every process of "
            "the job has to make the same calls in the same order.",
            (LEADER,),
        ) from reason

    def _hear_verdict(self, link: Link) -> Agreed | Failed | None:
        """Returns the verdict of process 0; None if it closed the connection, because that was the end of an earlier meeting."""
        mine, call = self._mine, self._mine.call
        asked = False
        # Process 0 may have come later than this process, and waits for others. Give it time to report which processes are missing.
        longest = call.timeout + patience(call.timeout)
        try:
            link.send(mine.card(None if self._listener is None else self._listener.address), timeout=call.timeout)
            mine.joined = True
            while True:
                message: Message = link.receive(*SAYS[Phase.MEET][Side.LISTENER], timeout=longest, stop=mine.stop)
                if isinstance(message, Agreed | Failed):
                    return message
                asked = True
                assert isinstance(message, AskLines)
                lines = mine.mine.host_contents() if message.contents else mine.mine.leaves()
                link.send(Lines(tuple(lines)), timeout=call.timeout)
        except TimeoutError as error:
            raise ProcessError(
                f"{call}: process {LEADER} did not answer within {call.timeout:g} s (OrbaxSettings.timeout_secs).",
                (LEADER,),
            ) from error
        except OSError as error:
            if not asked and mine.left() > _PAUSE_SECS:
                return None
            raise ProcessError(
                f"{call}: process {LEADER} ended, or closed the connection: {error}.", (LEADER,)
            ) from error

    def _session_without_leader(self, verdict: Agreed) -> Session:
        if self._listener is None:
            return self._mine.go_to_center(verdict.address, verdict.facts)
        return self._await_peers(self._listener, verdict)

    def _await_peers(self, listener: Listener, verdict: Agreed) -> Session:
        """Waits for all other processes. Called on the center if it is not process 0."""
        mine = self._mine
        links, missing = listener.wait(lambda: mine.left() if mine.interrupt is None else 0.0)
        listener.stop()
        try:
            mine.stop()
            if missing:
                raise ProcessError(
                    f"{named(missing)} joined {mine.call}, and then did not connect to process {mine.me}, which does the file access.",
                    missing,
                )
            mine.tell(links, Begun())
            session = Center(mine.me, links, verdict.facts, mine.call.timeout, str(mine.call))
            listener.hand_out()
            return session
        except BaseException as error:
            mine.tell_failure(links, error)
            close_gently(links.values(), LINGER_SECS)
            raise

    def _heed(self, link: Link) -> None:
        """Raises the failure that process 0 reported after its verdict, if it reported one: the other processes know of it too."""
        with contextlib.suppress(OSError):
            message = link.receive(Failed, timeout=LINGER_SECS)
            raise self._mine.refusal(message.failure)
