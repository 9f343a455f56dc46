"""Starts one process of a job, receives its messages, and ends it."""

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

# The child gets the parent's sys.path, so that it finds the same modules, with jaxckpt.
_BOOT = (
    "import json, sys; settings = json.loads(sys.argv[1]); sys.path[:] = settings['path'];"
    "from jaxckpt.testing.process import main; main(settings)"
)
_OUTPUT_BYTES = 100_000
_REAP_SECS = 30
_STACKS_SECS = 2.0
_STALL_SECS = 5.0


class Process:
    """One process of a job, as its parent sees it.

    Attributes:
      index: index of the process.
      pid: its process id.
      state: its state, see `State`.
      signals: the names that it has signalled in the current call.
      exitcode: its exit status, negative for a signal; None if it has not ended.
      socket: the connection to it.
    """

    def __init__(
        self, settings: dict[str, Any], environment: dict[str, str], disk: Disk | None, watchdog: Watchdog
    ) -> None:
        """Starts the process.

        Args:
          settings: settings that the child reads, see `process.main`.
          environment: its environment variables.
          disk: its private disk, if it has one.
          watchdog: kills the process if this one is killed.
        """
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
                # The process gets its own group, which can be killed as a whole.
                start_new_session=True,
            )
        self.pid = self._popen.pid
        watchdog.watch(self.pid)

    @property
    def alive(self) -> bool:
        """Whether the process was still running at the last update."""
        return not self._reaped

    def send(self, **message: Any) -> None:
        """Sends a message. Messages are short, so the socket always has room for them."""
        # If the process has ended, `update` notices it.
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def begin_call(self, number: int) -> None:
        """Tells the process to run the function of call `number`."""
        self.signals.clear()
        self.state = "running"
        self._output_from = os.path.getsize(self._output)
        self.send(kind="call", number=number)

    def update(self) -> None:
        """Reads new messages of the process, and notices its end."""
        if not self.alive:
            return
        # Asked before reading, so that everything that the process sent before its end is read.
        ended = self._has_ended()
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
        # The process is not reaped here. Until it is, its id cannot be reused, so its group can be killed safely.
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            # Other code has reaped the process.
            return True

    @property
    def _reaped(self) -> bool:
        return self._popen.returncode is not None

    def _reap(self) -> int:
        self.signal_group(signal.SIGKILL)
        self._watchdog.forget(self.pid)
        return self._popen.wait(_REAP_SECS)

    def stall(self) -> None:
        """Stops the process and the processes that it started (SIGSTOP). Returns when all of its threads have stopped."""
        self.signal_group(signal.SIGSTOP)
        end = time.monotonic() + _STALL_SECS
        while _runs(self.pid) and time.monotonic() < end:
            time.sleep(0.001)

    def signal_group(self, number: int) -> None:
        """Sends a signal to the process and to the processes that it started."""
        if self._reaped:
            # Its id may belong to another process now.
            return
        # The process may have ended (macOS then says "not permitted").
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kills the process (SIGKILL) and the processes that it started."""
        self.update()
        if self.alive:
            self.state, self.exitcode = "killed", self._reap()

    def ended(self) -> bool:
        """Whether the process, which was told to end, has ended. Sets `exitcode`, and keeps the state."""
        if not self._reaped and self._has_ended():
            self.exitcode = self._reap()
        return self._reaped

    def close(self) -> None:
        """Kills the process if it is still running, without changing `state` and `exitcode`, and closes the connection."""
        if not self._reaped:
            self._reap()
        self.socket.close()

    def ask_for_stacks(self) -> None:
        """Tells the process to write the stacks of its threads."""
        if not self._reaped:
            self.signal_group(signal.SIGCONT)
            os.kill(self.pid, signal.SIGUSR1)

    def read_stacks(self) -> None:
        """Reads the stacks that the process has written after `ask_for_stacks`."""
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
        """Returns the result of the function of call `number`."""
        value, error = None, None
        if self.state in ("returned", "raised"):
            data = (self._directory / f"result-{self.index}-{number}.pickle").read_bytes()
            if self.state == "returned":
                try:
                    value = pickle.loads(data)
                except Exception as failure:
                    failure.add_note(
                        f"The result of process {self.index} cannot be unpickled here; return numpy arrays or plain values."
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
    except Exception:
        # The class of the exception cannot be imported here.
        return None


def _runs(pid: int) -> bool:
    """Whether a thread of a process is still running; False if the system does not tell."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[0] not in "TtZX":
                    return True
    except OSError:
        # The process has ended, or this is not Linux.
        pass
    return False
