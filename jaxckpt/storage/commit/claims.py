"""Notes in a bucket that say who works on a directory, so that what a dead process left can be told from a save that is running.

A process of this machine (and process namespace) is alive as long as the system says so. Of another one the note tells: it is written anew
while the work goes on, so an old one belongs to a dead process.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Literal

from jaxckpt._lib import bounds, processes
from jaxckpt._lib.documents import DamagedError, as_dict, as_int, as_text, parse_strictly
from jaxckpt.storage.commit import temporary
from jaxckpt.storage.stores import bucket

FILE = "_JAXCKPT_OWNER"
RENEW_SECS = 30.0
# Clocks of machines differ by less, and a storage server that is away for longer makes the save fail.
DEAD_AFTER_SECS = 900.0
Action = Literal["save", "stage", "replace", "delete"]
_ACTIONS: dict[str, Action] = {"save": "save", "stage": "stage", "replace": "replace", "delete": "delete"}
# Notes of this process that stand for work, by token. One that an interrupt dropped does not: its directory is a leftover.
_active: "weakref.WeakValueDictionary[str, Claim]" = weakref.WeakValueDictionary()
_log = logging.getLogger("jaxckpt")


@dataclass(frozen=True, slots=True)
class Note:
    """Who works on a directory.

    Attributes:
      action: what is being done: "save" and "stage" write a checkpoint, "replace" exchanges one for what was staged, "delete" removes one.
      staged: for "replace": the directory that holds the new checkpoint.
      host, pid, start: the process, as `processes` tells processes apart.
      token: tells this work from other work of the same process.
      time: when the note was written, in seconds since the epoch.
    """

    action: Action
    staged: str | None
    host: str
    pid: int
    start: int
    token: str
    time: float

    @property
    def live(self) -> bool:
        """Whether the process may still be at work."""
        if self.host != processes.host():
            return time.time() - self.time < DEAD_AFTER_SECS
        if self.pid == os.getpid():
            return self.token in _active
        return processes.is_running(self.pid, self.start)

    @property
    def owner(self) -> str:
        """The process, in words."""
        where = "" if self.host == processes.host() else " of another machine"
        return f"process {self.pid}{where}" + ("" if self.live else ", which has ended")


def read(directory: str) -> Note | None:
    """Returns the note of a directory; None if there is none (or none that can be understood). Raises OSError."""
    return read_versioned(directory)[0]


def read_versioned(directory: str) -> tuple[Note | None, bytes]:
    """Returns the note of a directory, as `read`, and the generation of its object."""
    content, generation = bucket.read_versioned(os.path.join(directory, FILE))
    return None if content is None else _parsed(content, directory), generation


def _parsed(content: bytes, directory: str) -> Note | None:
    try:
        if len(content) > bounds.NOTE_FILE_BYTES:
            return None
        found = as_dict(parse_strictly(content), "it")
        action, staged, written = as_text(found["action"], "action"), found["staged"], found["time"]
        if action not in _ACTIONS or (staged is not None and not _is_staged(as_text(staged, "staged"), directory)):
            return None
        return Note(
            action=_ACTIONS[action],
            staged=staged,
            host=as_text(found["host"], "host"),
            pid=as_int(found["pid"], "pid"),
            start=as_int(found["start"], "start"),
            token=as_text(found["token"], "token"),
            time=written if type(written) is float else float(as_int(written, "time")),
        )
    except (DamagedError, KeyError):
        return None


def _is_staged(staged: str, directory: str) -> bool:
    """Whether a path is that of what was staged for `directory`: what a note names is copied, and removed."""
    parent, name = os.path.split(bucket.normal(directory))
    beside, temporary_name = os.path.split(staged)
    return beside == parent and temporary.is_temporary(temporary_name) and temporary.final_name(temporary_name) == name


class Claim:
    """The note of this process in a directory, from `__init__` until `release`."""

    def __init__(self, directory: str, action: Action, staged: str | None = None, over: bytes | None = None) -> None:
        """Writes the note.

        Args:
          directory: where.
          action, staged: as of `Note`.
          over: generation of the note to write over; None for whatever note a dead process left, or none.

        Raises:
          FileExistsError: a running process is at work there.
          OSError: with errno.
        """
        self._path = os.path.join(directory, FILE)
        self._note = Note(action, staged, processes.host(), os.getpid(), processes.start(), secrets.token_hex(8), 0.0)
        _active[self._note.token] = self
        self._ended = threading.Event()
        self._renewing: threading.Thread | None = None
        try:
            there, generation = read_versioned(directory)
            if over not in (None, generation):
                raise bucket.ChangedError(errno.EAGAIN, "The note there is another one now", self._path)
            if there is not None and there.live:
                raise FileExistsError(
                    errno.EEXIST, f"{there.owner.capitalize()} is at work there (a {there.action})", directory
                )
            self._generation = self._write(generation)
        except BaseException as error:
            _active.pop(self._note.token, None)
            if isinstance(error, bucket.ChangedError):
                raise FileExistsError(
                    errno.EEXIST, "Another process began to work there at the same time", directory
                ) from error
            raise
        with contextlib.suppress(RuntimeError):  # The program is ending: no thread can be started any more.
            self._renewing = threading.Thread(
                target=_keep, args=(weakref.ref(self), self._ended), name="jaxckpt-claim", daemon=True
            )
            self._renewing.start()

    def _content(self) -> bytes:
        fields = {name: getattr(self._note, name) for name in Note.__dataclass_fields__}
        return json.dumps({**fields, "time": time.time()}).encode()

    def _write(self, expected: bytes) -> bytes:
        """Writes the note over what has a generation; returns its new one. Raises ChangedError if somebody else was there."""
        try:
            return bucket.write(self._path, self._content(), expected)
        except bucket.ChangedError:
            there, generation = read_versioned(os.path.dirname(self._path))
            if there is None or there.token != self._note.token:
                raise
            return generation  # It was written, but the answer got lost, and what tried again found its own work.

    def renew(self) -> bool:
        """Writes the note anew. Returns whether it is still this one's."""
        try:
            self._generation = self._write(self._generation)
        except bucket.ChangedError:
            # Another process took this one for dead; `confirm` says so.
            return False
        except OSError as error:
            _log.warning("Could not renew %s: %s", self._path, error)
        return True

    def confirm(self) -> None:
        """Makes sure, before a commit, that nobody has taken this process for dead and the directory over.

        Raises:
          OSError: somebody has.
        """
        there = read(os.path.dirname(self._path))
        if there is None or there.token != self._note.token:
            raise OSError(
                errno.ECANCELED,
                f"Another process took this save for dead, because it had been silent for {DEAD_AFTER_SECS:g} s, and removed it",
                os.path.dirname(self._path),
            )

    def stop(self) -> None:
        """Leaves the note as it is, that of a dead process: what stands there is a leftover."""
        self._ended.set()
        if self._renewing is not None and self._renewing.ident is not None:
            self._renewing.join(RENEW_SECS)
        _active.pop(self._note.token, None)

    def release(self) -> None:
        """Removes the note: the work is done. Raises OSError."""
        self.stop()
        bucket.remove(self._path)


def _keep(claim: "weakref.ref[Claim]", ended: threading.Event) -> None:
    """Keeps the note of a claim fresh until it ends, or has been dropped."""
    while not ended.wait(RENEW_SECS):
        held = claim()
        if held is None or not held.renew():
            return
        del held
