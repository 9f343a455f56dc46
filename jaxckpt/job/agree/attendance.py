"""This process's part in one meeting: its call and contribution, its deadline, and the reason if it gives up."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from jaxckpt._lib.deadline import CancelledError
from jaxckpt.errors import ProcessError
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.job.protocol import handshake
from jaxckpt.job.protocol.frames import WireError
from jaxckpt.job.protocol.link import Link
from jaxckpt.job.protocol.meeting_messages import Begun, Card
from jaxckpt.job.protocol.messages import Failed
from jaxckpt.job.protocol.parts import Address, Failure, Message
from jaxckpt.job.session import failures
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.session import Session, patience

# Process 0 always leads the meeting, even if another process does the file access.
LEADER = 0
# The key in JAX's key-value store under which the leader publishes its address.
KEY = "jaxckpt/meeting"
LINGER_SECS = 1.0
# After Ctrl-C, telling the others must not take longer than this.
INTERRUPTED_SECS = 5.0
_PAUSE_SECS = 0.05


class Attendance:
    """This process's part in one meeting.

    Attributes:
      call: the call that this process is about to make.
      mine: the contribution of this process.
      me: index of this process.
      others: indices of the other processes.
      error: the error because of which this process cannot take part; None if it can.
      interrupt: the interrupt that came during the meeting; None if there was none.
      failure: the description of `error` or `interrupt` for the others; None if there was neither.
      end: moment (of time.monotonic) when this process stops waiting.
      joined: whether this process is connected to the others, so that they notice when it leaves.
      store: JAX's key-value store.
      coordinator: address of JAX's coordinator, or None.
    """

    def __init__(self, call: Call, contribution: Contribution, error: BaseException | None) -> None:
        """Creates the attendance. The time that the meeting may take begins now.

        Args:
          call: the call that this process is about to make.
          contribution: the contribution of this process.
          error: the error because of which this process cannot take part; None if it can.

        Raises:
          ProcessError: JAX's coordination service is not running.
        """
        from jaxckpt.storage import compat

        self.call = call
        self.mine = contribution
        self.me = jax.process_index()
        self.others = set(range(jax.process_count())) - {self.me}
        self.error = error
        self.interrupt: BaseException | None = None
        self.failure: Failure | None = None if error is None else failures.describe(error, self.me)
        self.end = time.monotonic() + call.timeout
        self.joined = False
        found = compat.coordination()
        if found is None:
            raise ProcessError(
                f"{call}: this job has {jax.process_count()} processes, but JAX's coordination service, through which jaxckpt finds them, "
                "is not running. Call jax.distributed.initialize() at the start of the program.",
                self.others,
            )
        self.store, self.coordinator = found

    def left(self) -> float:
        """Returns the seconds that are left. The time is over if the number is not positive."""
        return self.end - time.monotonic()

    def secs(self) -> float:
        """Returns the seconds that are left, for a wait: always a positive number."""
        return max(0.001, self.left())

    def give_up(self, interrupt: BaseException) -> None:
        """Notes an interrupt. A process that has not joined yet goes on for a moment, to tell the others the reason.

        Args:
          interrupt: the interrupt.
        """
        self.failure = failures.describe(interrupt, self.me)
        self.interrupt = interrupt
        self.end = min(self.end, time.monotonic() + INTERRUPTED_SECS)

    def stop(self) -> None:
        """Raises CancelledError if this process has been interrupted and has joined: the others notice that it leaves."""
        if self.interrupt is not None and self.joined:
            raise CancelledError(f"{self.call} was interrupted")

    def card(self, address: Address | None) -> Card:
        """Returns the message with which this process tells the leader what call it makes.

        Args:
          address: the address at which this process listens, if it is the center; otherwise None.
        """
        call = self.call
        texts = {
            "call": str(call),
            "experimental_io_device": f"process {call.center}",
            "timeout_secs": call.timeout,
            **call.detail_texts(),
        }
        return Card(texts, self.mine.digest, self.mine.host_digest, dict(self.mine.facts), address, self.failure)

    def tell(self, links: Mapping[int, Link], message: Message) -> None:
        """Sends a message to several processes. Processes that have ended are ignored.

        Args:
          links: the connections, by process.
          message: the message.
        """
        for link in links.values():
            with contextlib.suppress(OSError):
                link.send(message, timeout=min(self.call.timeout, LINGER_SECS))

    def tell_failure(self, links: Mapping[int, Link], error: BaseException) -> None:
        """Tells several processes that the call has failed.

        Args:
          links: the connections, by process.
          error: the error. If this process was interrupted, the others are told of the interrupt instead.
        """
        self.tell(links, Failed(failures.describe(self.interrupt or error, self.me)))

    def refusal(self, failure: Failure) -> BaseException:
        """Returns the error to raise when the leader has reported a failure: this process's own error if there is one.

        Args:
          failure: the failure that the leader reported.
        """
        return failures.rebuild(failure) if self.error is None else self.error

    def go_to_center(self, address: Address | None, facts: Mapping[str, Any]) -> Session:
        """Connects to a center that is not the leader, and waits until all peers are connected to it.

        Args:
          address: the address at which the center listens.
          facts: the center's facts for every process.

        Returns:
          The session of the call.

        Raises:
          ProcessError: the center cannot be reached, or a process has failed.
        """
        center = self.call.center
        if address is None:
            raise ProcessError(f"Process {center} did not say where it listens, in {self.call}.", (center,))
        while True:
            try:
                link = handshake.dial(address, self.me, center, self.end, self.stop)
                self._await_beginning(link)
                return Peer(self.me, link, facts, self.call.timeout, str(self.call))
            except ProcessError:
                raise
            except OSError as error:
                # Many strangers may have made the listener close this connection: try again. But if the center does not listen at the
                # port any more, it is gone.
                if self.left() > 0.1 and isinstance(error, WireError | ConnectionResetError):
                    time.sleep(_PAUSE_SECS)
                    continue
                raise ProcessError(
                    f"Process {center}, which does the file access of {self.call}, cannot be reached at "
                    f"{address.host}:{address.port}: {error}. If its host has several networks, set the environment variable "
                    f"{handshake.BIND_VARIABLE} there.",
                    (center,),
                ) from error

    def _await_beginning(self, link: Link) -> None:
        try:
            longest = self.secs() + patience(self.call.timeout)
            message = link.receive(Begun, Failed, timeout=longest, stop=self.stop)
            if isinstance(message, Failed):
                raise self.refusal(message.failure)
        except BaseException:
            link.close()
            raise
