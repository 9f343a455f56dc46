"""Mount namespaces of Linux: let a process see its own disk at a path where other processes see theirs.

This file uses little of the standard library and nothing else, because the process that holds a disk of limited size runs it as a script.
"""

import ctypes
import os
import sys
from typing import Any

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SLAVE = 0x80000


def _call(name: str, *arguments: Any) -> None:
    """Calls a function of the C library. Raises OSError if it does not return 0."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    kind_bytes, data_bytes = (None if text is None else text.encode() for text in (kind, data))
    _call("mount", os.fsencode(source), os.fsencode(target), kind_bytes, ctypes.c_ulong(flags), data_bytes)


def new_mount_namespace() -> None:
    """Moves this process, which must have only one thread, to a new mount namespace; to a new user namespace too if it is not root.

    Raises:
      OSError: the system does not permit it.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", _CLONE_NEWNS)
    except PermissionError:
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS)
        # The process keeps its user. It only gains the right to mount.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    # Mounts made here must not appear outside. Later mounts outside may appear here.
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)


def _join(holder: int) -> None:
    """Moves this process to the namespaces of the process `holder`, which holds a disk."""
    for name, flag in (("user", _CLONE_NEWUSER), ("mnt", _CLONE_NEWNS)):
        path = f"/proc/{holder}/ns/{name}"
        if os.readlink(path) == os.readlink(f"/proc/self/ns/{name}"):
            # Joining one's own user namespace is an error.
            continue
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", file, flag)
        finally:
            os.close(file)


def see_at(target: str, source: str, holder: int | None) -> None:
    """Makes the directory `source` visible at the path `target`, for this process only.

    Args:
      target: an existing directory.
      source: the directory that appears there.
      holder: id of the process in whose mount namespace `source` exists; None if every process sees it.

    Raises:
      OSError: the system does not permit it.
    """
    if holder is not None:
        _join(holder)
    new_mount_namespace()
    _mount(source, target, None, _MS_BIND)


def _hold(directory: str, size: str) -> None:
    """Mounts a tmpfs, and keeps it until standard input is closed. The tmpfs vanishes with this process."""
    try:
        new_mount_namespace()
        _mount("none", directory, "tmpfs", 0, f"size={size},mode=0755")
    except OSError as error:
        print(error, flush=True)
        return
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _hold(*sys.argv[1:])
