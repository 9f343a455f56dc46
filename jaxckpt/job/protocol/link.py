"""A connection to another process: messages over a socket. Every wait is bounded."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from jaxckpt.job.protocol.frames import MAX_HEAD, FrameReader, ProtocolError, WireError, blocks, encoded
from jaxckpt.job.protocol.messages import Beat
from jaxckpt.job.protocol.parts import Message

_BEAT = encoded(Beat())
# poll() takes an int of milliseconds.
_LONGEST_POLL_SECS = 3600.0
# How often a wait that can be given up looks whether it has been.
_SLICE_SECS = 0.1
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)
Said = TypeVar("Said", bound=Message)
Stop = Callable[[], None]


class Link:
    """A connection to another process.

    One thread may receive while others send; a request with its answer holds `talking`. After an error in one direction nothing more
    goes in that direction: the rest of a message, or a late answer, must not be taken for the next one.

    Attributes:
      process: index of the other process; -1 as long as it is a stranger.
      talking: lock.
      is_local: whether the other process is, by its address, on this host. Bytes between hosts are checksummed.
    """

    def __init__(self, connection: socket.socket, process: int) -> None:
        """Makes a link.

        Args:
          connection: a connected socket, which belongs to the link from now on.
          process: index of the process at the other end; -1 for a stranger.
        """
        self.process = process
        self.talking = threading.Lock()
        self._socket = connection
        self._sending = threading.Lock()
        self._unsendable: BaseException | None = None
        self._unreceivable: BaseException | None = None
        self._reader = FrameReader()
        self._state = threading.Lock()
        self._users = 0
        self._closed = False
        # Its own timeout would be shared by the thread that sends and the one that receives.
        connection.setblocking(False)
        self.is_local = _within_a_host(connection)
        # Not on every kind of socket.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        """Keeps the descriptor from being closed, and given to another file, while a system call uses it."""
        with self._state:
            if self._closed:
                raise WireError("the connection was closed on this side")
            self._users += 1
        try:
            yield
        finally:
            with self._state:
                self._users -= 1
                last = self._closed and self._users == 0
            if last:
                self._socket.close()

    # -- sending ------------------------------------------------------------------------------------------------------------------

    def send(
        self, message: Message, arrays: Sequence[np.ndarray] = (), *, timeout: float, stop: Stop | None = None
    ) -> None:
        """Sends a message.

        Args:
          message: what to say.
          arrays: contiguous arrays, the bytes of a message that has some.
          timeout: most seconds without progress: a slow network may need long for many megabytes.
          stop: is called several times a second while this waits; what it raises ends the wait.

        Raises:
          OSError: the connection has ended; TimeoutError if the other side does not take the bytes.
          TypeError, ValueError: the message does not fit into JSON; nothing has been sent.
        """
        checked = not self.is_local
        total = sum(array.nbytes for array in arrays) if message.with_bytes else None
        head = encoded(message, total, checked=checked)
        with self._sending, self._using():
            if self._unsendable is not None:
                raise _again(self._unsendable)
            try:
                self._send_all(memoryview(head), timeout, stop)
                if message.with_bytes:
                    for block in blocks(arrays, checked=checked):
                        self._send_all(block, timeout, stop)
            except BaseException as error:
                self._unsendable = error
                raise

    def _send_all(self, view: memoryview, timeout: float, stop: Stop | None) -> None:
        while view:
            sent = 0
            with contextlib.suppress(BlockingIOError):
                sent = self._socket.send(view)
            if not sent:
                self._wait(select.POLLOUT, time.monotonic() + timeout, stop)
            view = view[sent:]

    def beat(self) -> None:
        """Says that this process is alive, unless a message is on its way, which says so too, or the other side takes nothing.

        Raises:
          OSError: the connection has ended.
        """
        if not self._sending.acquire(blocking=False):
            return
        try:
            with self._using():
                if self._unsendable is not None:
                    return
                try:
                    sent = self._socket.send(_BEAT)
                except BlockingIOError:
                    return
                # Cannot be, as systems are, and would tear the stream.
                if sent < len(_BEAT):
                    self._unsendable = WireError("a beat did not fit")
        finally:
            self._sending.release()

    # -- receiving ----------------------------------------------------------------------------------------------------------------

    def receive(
        self,
        *expected: type[Said],
        timeout: float,
        end: float | None = None,
        into: Sequence[np.ndarray] | None = None,
        max_head: int = MAX_HEAD,
        stop: Stop | None = None,
    ) -> Said:
        """Waits for the next message that is not a beat.

        Args:
          *expected: classes of messages that make sense now.
          timeout: most seconds without a sign of life.
          end: moment (of time.monotonic) at which to give up in any case.
          into: contiguous arrays that the bytes of the message are put into; they must be as large as those are together. None if
            the message may have no bytes.
          max_head: most bytes of the message, apart from those of arrays.
          stop: is called at the beginning, and several times a second while this waits; what it raises ends the wait.

        Raises:
          ProtocolError: what came is not a message, or not one of these; names the process and the message.
          WireError: the connection has ended.
          TimeoutError: nothing came.
        """
        with self._using():
            if self._unreceivable is not None:
                raise _again(self._unreceivable)
            try:
                if stop is not None:
                    stop()
                while True:
                    self._reader.start(into, max_head=max_head)
                    message = self._next(timeout, end, stop)
                    if isinstance(message, expected):
                        return message
                    if not isinstance(message, Beat):
                        names = " or ".join(each.__name__ for each in expected)
                        raise ProtocolError(f"{type(message).__name__}, where {names} makes sense")
            except ProtocolError as error:
                who = "a stranger" if self.process < 0 else f"process {self.process}"
                self._unreceivable = named = ProtocolError(f"{who} sent {error}")
                raise named from None
            except BaseException as error:
                self._unreceivable = error
                raise

    def _next(self, timeout: float, end: float | None, stop: Stop | None) -> Message:
        reader = self._reader
        while (message := reader.message()) is None:
            try:
                received = self._socket.recv_into(reader.room())
            except BlockingIOError:
                last = time.monotonic() + timeout
                self._wait(select.POLLIN, last if end is None else min(last, end), stop)
                continue
            if received == 0:
                raise WireError("the connection was closed by the other side")
            reader.received(received)
        return message

    def _wait(self, event: int, last: float, stop: Stop | None) -> None:
        """Waits for the socket, at most until the moment `last` (of time.monotonic)."""
        longest = _LONGEST_POLL_SECS if stop is None else _SLICE_SECS
        poll = select.poll()
        poll.register(self._socket, event)
        while True:
            if stop is not None:
                stop()
            left = last - time.monotonic()
            if poll.poll(1000 * min(max(0.0, left), longest)):
                return
            if left <= 0:
                raise TimeoutError("timed out")

    # -- the connection -----------------------------------------------------------------------------------------------------------

    def is_open(self) -> bool:
        """Whether, as far as this process can know, the other side is still there."""
        return not self._ready(_GONE, closed=True)

    def takes_at_once(self) -> bool:
        """Whether a small message can be sent, or fails, without waiting."""
        return self._ready(select.POLLOUT, closed=True)

    def _ready(self, event: int, *, closed: bool) -> bool:
        try:
            with self._using():
                poll = select.poll()
                poll.register(self._socket, event)
                return bool(poll.poll(0))
        except OSError:
            return closed

    def finish(self) -> None:
        """Says that nothing more will be sent."""
        with contextlib.suppress(OSError), self._using():
            self._socket.shutdown(socket.SHUT_WR)

    def drain(self, end: float) -> None:
        """Reads what is still coming, until the other side has closed too, at most until the moment `end` (of time.monotonic).

        To close before would destroy what the other side has not read yet.
        """
        with contextlib.suppress(OSError), self._using():
            scratch = memoryview(bytearray(1 << 16))
            while time.monotonic() < end:
                self._wait(select.POLLIN, end, None)
                if not self._socket.recv_into(scratch):
                    return

    def close(self) -> None:
        """Closes the connection; threads that wait in it are woken. Idempotent."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            idle = self._users == 0
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if idle:
            self._socket.close()


def close_gently(links: Iterable[Link], seconds: float) -> None:
    """Closes connections, so that the other sides can still read what was sent; waits for them for at most `seconds`."""
    links = list(links)
    for link in links:
        link.finish()
    end = time.monotonic() + seconds
    for link in links:
        link.drain(end)
        link.close()


def _again(error: BaseException) -> OSError:
    """Returns what to raise where an error has ended a direction of a link before."""
    if isinstance(error, TimeoutError):
        return TimeoutError(*error.args)
    return WireError(f"a message before was interrupted ({type(error).__name__}: {error})")


def _within_a_host(connection: socket.socket) -> bool:
    try:
        return bool(connection.getsockname()[0] == connection.getpeername()[0])
    # Not of the internet: it cannot leave the host.
    except (OSError, IndexError):
        return True
