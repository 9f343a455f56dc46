"""Leases: each names the process that works on a directory. They tell a leftover of a dead process from a save that is running.

While the work goes on, its process rewrites the lease, which is the file `FILE`, every `RENEW_SECS`. For a process on another machine, that
is the sign of life.
"""

import contextlib
import errno
import json
import logging
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Literal

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import DamagedError, as_dict, as_int, as_text, parse_strictly
from jaxckpt.storage import owner, stores
from jaxckpt.storage.owner import Owner

FILE = "_JAXCKPT_OWNER"
RENEW_SECS = 30.0
# Creations of one object at the same time, of which one may succeed.
_TRIES = 6
# The clocks of machines differ by less. And if a storage server is away for longer, the save fails anyway.
DEAD_AFTER_SECS = 900.0
Action = Literal["save", "stage", "replace", "delete"]
_ACTIONS: dict[str, Action] = {"save": "save", "stage": "stage", "replace": "replace", "delete": "delete"}
_log = logging.getLogger("jaxckpt")


@dataclass(frozen=True, slots=True)
class StoredLease:
    """The content of a lease: the work on a directory, and its owner.

    Attributes:
      action: the work: "save" writes a checkpoint, "stage" writes one that will replace another, "replace" copies the staged one to its
        place, "delete" removes one.
      staged: for "replace", the directory of the staged checkpoint; otherwise None.
      owner: the process that does the work.
      time: when the lease was written, in seconds since the epoch.
    """

    action: Action
    staged: str | None
    owner: Owner
    time: float

    @property
    def age_secs(self) -> float:
        """Seconds since the lease was written."""
        return max(0.0, time.time() - self.time)

    @property
    def live(self) -> bool:
        """Whether the owner may still be at work."""
        return self.owner.is_alive(self.age_secs, DEAD_AFTER_SECS)

    @property
    def in_words(self) -> str:
        """The owner in words, for a message."""
        return self.owner.in_words(self.live)


def read(directory: str) -> StoredLease | None:
    """Returns the lease of a directory; None if it has none, or if the lease is malformed. Raises OSError."""
    return read_versioned(directory)[0]


def read_versioned(directory: str) -> tuple[StoredLease | None, bytes]:
    """Returns the lease of a directory, as `read` does, and the version of its file. Raises OSError."""
    try:
        content, version = stores.read_versioned(os.path.join(directory, FILE))
    except NotADirectoryError:
        # The path is that of a file, not of a directory.
        content, version = None, stores.ABSENT
    return None if content is None else _parsed(content, directory), version


def _parsed(content: bytes, directory: str) -> StoredLease | None:
    try:
        if len(content) > bounds.NOTE_FILE_BYTES:
            return None
        found = as_dict(parse_strictly(content), "it")
        action, staged, written = as_text(found["action"], "action"), found["staged"], found["time"]
        if action not in _ACTIONS or (staged is not None and not _is_staged(as_text(staged, "staged"), directory)):
            return None
        return StoredLease(
            action=_ACTIONS[action],
            staged=staged,
            owner=Owner(
                as_text(found["host"], "host"),
                as_int(found["pid"], "pid"),
                as_int(found["start"], "start"),
                as_text(found["token"], "token"),
            ),
            time=written if type(written) is float else float(as_int(written, "time")),
        )
    except (DamagedError, KeyError):
        return None


def _is_staged(staged: str, directory: str) -> bool:
    """Whether `staged` can be the path of a checkpoint staged for `directory`.

    Without this check, a malformed lease could have any directory copied and removed.
    """
    parent, name = os.path.split(stores.absolute(directory))
    beside, temporary_name = os.path.split(staged)
    return beside == parent and owner.is_temporary(temporary_name) and owner.final_name(temporary_name) == name


def _content(action: Action, staged: str | None, owner: Owner) -> bytes:
    """Returns the content of a lease that is written now."""
    process = {"host": owner.host, "pid": owner.pid, "start": owner.start, "token": owner.token}
    return json.dumps({"action": action, "staged": staged, **process, "time": time.time()}).encode()


def require_conditions(path: str) -> None:
    """Makes sure that conditional writes work where a path is. Call it before the first one. Asks the server once in each bucket.

    Args:
      path: path of the directory or file for which one is needed.

    Raises:
      OSError: with errno; ENOTSUP if the storage server ignores the conditions of writes.
    """
    directory, name = os.path.split(path)
    work, token = Owner.new(token_bytes=4), _Trial()
    work.begin(token)
    scratch = owner.temporary_path(os.path.join(directory, owner.final_name(name)), work)
    content = _content("stage", None, work)
    try:
        # It is a lease, so that a sweep removes it if this process is killed meanwhile. Spaces tell the contents apart.
        stores.require_conditions(os.path.join(scratch, FILE), [content + b" " * number for number in range(_TRIES)])
    finally:
        work.end()


class _Trial:
    """Represents a running trial of conditional writes."""


class Lease:
    """A lease that this process holds on a directory, from `__init__` until `release` or `stop`."""

    def __init__(self, directory: str, action: Action, staged: str | None = None, over: bytes | None = None) -> None:
        """Writes the lease.

        Args:
          directory: the directory to lease; made if it does not exist.
          action: see `StoredLease.action`.
          staged: see `StoredLease.staged`.
          over: version of the lease to overwrite, if it must be a certain one; None to overwrite any lease of a dead process.

        Raises:
          FileExistsError: a running process works in the directory.
          OSError: with errno.
        """
        require_conditions(directory)
        self._path = os.path.join(directory, FILE)
        self._action, self._staged = action, staged
        self._owner = Owner.new(token_bytes=8)
        self._owner.begin(self)
        self._ended = threading.Event()
        self._renewing: threading.Thread | None = None
        try:
            stores.make_directory(directory)
            there, version = read_versioned(directory)
            if over not in (None, version):
                raise stores.ChangedError(errno.EAGAIN, "Another process has overwritten this lease", self._path)
            if there is not None and there.live:
                raise FileExistsError(
                    errno.EEXIST, f"{there.in_words.capitalize()} is working here (action: {there.action})", directory
                )
            self._version = self._write(version)
        except BaseException as error:
            self._owner.end()
            if isinstance(error, stores.ChangedError):
                raise FileExistsError(
                    errno.EEXIST, "Another process began to work here at the same time", directory
                ) from error
            raise
        # While the program is ending, starting a thread raises RuntimeError.
        with contextlib.suppress(RuntimeError):
            self._renewing = threading.Thread(
                target=_keep, args=(weakref.ref(self), self._ended), name="jaxckpt-lease", daemon=True
            )
            self._renewing.start()

    def _write(self, expected: bytes) -> bytes:
        """Overwrites the lease that has the expected version, and returns the new version. Raises ChangedError if another was written."""
        try:
            return stores.write_if(self._path, _content(self._action, self._staged, self._owner), expected)
        except stores.ChangedError:
            there, version = read_versioned(os.path.dirname(self._path))
            if there is None or there.owner != self._owner:
                raise
            # The server wrote the lease, but its answer got lost, and the retry found the lease that the first try had written.
            return version

    def renew(self) -> bool:
        """Rewrites the lease. Returns False if another process has overwritten it."""
        try:
            self._version = self._write(self._version)
        except stores.ChangedError:
            # Another process took this one for dead. `confirm` will raise the error.
            return False
        except OSError as error:
            _log.warning("Could not renew %s: %s", self._path, error)
        return True

    def confirm(self) -> None:
        """Makes sure, before a commit, that this process still owns the directory.

        Raises:
          OSError: ECANCELED; another process took this one for dead, and removed the directory or took it over.
        """
        there = read(os.path.dirname(self._path))
        if there is None or there.owner != self._owner:
            raise OSError(
                errno.ECANCELED,
                f"Another process took this save for dead after {DEAD_AFTER_SECS:g} s without a sign of life, and removed it",
                os.path.dirname(self._path),
            )

    def stop(self) -> None:
        """Ends the work but leaves the lease, so that the directory counts as the leftover of a dead process."""
        self._ended.set()
        if self._renewing is not None and self._renewing.ident is not None:
            self._renewing.join(RENEW_SECS)
        self._owner.end()

    def release(self) -> None:
        """Ends the work and removes the lease. Raises OSError."""
        self.stop()
        stores.remove(self._path)


def _keep(lease: "weakref.ref[Lease]", ended: threading.Event) -> None:
    """Renews the lease of a lease until the lease ends or is garbage-collected. Runs on a thread of its own."""
    while not ended.wait(RENEW_SECS):
        held = lease()
        if held is None or not held.renew():
            return
        del held
