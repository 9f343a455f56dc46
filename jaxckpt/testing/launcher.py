"""Starts one process of a job, listens to it, and ends it."""

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jaxckpt.testing.disks import Disk
from jaxckpt.testing.results import ProcessResult, RemoteError, State
from jaxckpt.testing.watchdog import Watchdog

# The child looks for modules where its parent does, jaxckpt included, however the parent came to find them there.
_BOOT = (
    "import json, sys; settings = json.loads(sys.argv[1]); sys.path[:] = settings['path'];"
    "from jaxckpt.testing.process import main; main(settings)"
)
_OUTPUT_BYTES = 100_000
_REAP_SECS = 30
_STACKS_SECS = 2.0


class Process:
    """One process of a job, as its parent sees it.

    Attributes:
      index: index of the process.
      pid: its process id.
      state: what it does.
      signals: names that it has signalled in the present call.
    """

    def __init__(
        self, settings: dict[str, Any], environment: dict[str, str], disk: Disk | None, watchdog: Watchdog
    ) -> None:
        self.index: int = settings["index"]
        self.state: State = "starting"
        self.signals: set[str] = set()
        self.exitcode: int | None = None
        self._directory = Path(settings["directory"])
        self._disk = disk
        self._watchdog = watchdog
        self._received = b""
        self._output_from = 0
        self._stacks = ""
        self.socket, other = socket.socketpair()
        self.socket.setblocking(False)
        path = [os.path.abspath(entry) for entry in sys.path]
        settings = {**settings, "socket": other.fileno(), "path": path}
        with other, open(self._directory / f"output-{self.index}.txt", "wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=settings["cwd"],
                env=environment,
                pass_fds=[other.fileno()],
                start_new_session=True,  # A group of its own, which can be ended as a whole.
            )
        self.pid = self._popen.pid
        watchdog.watch(self.pid)

    @property
    def alive(self) -> bool:
        """Whether the process had not ended when it was last looked at."""
        return not self._reaped

    def send(self, **message: Any) -> None:
        """Sends a message. Messages are short, so there is always room for them."""
        with contextlib.suppress(ConnectionError):  # It has ended: `update` will say so.
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def begin_call(self, number: int) -> None:
        """Tells the process to run the function number `number`."""
        self.signals.clear()
        self.state = "running"
        self._output_from = os.path.getsize(self._output)
        self.send(kind="call", number=number)

    def update(self) -> None:
        """Takes what has come from the process, and notices its end."""
        if not self.alive:
            return
        ended = self._has_ended()  # Before reading: what it sent before it ended is read.
        while chunk := self._receive():
            self._received += chunk
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["kind"] == "signal":
                self.signals.add(message["name"])
            else:
                self.state = "idle" if message["kind"] == "ready" else message["state"]
        if ended:
            self.state, self.exitcode = "died", self._reap()

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except (BlockingIOError, ConnectionError):
            return b""

    def _has_ended(self) -> bool:
        # It is not reaped yet: until then its id cannot become another's, and its group can be ended safely.
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # Somebody else waited for it.
            return True

    @property
    def _reaped(self) -> bool:
        return self._popen.returncode is not None

    def _reap(self) -> int:
        self.signal_group(signal.SIGKILL)
        self._watchdog.forget(self.pid)
        return self._popen.wait(_REAP_SECS)

    def signal_group(self, number: int) -> None:
        """Sends a signal to the process and to those that it started."""
        if self._reaped:
            return  # Its id may be another's.
        with contextlib.suppress(ProcessLookupError, PermissionError):  # It has ended (macOS: "not permitted").
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Ends the process with SIGKILL, and those that it started."""
        self.update()
        if self.alive:
            self.state, self.exitcode = "killed", self._reap()

    def ended(self) -> bool:
        """Whether the process, which was told to end, has ended; sets `exitcode`, and leaves the state as it was."""
        if not self._reaped and self._has_ended():
            self.exitcode = self._reap()
        return self._reaped

    def close(self) -> None:
        """Ends the process if it still lives, which its state and `exitcode` do not show, and closes the connection."""
        if not self._reaped:
            self._reap()
        self.socket.close()

    def ask_for_stacks(self) -> None:
        """Lets the process write what its threads do."""
        if not self._reaped:
            self.signal_group(signal.SIGCONT)
            os.kill(self.pid, signal.SIGUSR1)

    def read_stacks(self) -> None:
        """Keeps what the process has written after `ask_for_stacks`."""
        if self._reaped:
            return
        path = self._directory / f"stacks-{self.index}.txt"
        deadline = time.monotonic() + _STACKS_SECS
        while time.monotonic() < deadline:
            self._stacks, before = (path.read_text(errors="replace") if path.exists() else ""), self._stacks
            if (self._stacks and self._stacks == before) or self._has_ended():
                break
            time.sleep(0.05)

    @property
    def _output(self) -> Path:
        return self._directory / f"output-{self.index}.txt"

    def result(self, number: int) -> ProcessResult:
        """Returns what became of the function number `number`."""
        value, error = None, None
        if self.state in ("returned", "raised"):
            data = (self._directory / f"result-{self.index}-{number}.pickle").read_bytes()
            if self.state == "returned":
                try:
                    value = pickle.loads(data)
                except Exception as failure:
                    failure.add_note(
                        f"what process {self.index} returned cannot be read here; return numpy arrays or plain values."
                    )
                    raise
            else:
                name, message, trace, exception = pickle.loads(data)
                error = RemoteError(name, message, trace, _unpickled(exception))
        with open(self._output, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._output_from, size - _OUTPUT_BYTES))
            output = file.read().decode(errors="replace")
        files = () if self._disk is None else tuple(self._disk.files())
        return ProcessResult(
            self.index, self.pid, self.state, value, error, self.exitcode, output, self._stacks, self._disk, files
        )


def _unpickled(data: bytes | None) -> BaseException | None:
    try:
        return None if data is None else pickle.loads(data)
    except Exception:  # Its class is not known here.
        return None
