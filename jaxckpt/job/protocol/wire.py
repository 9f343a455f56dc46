"""Messages over a socket: a JSON header and, if it says so, raw bytes. No pickle; sizes are capped; every wait is bounded.

Between hosts the bytes are followed by their crc32c: TCP's own checksum has 16 bits, and misses what happens in the memory of network
devices. Within a host there is nothing that could lose them, and checksums would be a tenth of the work.
"""

import contextlib
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Header = dict[str, Any]
_LENGTH = struct.Struct("!I")
_CHECKSUM = struct.Struct("!I")
_BEAT = _LENGTH.pack(12) + b'{"t":"beat"}'
MAX_HEADER = 64 << 20
MAX_PAYLOAD = 64 << 20
_LONGEST_POLL_SECS = 3600.0  # What poll() takes is an int of milliseconds.
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)
_BLOCK = 1 << 20  # is checksummed while it is in the processor's cache
_SMALL = 32 << 10  # below that, copying is cheaper than a call of its own
_AHEAD = 4 << 10  # is received at once where less is needed: a message with its length
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class WireError(ConnectionError):
    """What arrived is not what the protocol says, or the connection has ended."""


class Message(NamedTuple):
    """One message.

    Attributes:
      header: a JSON object; "t" says what the message is.
      payload: the bytes that followed, a flat uint8 array; None if there were none, or if they went where they should.
    """

    header: Header
    payload: np.ndarray | None


class Link:
    """A connection to another process.

    One thread may receive while others send; a request with its answer holds `talking`. After an error in one direction nothing more
    goes in that direction: the rest of a message, or a late answer, must not be taken for the next one.

    Attributes:
      process: index of the other process.
      talking: lock.
      is_local: whether the other process is, by its address, on this host.
    """

    def __init__(self, connection: socket.socket, process: int) -> None:
        """Args: a connected socket, which belongs to the link from now on; the process at the other end."""
        self.process = process
        self.talking = threading.Lock()
        self._socket = connection
        self._sending = threading.Lock()
        self._unsendable: BaseException | None = None
        self._unreceivable: BaseException | None = None
        self._buffer = memoryview(bytearray(_AHEAD))
        self._ahead = self._buffer[:0]  # what has been received already
        self._state = threading.Lock()
        self._users = 0
        self._closed = False
        # Its own timeout would be shared by the thread that sends and the one that receives.
        connection.setblocking(False)
        self.is_local = _within_a_host(connection)
        with contextlib.suppress(OSError):  # Not on every kind of socket.
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

    def send(self, header: Header, payload: Any = None, *, timeout: float) -> None:
        """Sends a message.

        Args:
          header: a JSON object.
          payload: contiguous arrays whose bytes follow, one or a list of them.
          timeout: most seconds without progress.

        Raises:
          OSError: the connection has ended; TimeoutError if the other side does not take the bytes.
          TypeError, ValueError: the header does not fit into JSON; nothing has been sent.
        """
        parts = [] if payload is None else payload if isinstance(payload, list) else [payload]
        total = sum(part.nbytes for part in parts)
        if parts:
            header = {**header, "n": total, "sum": not self.is_local}
        content = _encode(header).encode()
        with self._sending, self._using():
            if self._unsendable is not None:
                raise _again(self._unsendable)
            try:
                self._send_all(memoryview(_LENGTH.pack(len(content)) + content), timeout)
                if parts:
                    self._send_parts(parts, timeout)
            except BaseException as error:
                self._unsendable = error
                raise

    def _send_parts(self, parts: Sequence[np.ndarray], timeout: float) -> None:
        checksum = 0
        for block in _blocks(parts):
            if not self.is_local:
                checksum = _extended(checksum, block)
            self._send_all(memoryview(block), timeout)
        if not self.is_local:
            self._send_all(memoryview(_CHECKSUM.pack(checksum)), timeout)

    def _send_all(self, view: memoryview, timeout: float) -> None:
        while view:
            sent = 0
            with contextlib.suppress(BlockingIOError):
                sent = self._socket.send(view)
            if not sent:
                # The time is that without progress: a slow network may need long for many megabytes.
                self._wait(select.POLLOUT, timeout)
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
                if sent < len(_BEAT):  # Cannot be, as systems are, and would tear the stream.
                    self._unsendable = WireError("a beat did not fit")
        finally:
            self._sending.release()

    def receive(
        self,
        timeout: float,
        *,
        max_payload: int = MAX_PAYLOAD,
        max_header: int = MAX_HEADER,
        end: float | None = None,
        into: Sequence[np.ndarray] | None = None,
    ) -> Message:
        """Waits for the next message that is not a beat.

        Args:
          timeout: most seconds without a sign of life.
          max_payload, max_header: larger ones are an error.
          end: moment (of time.monotonic) at which to give up in any case.
          into: contiguous arrays that the payload, if there is one, is put into; it must be as large as they are together.

        Raises:
          WireError: the connection has ended, or what came is no message.
          TimeoutError: nothing came.
        """
        with self._using():
            if self._unreceivable is not None:
                raise _again(self._unreceivable)
            try:
                while True:
                    message = self._receive(timeout, max_payload, max_header, end, into)
                    if message.header.get("t") != "beat":
                        return message
            except BaseException as error:
                self._unreceivable = error
                raise

    def _receive(
        self, timeout: float, max_payload: int, max_header: int, end: float | None, into: Sequence[np.ndarray] | None
    ) -> Message:
        prefix = bytearray(_LENGTH.size)
        self._fill(memoryview(prefix), timeout, end)
        (size,) = _LENGTH.unpack(prefix)
        if size > max_header:
            raise WireError(f"a header of {size} bytes, more than the {max_header} that are allowed")
        content = bytearray(size)
        self._fill(memoryview(content), timeout, end)
        try:
            header = _decode(content.decode())
        except (ValueError, RecursionError) as error:
            raise WireError(f"what arrived is no message ({error})") from None
        if not isinstance(header, dict):
            raise WireError("what arrived is no message (not an object)")
        if "n" not in header:
            return Message(header, None)
        count = header["n"]
        if into is not None:
            expected = sum(target.nbytes for target in into)
            if type(count) is not int or count != expected:
                raise WireError(f"a payload of {str(count)[:40]} bytes instead of {expected}")
            self._fill_all(into, header.get("sum") is True, timeout, end)
            return Message(header, None)
        if type(count) is not int or not 0 <= count <= max_payload:
            raise WireError(f"a payload of {str(count)[:40]} bytes, where at most {max_payload} are allowed")
        payload = np.empty(count, np.uint8)
        self._fill_all([payload], header.get("sum") is True, timeout, end)
        return Message(header, payload)

    def _fill_all(self, targets: Sequence[np.ndarray], checked: bool, timeout: float, end: float | None) -> None:
        """Receives a payload, and compares it with its checksum."""
        checksum = 0
        for run in _runs(targets):
            whole = run[0] if len(run) == 1 else np.empty(sum(target.nbytes for target in run), np.uint8)
            flat = whole.reshape(-1).view(np.uint8)
            for start in range(0, flat.size, _BLOCK):
                block = flat[start : start + _BLOCK]
                self._fill(block.data, timeout, end)
                if checked:
                    checksum = _extended(checksum, block)
            if len(run) > 1:
                at = 0
                for target in run:
                    target.reshape(-1).view(np.uint8)[:] = flat[at : at + target.nbytes]
                    at += target.nbytes
        if not checked:
            return
        found = bytearray(_CHECKSUM.size)
        self._fill(memoryview(found), timeout, end)
        if _CHECKSUM.unpack(found) != (checksum,):
            raise WireError("the bytes that arrived are not those that were sent: their checksums differ")

    def _fill(self, view: memoryview, timeout: float, end: float | None) -> None:
        while view:
            if count := min(len(view), len(self._ahead)):
                view[:count], self._ahead = self._ahead[:count], self._ahead[count:]
                view = view[count:]
                continue
            into = view if len(view) >= _AHEAD else self._buffer
            received = None
            with contextlib.suppress(BlockingIOError):
                received = self._socket.recv_into(into)
            if received is None:
                self._wait(select.POLLIN, timeout, end)
                continue
            if received == 0:
                raise WireError("the connection was closed by the other side")
            if into is view:
                view = view[received:]
            else:
                self._ahead = self._buffer[:received]

    def _wait(self, event: int, timeout: float, end: float | None = None) -> None:
        last = time.monotonic() + timeout
        if end is not None:
            last = min(last, end)
        poll = select.poll()
        poll.register(self._socket, event)
        while True:
            left = last - time.monotonic()
            if poll.poll(1000 * min(max(0.0, left), _LONGEST_POLL_SECS)):
                return
            if left <= 0:
                raise TimeoutError("timed out")

    def is_open(self) -> bool:
        """Whether, as far as this process can know, the other side is still there."""
        try:
            with self._using():
                poll = select.poll()
                poll.register(self._socket, _GONE)
                return not poll.poll(0)
        except OSError:
            return False

    def takes_at_once(self) -> bool:
        """Whether a small message can be sent without waiting."""
        try:
            with self._using():
                poll = select.poll()
                poll.register(self._socket, select.POLLOUT)
                return bool(poll.poll(0))
        except OSError:
            return True  # The error comes without waiting.

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
                self._wait(select.POLLIN, end - time.monotonic())
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


def close_gently(links: list[Link], seconds: float) -> None:
    """Closes connections, so that the other sides can still read what was sent; waits for them for at most `seconds`."""
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
    except (OSError, IndexError):  # Not of the internet: it cannot leave the host.
        return True


def _extended(checksum: int, block: Any) -> int:
    import google_crc32c

    if isinstance(block, np.ndarray):
        block.flags.writeable = False  # google_crc32c takes nothing that can be written to.
    extended: int = google_crc32c.extend(checksum, block)
    return extended


def _blocks(parts: Sequence[np.ndarray]) -> Iterator[Any]:
    """Yields the bytes of arrays in blocks that can be sent as they are; what is small is put together."""
    for run in _runs(parts):
        if len(run) > 1:
            yield b"".join([part.tobytes() for part in run])
            continue
        flat = np.ascontiguousarray(run[0]).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _BLOCK):
            yield flat[start : start + _BLOCK]


def _runs(parts: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Groups neighbours that are small; the others stay alone."""
    run: list[np.ndarray] = []
    held = 0
    for part in parts:
        if part.nbytes == 0:
            continue
        if part.nbytes > _SMALL or held + part.nbytes > _BLOCK:
            if run:
                yield run
            run, held = [], 0
        if part.nbytes > _SMALL:
            yield [part]
        else:
            run.append(part)
            held += part.nbytes
    if run:
        yield run
