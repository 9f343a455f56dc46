"""How processes find each other and prove who they are: a listener on one interface, a random token, HMAC in both directions.

The token is made for one operation and handed out through JAX's coordination service, so it is as safe as that service is. Bytes are
not encrypted.
"""

import contextlib
import errno
import hashlib
import hmac
import ipaddress
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

from jaxckpt._lib.uninterrupted import start
from jaxckpt.job.protocol.wire import Header, Link, WireError

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
        """Listens on an interface. Nobody is let in before `start`.

        Args:
          interface: the local address to bind; never a wildcard.
          expected: indices of the processes that may come.

        Raises:
          OSError: it cannot be bound, or means every interface.
        """
        self._expected = frozenset(expected)
        self._changed = threading.Condition()
        self._links: dict[int, Link] = {}
        self._shaking: OrderedDict[Link, None] = OrderedDict()
        self._over = False  # Whoever comes now comes too late.
        try:
            family = socket.AF_INET6 if ":" in interface else socket.AF_INET
            self._socket = socket.create_server(
                (interface, 0), family=family, backlog=min(1024, len(self._expected) + 64)
            )
        except OSError as error:
            raise OSError(
                error.errno,
                f"Cannot listen on {interface} for the other processes ({error.strerror}). Set the environment variable "
                f"{BIND_VARIABLE} to an address of this host that the others reach",
            ) from error
        host, port = self._socket.getsockname()[:2]
        if _is_wildcard(host):
            self._socket.close()
            raise OSError(
                errno.EADDRNOTAVAIL, f"{BIND_VARIABLE}={interface} means every interface; give the address of one"
            )
        self.address = Address(host, port, secrets.token_hex(32))
        # Whether the thread that closes the socket runs.
        self._accepting = False

    def start(self) -> None:
        """Begins to let processes in. The caller has the listener by now, and closes it also where an interrupt comes in here.

        Raises:
          RuntimeError: there is no thread to be had.
        """
        start(threading.Thread(target=self._accept, name="jaxckpt listener", daemon=True))

    def wait(self, end: float) -> tuple[dict[int, Link], set[int]]:
        """Waits until all expected processes are there, at most until the moment `end` (of time.monotonic), and lets nobody in any more.

        Returns:
          The connections, by process, and the processes that are missing.
        """
        with self._changed:
            while len(self._links) < len(self._expected) and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, 1.0))
            self._over = True
            return dict(self._links), set(self._expected - self._links.keys())

    def hand_out(self) -> None:
        """Says that somebody has the connections and will close them."""
        with self._changed:
            self._links = {}

    def stop(self) -> None:
        """Stops listening. Idempotent."""
        with self._changed:
            self._over = True
            unused = list(self._shaking)
        self._stop(unused)

    def close(self) -> None:
        """Stops listening, and closes all connections that were not handed out. Idempotent."""
        with self._changed:
            self._over = True
            unused = [*self._shaking, *self._links.values()]
            self._links = {}
        self._stop(unused)

    def _stop(self, unused: Iterable[Link]) -> None:
        with contextlib.suppress(OSError):
            # Wakes accept(); the thread closes the socket.
            self._socket.shutdown(socket.SHUT_RDWR)
        if not self._accepting:
            # Should the thread begin now, it finds the socket closed.
            self._socket.close()
        for link in unused:
            link.close()

    def _accept(self) -> None:
        self._accepting = True
        with self._socket:
            while True:
                try:
                    connection, _ = self._socket.accept()
                except OSError:
                    if self._over:
                        return
                    time.sleep(0.05)  # Out of descriptors, perhaps; those who wait are bounded by their own deadline.
                    continue
                self._admit(Link(connection, -1))

    def _admit(self, link: Link) -> None:
        with self._changed:
            self._shaking[link] = None
            crowd = len(self._shaking) - len(self._expected) - _MAX_STRANGERS
            unwanted = [link] if self._over else list(self._shaking)[: max(0, crowd)]
        for stranger in unwanted:
            stranger.close()
        try:
            threading.Thread(target=self._welcome, args=(link,), name="jaxckpt handshake", daemon=True).start()
        except RuntimeError:  # No thread to be had. Whoever it was tries again.
            with self._changed:
                self._shaking.pop(link, None)
            link.close()

    def _welcome(self, link: Link) -> None:
        unwanted: Link | None = link
        try:
            self._shake_hands(link)
            with self._changed:
                if not self._over:
                    unwanted = self._links.pop(link.process, None)  # It gave up, and came again.
                    self._links[link.process] = link
                    self._changed.notify_all()
        except Exception:  # Whatever a stranger says, it gets no answer, and nobody else notices.
            pass
        finally:
            with self._changed:
                self._shaking.pop(link, None)
            if unwanted is not None:
                unwanted.close()

    def _shake_hands(self, link: Link) -> None:
        end = time.monotonic() + _HANDSHAKE_SECS  # Bounds who is silent, and who sends a byte a second.
        mine = secrets.token_hex(16)
        link.send({"t": "hello", "nonce": mine}, timeout=_HANDSHAKE_SECS)
        header = _hear(link, end)
        process, theirs = header["process"], str(header["nonce"])
        if (
            type(process) is not int
            or process not in self._expected
            or not hmac.compare_digest(str(header["mac"]), _mac(self.address.token, "caller", mine, theirs, process))
        ):
            raise WireError("wrong token")
        link.send(
            {"t": "welcome", "mac": _mac(self.address.token, "listener", theirs, mine, process)},
            timeout=_HANDSHAKE_SECS,
        )
        link.process = process


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
    end = time.monotonic() + timeout
    link = Link(socket.create_connection((address.host, address.port), timeout=timeout), them)
    try:
        theirs = str(_hear(link, end)["nonce"])
        mine = secrets.token_hex(16)
        proof = _mac(address.token, "caller", theirs, mine, me)
        link.send({"t": "proof", "process": me, "nonce": mine, "mac": proof}, timeout=timeout)
        if not hmac.compare_digest(str(_hear(link, end)["mac"]), _mac(address.token, "listener", mine, theirs, me)):
            raise WireError(f"whoever listens on {address.host}:{address.port} does not belong to this job")
    except BaseException as error:
        link.close()
        if isinstance(error, (KeyError, TypeError)):
            raise WireError(
                f"whoever listens on {address.host}:{address.port} does not speak as jaxckpt does"
            ) from None
        raise
    return link


def _hear(link: Link, end: float) -> Header:
    return link.receive(_HANDSHAKE_SECS, max_payload=0, max_header=_MAX_HANDSHAKE_HEADER, end=end).header


def interface_towards(coordinator: str | None) -> str:
    """Returns the local address whose interface leads to JAX's coordinator (``host:port``): the network that the job uses.

    The environment variable JAXCKPT_BIND_ADDRESS overrides it.

    Raises:
      OSError: there is no route, or the override is a wildcard.
    """
    chosen = os.environ.get(BIND_VARIABLE)
    if chosen:
        if _is_wildcard(chosen):
            raise OSError(
                errno.EADDRNOTAVAIL, f"{BIND_VARIABLE}={chosen} means every interface; give the address of one"
            )
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


def _is_wildcard(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # A name; what it stands for is looked at once it is bound.
        return host in ("*", "")
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_unspecified or (mapped is not None and bool(mapped.is_unspecified))


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
