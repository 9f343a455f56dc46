"""The watchdog: ends the processes of a job if their parent ends without doing so, for example because it was killed.

The watchdog is a separate process that runs this file as a script and imports only the standard library. Linux can send a process a signal
when its parent dies, but that depends on the thread that started the process, and does not reach processes started by the process.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys

_LOOK_SECS = 0.5
_END_SECS = 30


class Watchdog:
    """The watchdog process, as the parent sees it."""

    def __init__(self, directory: str) -> None:
        """Starts the watchdog.

        Args:
          directory: a directory to remove when the parent is gone.
        """
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), directory],
            stdin=subprocess.PIPE,
            # Ctrl-C must reach only the parent.
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """Lets the watchdog kill a process group when the parent is gone."""
        self._tell(group)

    def forget(self, group: int) -> None:
        """Lets the watchdog forget a process group, because its id may be reused from now on."""
        self._tell(-group)

    def _tell(self, number: int) -> None:
        assert self._popen.stdin is not None
        # If the watchdog was killed, the pipe is broken. The processes also notice the parent's end by themselves.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._popen.stdin.fileno(), b"%d\n" % number)

    def close(self) -> None:
        """Ends the watchdog."""
        assert self._popen.stdin is not None
        self._popen.kill()
        self._popen.wait(_END_SECS)
        self._popen.stdin.close()


def _watch(parent: int, directory: str) -> None:
    groups: set[int] = set()
    received = b""
    # The end of the pipe alone does not show the end of the parent, because a process that the parent forked may hold it open.
    while os.getppid() == parent:
        if not select.select([0], [], [], _LOOK_SECS)[0]:
            continue
        data = os.read(0, 65536)
        if not data:
            break
        *numbers, received = (received + data).split(b"\n")
        for number in map(int, numbers):
            if number > 0:
                groups.add(number)
            else:
                groups.discard(-number)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
