"""Servers of buckets for tests: a program, and a proxy before it that breaks things on demand.

TensorStore talks to the proxy, which does to the requests of a bucket what a test's rule says. Other clients talk to the program itself.
"""

import abc
import contextlib
import http.client
import http.server
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple


class UnavailableError(Exception):
    """The server does not run here; says why."""


class Request(NamedTuple):
    """What TensorStore asks for: "list", "read", "write" or "delete", and the name of the object (or the prefix)."""

    action: str
    name: str


# What a rule returns: None to let a request pass, a status to answer with, "drop" to hang up, or "lose" to hang up when it has been done.
Rule = Callable[[Request], int | str | None]
# Status, content and headers of an answer.
Found = tuple[int, bytes, dict[str, str]]


def free_ports(count: int) -> list[int]:
    """Returns free ports of this machine.

    They lie below those that the system gives to connections. The tests beside this one make many of these, and one could otherwise get
    the port before the server listens on it.
    """
    first, last = 10_000, 32_767
    with contextlib.suppress(OSError):
        last = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) - 1
    # Other processes of the tests must not draw the same ones.
    chance = random.SystemRandom()
    with contextlib.ExitStack() as held:
        probes: list[socket.socket] = []
        for attempt in range(100 * count):
            port = chance.randint(first, last) if last > first and attempt < 50 * count else 0
            with contextlib.suppress(OSError):
                probes.append(held.enter_context(socket.create_server(("127.0.0.1", port))))
            if len(probes) == count:
                return [probe.getsockname()[1] for probe in probes]
    raise UnavailableError("there is no free port")


class Server(abc.ABC):
    """The running program and its proxy.

    Attributes:
      scheme: beginning of the addresses of its buckets.
      url: of the program.
      proxy_url: of the proxy.
      rules: bucket → what happens to its requests.
      requests: bucket → what was asked for, in order.
    """

    scheme: ClassVar[str]

    def __init__(
        self, directory: Path, command: Sequence[str], port: int, handler: Callable[[int], "type[Handler]"]
    ) -> None:
        """Starts both.

        Args:
          directory: an empty directory for the files of the program.
          command: how to start the program.
          port: where it listens.
          handler: returns the class that handles requests to the proxy; takes the port.

        Raises:
          UnavailableError: the program does not run here.
        """
        self.url = f"http://127.0.0.1:{port}"
        self.rules: dict[str, Rule] = {}
        self.requests: dict[str, list[Request]] = {}
        self._log = directory / "server.log"
        with self._log.open("wb") as log:
            try:
                # A session of its own, so that whatever it starts ends with it.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, start_new_session=True
                )
            except OSError as error:
                raise UnavailableError(f"{command[0]} does not run here: {error}") from error
        self._wait_until_it_answers()
        self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(port))
        self._proxy.daemon_threads = True
        self.proxy_url = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + 60
        while True:
            try:
                self.try_it()
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    log = self._log.read_text(errors="replace")
                    self._end()
                    raise UnavailableError(f"{type(self).__name__} does not answer: {error}\n{log}") from error
                time.sleep(0.05)

    @abc.abstractmethod
    def try_it(self) -> None:
        """Sends a request to the program. Raises any error if it does not answer yet."""

    @abc.abstractmethod
    def environment(self) -> dict[str, str]:
        """Returns the variables by which TensorStore (through the proxy) and others find the server."""

    @abc.abstractmethod
    def make_bucket(self, name: str) -> None:
        """Makes a bucket."""

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def close(self) -> None:
        """Ends both."""
        self._proxy.shutdown()
        self._proxy.server_close()
        self._end()


class Handler(http.server.BaseHTTPRequestHandler):
    """Handles the requests to the proxy.

    Attributes:
      port: where the program listens.
    """

    port: ClassVar[int]
    protocol_version = "HTTP/1.1"
    # One packet an answer: half a one would wait for the client.
    wbufsize = -1
    disable_nagle_algorithm = True

    def hang_up(self) -> None:
        """Closes the connection without an answer."""
        self.close_connection = True
        self.connection.close()

    def finish_with(self, verdict: object, found: Found) -> None:
        """Answers, unless the verdict of a rule is to lose the answer."""
        if verdict == "lose":
            self.hang_up()
        else:
            self.answer(*found)

    def pass_on(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Found:
        """Sends a request to the program. Returns its answer, without the headers that belong to the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            dropped = {"transfer-encoding", "connection", "date", "server"}
            # The answer to HEAD has no body, but says how long it would be.
            if self.command != "HEAD":
                dropped.add("content-length")
            kept = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
            return response.status, response.read(), kept
        finally:
            connection.close()

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Answers the client."""
        # The client may be gone.
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "content-length" not in {name.lower() for name in headers}:
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@dataclass(frozen=True)
class Bucket:
    """A bucket that is empty at the beginning.

    Attributes:
      name: of the bucket.
      server: where it lies.
    """

    name: str
    server: Server

    def __str__(self) -> str:
        return f"{self.server.scheme}{self.name}"

    def path(self, key: str) -> str:
        """Returns the address of an object."""
        return f"{self}/{key}"

    @property
    def keys(self) -> set[str]:
        """The names of all objects."""
        from jaxckpt.storage import stores

        return set(stores.tree(str(self)))

    @property
    def requests(self) -> list[Request]:
        """What was asked for so far."""
        return self.server.requests.get(self.name, [])

    def rule(self, rule: Rule | None) -> None:
        """Sets what happens to requests from now on."""
        if rule is None:
            self.server.rules.pop(self.name, None)
        else:
            self.server.rules[self.name] = rule
