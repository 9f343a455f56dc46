"""Messages over a socket: a JSON header and, if it says so, raw bytes. No pickle; sizes are capped; every wait is bounded."""

import contextlib
import json
import select
import socket
import struct
import threading
from typing import Any, NamedTuple

import numpy as np

Header = dict[str, Any]
_LENGTH = struct.Struct("!I")
_BEAT = _LENGTH.pack(12) + b'{"t":"beat"}'
MAX_HEADER = 64 << 20
MAX_PAYLOAD = 64 << 20


class WireError(ConnectionError):
    """What arrived is not what the protocol says, or the connection has ended."""


class Message(NamedTuple):
    """One message.

    Attributes:
      header: a JSON object; "t" says what the message is.
      payload: the bytes that followed, a flat uint8 array, or None.
    """

    header: Header
    payload: np.ndarray | None


class Link:
    """A connection to another process.

    Sending is safe from several threads; a request with its answer holds `talking`.
    """

    def __init__(self, connection: socket.socket, process: int) -> None:
        self.process = process
        self.talking = threading.Lock()
        self._socket = connection
        self._sending = threading.Lock()
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
        views = (
            [] if payload is None else [_bytes(part) for part in (payload if isinstance(payload, list) else [payload])]
        )
        total = sum(len(view) for view in views)
        content = json.dumps({**header, "n": total} if views else header, separators=(",", ":")).encode()
        with self._sending:
            self._socket.settimeout(timeout)
            self._socket.sendall(_LENGTH.pack(len(content)) + content)
            for view in views:
                self._send_all(view)

    def _send_all(self, view: memoryview) -> None:
        # Not sendall: its timeout is for the whole, and a slow network may need longer for many megabytes.
        while view:
            view = view[self._socket.send(view) :]

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

    def receive(self, timeout: float, *, max_payload: int = MAX_PAYLOAD, max_header: int = MAX_HEADER) -> Message:
        """Waits for the next message that is not a beat.

        Args:
          timeout: most seconds without a sign of life.
          max_payload, max_header: larger ones are an error.

        Raises:
          WireError: the connection has ended, or what came is no message.
          TimeoutError: nothing came.
        """
        while True:
            message = self._receive(timeout, max_payload, max_header)
            if message.header.get("t") != "beat":
                return message

    def _receive(self, timeout: float, max_payload: int, max_header: int) -> Message:
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
        if not 0 <= count <= max_payload:
            raise WireError(f"a payload of {count} bytes, more than the {max_payload} that are allowed")
        payload = np.empty(count, np.uint8)
        self._fill(payload.data, timeout)
        return Message(header, payload)

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


def _bytes(array: np.ndarray) -> memoryview:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data if flat.size else memoryview(b"")
