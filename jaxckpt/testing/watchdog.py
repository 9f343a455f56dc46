"""Ends the processes of a job when their parent is gone without having done so, killed for example.

A process of its own, started from this file as a script; it imports the standard library only. Unlike Linux's signal at a parent's
death it does not depend on the thread that started a process, and it reaches what the processes started.
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
    """The watching process, as the parent sees it."""

    def __init__(self, directory: str) -> None:
        """Starts it.

        Args:
          directory: removed when the parent is gone.
        """
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), directory],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent.
        )

    def watch(self, group: int) -> None:
        """Has a process group killed when the parent is gone."""
        self._tell(group)

    def forget(self, group: int) -> None:
        """Has it left alone: its id may be another's from now on."""
        self._tell(-group)

    def _tell(self, number: int) -> None:
        assert self._popen.stdin is not None
        # If it was killed, the processes notice the parent's end by themselves.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._popen.stdin.fileno(), b"%d\n" % number)

    def close(self) -> None:
        """Ends it."""
        assert self._popen.stdin is not None
        self._popen.kill()
        self._popen.wait(_END_SECS)
        self._popen.stdin.close()


def _watch(parent: int, directory: str) -> None:
    groups: set[int] = set()
    received = b""
    # The end of the pipe alone would not do: a process that the parent forked may hold it open.
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
