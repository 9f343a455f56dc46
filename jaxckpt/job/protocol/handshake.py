"""The handshake: processes connect to a listener, and both sides prove with HMAC that they know a random token.

The listener makes a new token for each call, and hands it out through JAX's coordination service. So the token is as safe as that service
is. The connection is not encrypted. A *stranger* is a connection whose other side has not proved yet that it knows the token.
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
from collections.abc import Callable, Iterable

from jaxckpt._lib.uninterrupted import start
from jaxckpt.job.protocol import fields
from jaxckpt.job.protocol.frames import WireError
from jaxckpt.job.protocol.link import Link, Said, Stop
from jaxckpt.job.protocol.meeting_messages import Hello, Proof, Welcome
from jaxckpt.job.protocol.parts import Address

BIND_VARIABLE = "JAXCKPT_BIND_ADDRESS"
_HANDSHAKE_SECS = 10.0
_MAX_HEAD = 4096
_MAX_STRANGERS = 128
_SLICE_SECS = 0.1


class Listener:
    """Accepts connections from the other processes of one call. Handshakes run side by side, so a stranger cannot delay the others."""

    def __init__(self, interface: str, expected: Iterable[int]) -> None:
        """Listens on an interface, and begins to accept connections.

        Args:
          interface: the local address to bind. A wildcard is an error.
          expected: indices of the processes that may connect.

        Raises:
          OSError: the address cannot be bound, or means every interface.
          RuntimeError: the system cannot start a thread.
        """
        self._expected = frozenset(expected)
        self._changed = threading.Condition()
        self._links: dict[int, Link] = {}
        self._shaking: OrderedDict[Link, None] = OrderedDict()
        # How many connections have been accepted, and which of them is the newest of each process that has proved what it is.
        self._admitted = 0
        self._newest: dict[int, int] = {}
        # Whether the time to connect is over: a process that connects now is too late.
        self._over = False
        try:
            family = socket.AF_INET6 if ":" in interface else socket.AF_INET
            self._socket = socket.create_server(
                (interface, 0), family=family, backlog=min(1024, len(self._expected) + 64)
            )
        except OSError as error:
            raise OSError(
                error.errno,
                f"Cannot listen on {interface} for the other processes ({error.strerror}). Set the environment variable "
                f"{BIND_VARIABLE} to an address of this host that the other processes can reach",
            ) from error
        host, port = self._socket.getsockname()[:2]
        if _is_wildcard(host):
            self._socket.close()
            raise OSError(
                errno.EADDRNOTAVAIL, f"{BIND_VARIABLE}={interface} means every interface; give the address of one"
            )
        self.address = Address(host, port, secrets.token_hex(32))
        try:
            start(threading.Thread(target=self._accept, name="jaxckpt listener", daemon=True))
        except RuntimeError:
            self._socket.close()
            raise

    def wait(self, left: Callable[[], float]) -> tuple[dict[int, Link], set[int]]:
        """Waits until all expected processes have connected. Afterwards new connections are refused.

        Args:
          left: returns how many seconds are left. It is called several times, and may return less than expected.

        Returns:
          The connections, by process, and the processes that are missing.
        """
        with self._changed:
            while len(self._links) < len(self._expected) and (secs := left()) > 0:
                self._changed.wait(min(secs, _SLICE_SECS))
            self._over = True
            return dict(self._links), set(self._expected - self._links.keys())

    def hand_out(self) -> None:
        """Gives the connections to the caller, who closes them."""
        with self._changed:
            self._links = {}

    def stop(self) -> None:
        """Stops listening. Idempotent."""
        with self._changed:
            self._over = True
            unused = list(self._shaking)
        self._stop(unused)

    def close(self) -> None:
        """Stops listening, and closes the connections, unless `hand_out` has been called. Idempotent."""
        with self._changed:
            self._over = True
            unused = [*self._shaking, *self._links.values()]
            self._links = {}
        self._stop(unused)

    def _stop(self, unused: Iterable[Link]) -> None:
        # This wakes accept(); the listener's thread then closes the socket.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for link in unused:
            link.close()

    def _accept(self) -> None:
        with self._socket:
            while True:
                try:
                    connection, _ = self._socket.accept()
                except OSError:
                    if self._over:
                        return
                    # The process may have no free descriptors. Try again; `wait` has a deadline of its own.
                    time.sleep(0.05)
                    continue
                self._admit(Link(connection, -1))

    def _admit(self, link: Link) -> None:
        self._admitted += 1
        with self._changed:
            self._shaking[link] = None
            crowd = len(self._shaking) - len(self._expected) - _MAX_STRANGERS
            unwanted = [link] if self._over else list(self._shaking)[: max(0, crowd)]
        for stranger in unwanted:
            stranger.close()
        try:
            threading.Thread(
                target=self._welcome, args=(link, self._admitted), name="jaxckpt handshake", daemon=True
            ).start()
        except RuntimeError:
            # The system cannot start a thread. Close the connection; the other process tries again.
            with self._changed:
                self._shaking.pop(link, None)
            link.close()

    def _welcome(self, link: Link, number: int) -> None:
        unwanted: Link | None = link
        try:
            self._shake_hands(link)
            with self._changed:
                # The process may have given up an earlier connection, and connected again. The two threads may come here in any order.
                # At the same moment as it becomes one of the links: `stop` closes what is shaking hands.
                self._shaking.pop(link, None)
                if not self._over and number > self._newest.get(link.process, 0):
                    self._newest[link.process] = number
                    unwanted = self._links.pop(link.process, None)
                    self._links[link.process] = link
                    self._changed.notify_all()
        except Exception:
            # The handshake failed. A stranger does not get an answer, and its error is not ours.
            pass
        finally:
            with self._changed:
                self._shaking.pop(link, None)
            if unwanted is not None:
                unwanted.close()

    def _shake_hands(self, link: Link) -> None:
        # One deadline for the whole handshake: a dialer may be silent, or send only one byte per second.
        end = time.monotonic() + _HANDSHAKE_SECS
        mine = secrets.token_hex(16)
        link.send(Hello(mine), timeout=_HANDSHAKE_SECS)
        proof = _hear(link, Proof, end)
        expected = _mac(self.address.token, "dialer", mine, proof.nonce, proof.process)
        if proof.process not in self._expected or not _same(proof.mac, expected):
            raise WireError("wrong token")
        welcome = _mac(self.address.token, "listener", proof.nonce, mine, proof.process)
        link.send(Welcome(welcome), timeout=_HANDSHAKE_SECS)
        link.process = proof.process


def dial(address: Address, me: int, them: int, end: float, stop: Stop | None = None) -> Link:
    """Connects to a listener, and proves that this process belongs to the job.

    Args:
      address: address of the listener.
      me: index of this process.
      them: index of the process that listens.
      end: moment (of time.monotonic) at which to give up.
      stop: called several times a second while this waits for answers. If it raises, the wait ends with that error.

    Returns:
      The connection.

    Raises:
      OSError: no process listens at the address any more, or the one that listens does not belong to this job.
    """
    timeout = max(0.1, min(_HANDSHAKE_SECS, end - time.monotonic()))
    end = time.monotonic() + timeout
    link = Link(socket.create_connection((address.host, address.port), timeout=timeout), them)
    try:
        theirs = _hear(link, Hello, end, stop).nonce
        mine = secrets.token_hex(16)
        link.send(Proof(me, mine, _mac(address.token, "dialer", theirs, mine, me)), timeout=timeout)
        expected = _mac(address.token, "listener", mine, theirs, me)
        if not _same(_hear(link, Welcome, end, stop).mac, expected):
            raise WireError(f"the process that listens on {address.host}:{address.port} does not belong to this job")
    except BaseException:
        link.close()
        raise
    return link


def _hear(link: Link, expected: type[Said], end: float, stop: Stop | None = None) -> Said:
    return link.receive(expected, timeout=_HANDSHAKE_SECS, max_head=_MAX_HEAD, end=end, stop=stop)


def interface_towards(coordinator: str | None) -> str:
    """Returns the local address of the interface that leads to JAX's coordinator: it is on the network that the job uses.

    The environment variable JAXCKPT_BIND_ADDRESS overrides it.

    Args:
      coordinator: address of the coordinator (``host:port``), or None.

    Raises:
      OSError: the coordinator cannot be reached, or the environment variable is a wildcard.
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
        # For a datagram socket, connect() only looks up the route. Nothing is sent.
        probe.connect(address)
        return str(probe.getsockname()[0])


def _is_wildcard(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # A host name. Its address is checked after the listener has bound it.
        return host in ("*", "")
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_unspecified or (mapped is not None and bool(mapped.is_unspecified))


def to_bytes(address: Address) -> bytes:
    """Returns the address as the coordination service stores it."""
    return json.dumps(vars(address)).encode()


def from_bytes(content: bytes) -> Address:
    """Returns the address that `to_bytes` stored. Raises WireError if the content is not an address."""
    try:
        address: Address = fields.build(Address, json.loads(content))
        return address
    except ValueError as error:
        raise WireError(f"not an address: {error}") from None


def _mac(token: str, role: str, challenge: str, nonce: str, process: int) -> str:
    message = "|".join((role, challenge, nonce, str(process)))
    return hmac.new(bytes.fromhex(token), _utf8(message), hashlib.sha256).hexdigest()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(_utf8(one), _utf8(other))


def _utf8(text: str) -> bytes:
    # A stranger may send lone surrogates, which plain UTF-8 cannot encode.
    return text.encode("utf-8", "surrogatepass")
