"""How processes find each other and prove who they are: a listener on one interface, a random token, HMAC in both directions.

The token is made for one operation and handed out through JAX's coordination service, so it is as safe as that service is. Bytes are
not encrypted.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jaxckpt.multihost.wire import Link, WireError

BIND_VARIABLE = "JAXCKPT_BIND_ADDRESS"
_HANDSHAKE_SECS = 10.0
_MAX_HANDSHAKE_HEADER = 4096
_MAX_STRANGERS = 128


@dataclass(frozen=True)
class Address:
    """Where a process listens, and the token that proves that a caller belongs to the job."""

    host: str
    port: int
    token: str

    def to_json(self) -> dict[str, Any]:
        """Returns the address for the wire."""
        return {"host": self.host, "port": self.port, "token": self.token}

    @classmethod
    def from_json(cls, value: Any) -> "Address":
        """Returns the address that `to_json` described. Raises WireError."""
        try:
            return cls(str(value["host"]), int(value["port"]), str(value["token"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"not an address: {error!r}") from None


class Listener:
    """Accepts the other processes of one operation. Strangers are dropped, and delay nobody: handshakes run side by side."""

    def __init__(self, interface: str, expected: Iterable[int]) -> None:
        """Listens on an interface.

        Args:
          interface: the local address to bind; never a wildcard.
          expected: indices of the processes that may come.

        Raises:
          OSError: it cannot be bound.
        """
        self._expected = frozenset(expected)
        self._changed = threading.Condition()
        self._links: dict[int, Link] = {}
        self._shaking: OrderedDict[socket.socket, None] = OrderedDict()
        self._closed = False
        try:
            family = socket.AF_INET6 if ":" in interface else socket.AF_INET
            self._socket = socket.create_server(
                (interface, 0), family=family, backlog=min(1024, len(self._expected) + 16)
            )
        except OSError as error:
            raise OSError(
                error.errno,
                f"Cannot listen on {interface} for the other processes ({error.strerror}). Set the environment variable "
                f"{BIND_VARIABLE} to an address of this host that the others reach",
            ) from error
        host, port = self._socket.getsockname()[:2]
        self.address = Address(host, port, secrets.token_hex(32))
        threading.Thread(target=self._accept, name="jaxckpt listener", daemon=True).start()

    def wait(self, end: float) -> tuple[dict[int, Link], set[int]]:
        """Waits until all expected processes are there, at most until the moment `end` (of time.monotonic).

        Returns:
          The connections, by process, and the processes that are missing.
        """
        with self._changed:
            while len(self._links) < len(self._expected) and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, 1.0))
            return dict(self._links), set(self._expected - self._links.keys())

    def close(self) -> None:
        """Stops listening. Connections that were handed out stay open."""
        with self._changed:
            self._closed = True
            shaking = list(self._shaking)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # Wakes accept().
        self._socket.close()
        for connection in shaking:
            _end(connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.05)  # Out of descriptors, perhaps; those who wait are bounded by their own deadline.
                continue
            with self._changed:
                self._shaking[connection] = None
                crowd = len(self._shaking) - len(self._expected) - _MAX_STRANGERS
                oldest = list(self._shaking)[: max(0, crowd)]
            for stranger in oldest:
                _end(stranger)
            threading.Thread(target=self._welcome, args=(connection,), name="jaxckpt handshake", daemon=True).start()

    def _welcome(self, connection: socket.socket) -> None:
        link = None
        # A peer that is slow is not the same as a stranger that is silent; this bounds both.
        timer = threading.Timer(_HANDSHAKE_SECS, _end, (connection,))
        timer.daemon = True
        timer.start()
        try:
            link = self._shake_hands(connection)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        finally:
            timer.cancel()
            with self._changed:
                self._shaking.pop(connection, None)
                accepted = link is not None and not self._closed
                previous = None
                if link is not None and accepted:
                    previous = self._links.pop(link.process, None)  # It gave up, and came again.
                    self._links[link.process] = link
                    self._changed.notify_all()
            if previous is not None:
                previous.close()
            if not accepted:
                _end(connection)

    def _shake_hands(self, connection: socket.socket) -> Link:
        link = Link(connection, -1)
        mine = secrets.token_hex(16)
        link.send({"t": "hello", "nonce": mine}, timeout=_HANDSHAKE_SECS)
        header = link.receive(_HANDSHAKE_SECS, max_payload=0, max_header=_MAX_HANDSHAKE_HEADER).header
        process, theirs = int(header["process"]), str(header["nonce"])
        if process not in self._expected or not hmac.compare_digest(
            str(header["mac"]), _mac(self.address.token, "caller", mine, theirs, process)
        ):
            raise WireError("wrong token")
        link.send(
            {"t": "welcome", "mac": _mac(self.address.token, "listener", theirs, mine, process)},
            timeout=_HANDSHAKE_SECS,
        )
        link.process = process
        return link


def dial(address: Address, me: int, them: int, end: float) -> Link:
    """Connects to a listener and proves to belong to the job.

    Args:
      address: of the listener.
      me: index of this process.
      them: index of the process that listens.
      end: moment (of time.monotonic) at which to give up.

    Raises:
      OSError: nobody listens there any more, or whoever does is not of this job.
    """
    timeout = max(0.1, min(_HANDSHAKE_SECS, end - time.monotonic()))
    link = Link(socket.create_connection((address.host, address.port), timeout=timeout), them)
    try:
        theirs = str(link.receive(timeout, max_payload=0, max_header=_MAX_HANDSHAKE_HEADER).header["nonce"])
        mine = secrets.token_hex(16)
        proof = _mac(address.token, "caller", theirs, mine, me)
        link.send({"t": "proof", "process": me, "nonce": mine, "mac": proof}, timeout=timeout)
        header = link.receive(timeout, max_payload=0, max_header=_MAX_HANDSHAKE_HEADER).header
        if not hmac.compare_digest(str(header["mac"]), _mac(address.token, "listener", mine, theirs, me)):
            raise WireError(f"whoever listens on {address.host}:{address.port} does not belong to this job")
    except BaseException as error:
        link.close()
        if isinstance(error, (KeyError, TypeError)):
            raise WireError(
                f"whoever listens on {address.host}:{address.port} does not speak as jaxckpt does"
            ) from None
        raise
    return link


def interface_towards(coordinator: str | None) -> str:
    """Returns the local address whose interface leads to JAX's coordinator (``host:port``): the network that the job uses.

    The environment variable JAXCKPT_BIND_ADDRESS overrides it.

    Raises:
      OSError: there is no route, or the override is a wildcard.
    """
    chosen = os.environ.get(BIND_VARIABLE)
    if chosen:
        if chosen in ("0.0.0.0", "::", "*"):
            raise OSError(f"{BIND_VARIABLE}={chosen} means every interface; give the address of one.")
        return chosen
    if not coordinator:
        return "127.0.0.1"
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    if host in ("", "0.0.0.0", "::"):
        host = "127.0.0.1"
    family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # Sends nothing; only looks up the route.
        return str(probe.getsockname()[0])


def to_bytes(address: Address) -> bytes:
    """Returns the address as the coordination service stores it."""
    return json.dumps(address.to_json()).encode()


def from_bytes(content: bytes) -> Address:
    """Returns the address that `to_bytes` stored. Raises WireError."""
    try:
        return Address.from_json(json.loads(content))
    except ValueError as error:
        raise WireError(f"not an address: {error}") from None


def _mac(token: str, role: str, challenge: str, nonce: str, process: int) -> str:
    message = "|".join((role, challenge, nonce, str(process)))
    return hmac.new(bytes.fromhex(token), message.encode(), hashlib.sha256).hexdigest()


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
