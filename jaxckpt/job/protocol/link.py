"""A connection to another process: it sends and receives messages over a socket. Every wait is bounded."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxckpt.job.protocol.frames import MAX_HEAD, FrameReader, ProtocolError, WireError, blocks, encoded
from jaxckpt.job.protocol.messages import Beat
from jaxckpt.job.protocol.parts import Message

_BEAT = encoded(Beat())
# poll() takes an int of milliseconds.
_LONGEST_POLL_SECS = 3600.0
# A wait that can be given up checks this often whether it has been.
_SLICE_SECS = 0.1
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)
Said = TypeVar("Said", bound=Message)
Stop = Callable[[], None]


class _Using:
    """Keeps the descriptor of a link open while a system call uses it. After a close, the number could belong to another file.

    Not a generator with contextlib.contextmanager: a message would take a tenth longer.
    """

    def __init__(self, link: "Link") -> None:
        self._link = link

    def __enter__(self) -> None:
        link = self._link
        with link._state:
            if link._closed:
                raise WireError("the connection was closed on this side")
            link._users += 1

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        link = self._link
        with link._state:
            link._users -= 1
            last = link._closed and link._users == 0
        if last:
            link._socket.close()


class Link:
    """A connection to another process.

    One thread may receive while others send. A thread holds `talking` from sending a request until it has received the answer.

    After an error in one direction, the link refuses to send or receive anything more in that direction. Otherwise the rest of a message,
    or a late answer, could be taken for the next message.

    Attributes:
      process: index of the other process; -1 until the other side has proved which process it is.
      talking: a lock for threads that send a request and receive its answer.
      is_local: whether the other process is on this host, judged by its address. Bytes between hosts have checksums.
    """

    def __init__(self, connection: socket.socket, process: int) -> None:
        """Creates a link.

        Args:
          connection: a connected socket. The link owns it from now on.
          process: index of the process at the other end; -1 if it is not known yet.
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
        # Non-blocking: a timeout of the socket would hold for the sending and the receiving thread alike.
        connection.setblocking(False)
        self._receivable = select.poll()
        self._receivable.register(connection, select.POLLIN)
        self.is_local = _within_a_host(connection)
        # Some kinds of sockets do not have these options.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    # -- sending ------------------------------------------------------------------------------------------------------------------

    def send(
        self, message: Message, arrays: Sequence[np.ndarray] = (), *, timeout: float, stop: Stop | None = None
    ) -> None:
        """Sends a message.

        Args:
          message: the message.
          arrays: contiguous arrays whose bytes follow the message; only for a message with bytes.
          timeout: most seconds without progress. (A slow network may need longer than that for many megabytes.)
          stop: called several times a second while this waits. If it raises, the wait ends with that error.

        Raises:
          TimeoutError: the other side does not take the bytes.
          OSError: the connection has ended.
          TypeError: the message does not fit into JSON. Nothing has been sent.
          ValueError: the message does not fit into JSON. Nothing has been sent.
        """
        checked = not self.is_local
        total = sum(array.nbytes for array in arrays) if message.with_bytes else None
        head = encoded(message, total, checked=checked)
        with self._sending, _Using(self):
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
        """Sends a heartbeat. Does nothing while another thread sends a message, or if the other side does not take bytes.

        Raises:
          OSError: the connection has ended.
        """
        if not self._sending.acquire(blocking=False):
            return
        try:
            with _Using(self):
                if self._unsendable is not None:
                    return
                try:
                    sent = self._socket.send(_BEAT)
                except BlockingIOError:
                    return
                # Not expected: systems send so few bytes completely or not at all. A part of a beat would corrupt the stream.
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
          *expected: classes of messages that are allowed now.
          timeout: most seconds without a byte from the other side.
          end: moment (of time.monotonic) at which to give up in any case.
          into: contiguous arrays that receive the bytes of the message. Their total size must be that of the bytes. None if the message
            must not have bytes.
          max_head: most bytes of the message, without the bytes of arrays.
          stop: called at the beginning, and several times a second while this waits. If it raises, the wait ends with that error.

        Raises:
          ProtocolError: the other side sent something else. The message names the process and what it sent.
          WireError: the connection has ended.
          TimeoutError: the message did not come in time.
        """
        with _Using(self):
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
                        raise ProtocolError(f"{type(message).__name__} instead of {names}")
            except ProtocolError as error:
                who = "a stranger" if self.process < 0 else f"process {self.process}"
                self._unreceivable = named = ProtocolError(f"{who} sent {error}")
                raise named from None
            except BaseException as error:
                self._unreceivable = error
                raise

    def _next(self, timeout: float, end: float | None, stop: Stop | None) -> Message:
        reader = self._reader
        # Most messages are waited for, so the first step is to wait.
        is_waited_for = False
        while (message := reader.message()) is None:
            if not is_waited_for:
                last = time.monotonic() + timeout
                self._await(self._receivable, last if end is None else min(last, end), stop)
                is_waited_for = True
            try:
                received = self._socket.recv_into(reader.room())
            except BlockingIOError:
                is_waited_for = False
                continue
            if received == 0:
                raise WireError("the connection was closed by the other side")
            reader.received(received)
        return message

    def _wait(self, event: int, last: float, stop: Stop | None) -> None:
        """Waits until the socket can send or receive, at most until the moment `last` (of time.monotonic)."""
        poll = select.poll()
        poll.register(self._socket, event)
        self._await(poll, last, stop)

    @staticmethod
    def _await(poll: select.poll, last: float, stop: Stop | None) -> None:
        longest = _LONGEST_POLL_SECS if stop is None else _SLICE_SECS
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
        """Returns whether the other side is still connected, as far as this process knows."""
        return not self._ready(_GONE, closed=True)

    def takes_at_once(self) -> bool:
        """Returns whether sending a small message succeeds or fails at once, without waiting."""
        return self._ready(select.POLLOUT, closed=True)

    def _ready(self, event: int, *, closed: bool) -> bool:
        try:
            with _Using(self):
                poll = select.poll()
                poll.register(self._socket, event)
                return bool(poll.poll(0))
        except OSError:
            return closed

    def finish(self) -> None:
        """Tells the other side that nothing more will be sent."""
        with contextlib.suppress(OSError), _Using(self):
            self._socket.shutdown(socket.SHUT_WR)

    def drain(self, end: float) -> None:
        """Reads and drops incoming bytes until the other side has closed too, at most until the moment `end` (of time.monotonic).

        If this side closed earlier, the other side could lose messages that it has not read yet.
        """
        with contextlib.suppress(OSError), _Using(self):
            scratch = memoryview(bytearray(1 << 16))
            while time.monotonic() < end:
                self._wait(select.POLLIN, end, None)
                if not self._socket.recv_into(scratch):
                    return

    def close(self) -> None:
        """Closes the connection, and wakes threads that wait for it. Idempotent."""
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
    """Closes connections so that the other sides can still read the last messages. Waits for them for at most `seconds`."""
    links = list(links)
    for link in links:
        link.finish()
    end = time.monotonic() + seconds
    for link in links:
        link.drain(end)
        link.close()


def _again(error: BaseException) -> OSError:
    """Returns the error to raise in a direction of a link that `error` has ended before."""
    if isinstance(error, TimeoutError):
        return TimeoutError(*error.args)
    return WireError(f"an earlier message was interrupted ({type(error).__name__}: {error})")


def _within_a_host(connection: socket.socket) -> bool:
    try:
        return bool(connection.getsockname()[0] == connection.getpeername()[0])
    except (OSError, IndexError):
        # Not an internet socket, so it cannot leave the host.
        return True
