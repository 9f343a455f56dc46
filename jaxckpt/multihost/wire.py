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
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Header = dict[str, Any]
_LENGTH = struct.Struct("!I")
_CHECKSUM = struct.Struct("!I")
_BEAT = _LENGTH.pack(12) + b'{"t":"beat"}'
MAX_HEADER = 64 << 20
MAX_PAYLOAD = 64 << 20
_BLOCK = 1 << 20  # is checksummed while it is in the processor's cache
_SMALL = 32 << 10  # below that, copying is cheaper than a call of its own


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

    Sending is safe from several threads; a request with its answer holds `talking`.

    Attributes:
      process: index of the other process.
      talking: lock.
      checksums: whether the bytes that are sent are followed by their checksum.
    """

    def __init__(self, connection: socket.socket, process: int) -> None:
        self.process = process
        self.talking = threading.Lock()
        self._socket = connection
        self._sending = threading.Lock()
        self.checksums = not _within_a_host(connection)
        with contextlib.suppress(OSError):  # Not on every kind of socket.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, header: Header, payload: Any = None, *, timeout: float) -> None:
        """Sends a message.

        Args:
          header: a JSON object.
          payload: contiguous arrays whose bytes follow, one or a list of them.
          timeout: most seconds without progress.

        Raises:
          OSError: the connection has ended; TimeoutError if the other side does not take the bytes.
        """
        parts = [] if payload is None else payload if isinstance(payload, list) else [payload]
        total = sum(part.nbytes for part in parts)
        if parts:
            header = {**header, "n": total, "sum": self.checksums}
        content = json.dumps(header, separators=(",", ":")).encode()
        with self._sending:
            self._socket.settimeout(timeout)
            self._socket.sendall(_LENGTH.pack(len(content)) + content)
            if parts:
                self._send_parts(parts)

    def _send_parts(self, parts: Sequence[np.ndarray]) -> None:
        checksum = 0
        for block in _blocks(parts):
            if self.checksums:
                checksum = _extended(checksum, block)
            view = memoryview(block)
            # Not sendall: its timeout is for the whole, and a slow network may need longer for many megabytes.
            while view:
                view = view[self._socket.send(view) :]
        if self.checksums:
            self._socket.sendall(_CHECKSUM.pack(checksum))

    def beat(self) -> None:
        """Says that this process is alive, unless a message is on its way, which says so too."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            if poll.poll(0):  # A side that takes nothing must not keep the others from hearing.
                self._socket.sendall(_BEAT)
        finally:
            self._sending.release()

    def receive(
        self,
        timeout: float,
        *,
        max_payload: int = MAX_PAYLOAD,
        max_header: int = MAX_HEADER,
        into: Sequence[np.ndarray] | None = None,
    ) -> Message:
        """Waits for the next message that is not a beat.

        Args:
          timeout: most seconds without a sign of life.
          max_payload, max_header: larger ones are an error.
          into: contiguous arrays that the payload, if there is one, is put into; it must be as large as they are together.

        Raises:
          WireError: the connection has ended, or what came is no message.
          TimeoutError: nothing came.
        """
        while True:
            message = self._receive(timeout, max_payload, max_header, into)
            if message.header.get("t") != "beat":
                return message

    def _receive(self, timeout: float, max_payload: int, max_header: int, into: Sequence[np.ndarray] | None) -> Message:
        prefix = bytearray(_LENGTH.size)
        self._fill(memoryview(prefix), timeout)
        (size,) = _LENGTH.unpack(prefix)
        if size > max_header:
            raise WireError(f"a header of {size} bytes, more than the {max_header} that are allowed")
        content = bytearray(size)
        self._fill(memoryview(content), timeout)
        try:
            header = json.loads(content)
            count = int(header.get("n", 0))
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise WireError(f"what arrived is no message ({error})") from None
        if "n" not in header:
            return Message(header, None)
        if into is not None:
            if count != (expected := sum(target.nbytes for target in into)):
                raise WireError(f"a payload of {count} bytes instead of {expected}")
            self._fill_all(into, bool(header.get("sum")), timeout)
            return Message(header, None)
        if not 0 <= count <= max_payload:
            raise WireError(f"a payload of {count} bytes, more than the {max_payload} that are allowed")
        payload = np.empty(count, np.uint8)
        self._fill_all([payload], bool(header.get("sum")), timeout)
        return Message(header, payload)

    def _fill_all(self, targets: Sequence[np.ndarray], checked: bool, timeout: float) -> None:
        """Receives a payload, and compares it with its checksum."""
        checksum = 0
        for run in _runs(targets):
            whole = run[0] if len(run) == 1 else np.empty(sum(target.nbytes for target in run), np.uint8)
            flat = whole.reshape(-1).view(np.uint8)
            for start in range(0, flat.size, _BLOCK):
                block = flat[start : start + _BLOCK]
                self._fill(block.data, timeout)
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
        self._fill(memoryview(found), timeout)
        if _CHECKSUM.unpack(found) != (checksum,):
            raise WireError("the bytes that arrived are not those that were sent: their checksums differ")

    def _fill(self, view: memoryview, timeout: float) -> None:
        self._socket.settimeout(timeout)
        while view:
            received = self._socket.recv_into(view)
            if received == 0:
                raise WireError("the connection was closed by the other side")
            view = view[received:]

    def finish(self) -> None:
        """Says that nothing more will be sent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def drain(self, timeout: float) -> None:
        """Reads what is still coming, until the other side has closed too. To close before would destroy what it has not read yet."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(timeout)
            while self._socket.recv(1 << 16):
                pass

    def close(self) -> None:
        """Closes the connection; a thread that waits in it is woken."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


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
