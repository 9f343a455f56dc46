"""The side of process 0, the leader, in a meeting: it receives the call of each process, compares the calls, and tells the verdict."""

from collections.abc import Iterable, Mapping, Sequence

from jaxckpt.errors import ProcessError
from jaxckpt.job.agree.attendance import KEY, LEADER, LINGER_SECS, Attendance
from jaxckpt.job.agree.call import named
from jaxckpt.job.agree.comparison import compare_calls, compare_host_leaves, compare_trees
from jaxckpt.job.protocol import handshake
from jaxckpt.job.protocol.handshake import Listener
from jaxckpt.job.protocol.link import Link, close_gently
from jaxckpt.job.protocol.meeting_messages import Agreed, AskLines, Card, Lines
from jaxckpt.job.protocol.messages import Failed
from jaxckpt.job.protocol.parts import Failure
from jaxckpt.job.session import failures
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.session import Session


class Leader:
    """The steps of process 0: `_gather`, `_read_cards`, `_verdict`, and telling the verdict."""

    def __init__(self, attendance: Attendance, listener: Listener) -> None:
        """Creates the leader. `hold` holds the meeting.

        Args:
          attendance: this process's part in the meeting.
          listener: accepts the connections of the other processes. The caller closes it.
        """
        self._mine = attendance
        self._listener = listener

    def hold(self) -> tuple[Session, Sequence[str]]:
        """Holds the meeting.

        Returns:
          The session of the call, and warnings to issue.

        Raises:
          BaseException: this process's own error, or a ProcessError.
        """
        mine = self._mine
        links: dict[int, Link] = {}
        kept = False
        try:
            links, missing = self._gather()
            verdict = self._verdict(self._read_cards(links), links, missing)
            if mine.interrupt is not None and mine.failure is not None:
                verdict = Failed(mine.failure)
            mine.joined = True
            mine.tell(links, verdict)
            if isinstance(verdict, Failed):
                raise mine.refusal(verdict.failure)
            if mine.call.center == LEADER:
                session = Center(mine.me, links, verdict.facts, mine.call.timeout, str(mine.call))
                self._listener.hand_out()
                kept = True
                return session, verdict.warnings
        except BaseException as error:
            # Without this message, the others would notice that the meeting has failed, but not why.
            mine.tell_failure(links, error)
            raise
        finally:
            if not kept:
                close_gently(links.values(), LINGER_SECS)
        return mine.go_to_center(verdict.address, verdict.facts), verdict.warnings

    def _gather(self) -> tuple[dict[int, Link], set[int]]:
        """Waits for the other processes. Returns their connections, and the processes that are missing."""
        store = self._mine.store
        try:
            store.key_value_set_bytes(KEY, handshake.to_bytes(self._listener.address), True)
            return self._listener.wait(self._mine.left)
        finally:
            # This must come before the verdict: a process that begins the next call must not find the address of this meeting.
            store.key_value_delete(KEY)
            self._listener.stop()

    def _read_cards(self, links: Mapping[int, Link]) -> dict[int, Card]:
        """Receives the card of each process."""
        mine = self._mine
        cards: dict[int, Card] = {}
        for process, link in links.items():
            try:
                cards[process] = link.receive(Card, timeout=mine.secs())
            except TimeoutError:
                cards[process] = self._lost(process, f"connected, and then did not send its call, in {mine.call}")
            except OSError as error:
                cards[process] = self._lost(process, f"ended, or closed the connection, as {mine.call} began: {error}")
        cards[mine.me] = mine.card(None)
        return cards

    def _lost(self, process: int, how: str) -> Card:
        failure = failures.describe(ProcessError(f"Process {process} {how}.", (process,)), self._mine.me)
        return Card({}, "", "", {}, None, failure)

    def _verdict(self, cards: Mapping[int, Card], links: Mapping[int, Link], missing: set[int]) -> Agreed | Failed:
        call, me = self._mine.call, self._mine.me
        failed = [failure for process in sorted(cards) if (failure := cards[process].failure) is not None]
        # If one process has failed and another is missing, the failure may be the reason: report the failure.
        if failed:
            return Failed(failed[0])
        if missing:
            text = (
                f"{named(missing)} did not join {call} within {call.timeout:g} s (OrbaxSettings.timeout_secs). Every process of the job "
                "has to make the same calls in the same order."
            )
            return Failed(self._refusal(text, missing))

        def ask(process: int, contents: bool) -> Sequence[tuple[str, str]]:
            return self._ask(links[process], contents)

        try:
            compare_calls(call, cards, me)
            compare_trees(call, self._mine.mine, cards, me, ask)
            warned = compare_host_leaves(call, self._mine.mine, cards, me, ask)
        except ProcessError as error:
            return Failed(failures.describe(error, me))
        # A process may have been interrupted and have left. Without this check, a center that is not process 0 would wait for it.
        lost = {process for process, link in links.items() if not link.is_open()}
        if lost:
            return Failed(self._refusal(f"{named(lost)} ended, or closed the connection, as {call} began.", lost))
        center = cards[call.center]
        return Agreed(center.facts, center.address, tuple(warned))

    def _refusal(self, text: str, processes: Iterable[int]) -> Failure:
        return failures.describe(ProcessError(text, processes), self._mine.me)

    def _ask(self, link: Link, contents: bool) -> Sequence[tuple[str, str]]:
        call = self._mine.call
        try:
            link.send(AskLines(contents), timeout=call.timeout)
            return link.receive(Lines, timeout=call.timeout, stop=self._mine.stop).lines
        except OSError as error:
            raise ProcessError(
                f"Process {link.process} ended, or did not answer within {call.timeout:g} s (OrbaxSettings.timeout_secs), as "
                f"{call} began: {error}.",
                (link.process,),
            ) from error
