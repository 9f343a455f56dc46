"""Identifies processes, and tells whether one is still running."""

import contextlib
import functools
import hashlib
import os
import pathlib
import socket


@functools.cache
def host() -> str:
    """Returns an id for the scope in which process ids are unique: the machine's name, its boot, and the process namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def started(pid: int) -> int | None:
    """Returns when a process started (clock ticks since boot); 0 if the system does not tell, None if the process does not exist."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    except OSError:
        return 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def start() -> int:
    """Returns when this process started (clock ticks since boot); 0 if the system does not tell."""
    return started(os.getpid()) or 0


def is_running(pid: int, since: int) -> bool:
    """Whether a process of this machine is still running.

    Args:
      pid: the process id.
      since: when the process started, from `started`; 0 if that is unknown.
    """
    found = started(pid)
    return found is not None and (since == 0 or found in (0, since))
