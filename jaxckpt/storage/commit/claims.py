"""Notes that say who works on a directory, so that what a dead process left can be told from a save that is running.

A note is written anew while the work goes on: for a process on another machine, that is the sign of life.
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
# Clocks of machines differ by less, and a storage server that is away for longer makes the save fail.
DEAD_AFTER_SECS = 900.0
Action = Literal["save", "stage", "replace", "delete"]
_ACTIONS: dict[str, Action] = {"save": "save", "stage": "stage", "replace": "replace", "delete": "delete"}
_log = logging.getLogger("jaxckpt")


@dataclass(frozen=True, slots=True)
class Note:
    """Who works on a directory.

    Attributes:
      action: what is being done: "save" and "stage" write a checkpoint, "replace" exchanges one for what was staged, "delete" removes one.
      staged: for "replace": the directory that holds the new checkpoint.
      owner: whose work it is.
      time: when the note was written, in seconds since the epoch.
    """

    action: Action
    staged: str | None
    owner: Owner
    time: float

    @property
    def age_secs(self) -> float:
        """Seconds since the note was written."""
        return max(0.0, time.time() - self.time)

    @property
    def live(self) -> bool:
        """Whether the owner may still be at work."""
        return self.owner.is_alive(self.age_secs, DEAD_AFTER_SECS)

    @property
    def in_words(self) -> str:
        """The owner, for a message."""
        return self.owner.in_words(self.live)


def read(directory: str) -> Note | None:
    """Returns the note of a directory; None if there is none (or none that can be understood). Raises OSError."""
    return read_versioned(directory)[0]


def read_versioned(directory: str) -> tuple[Note | None, bytes]:
    """Returns the note of a directory, as `read`, and the version of its file."""
    try:
        content, version = stores.read_versioned(os.path.join(directory, FILE))
    except NotADirectoryError:
        # A file is in the place of the directory.
        content, version = None, stores.ABSENT
    return None if content is None else _parsed(content, directory), version


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
    """Whether a path is that of what was staged for `directory`: what a note names is copied, and removed."""
    parent, name = os.path.split(stores.absolute(directory))
    beside, temporary_name = os.path.split(staged)
    return beside == parent and owner.is_temporary(temporary_name) and owner.final_name(temporary_name) == name


class Claim:
    """The note of this process in a directory, from `__init__` until `release`."""

    def __init__(self, directory: str, action: Action, staged: str | None = None, over: bytes | None = None) -> None:
        """Writes the note.

        Args:
          directory: where.
          action, staged: as of `Note`.
          over: version of the note to write over; None for whatever note a dead process left, or none.

        Raises:
          FileExistsError: a running process is at work there.
          OSError: with errno.
        """
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
                raise stores.ChangedError(errno.EAGAIN, "The note there is another one now", self._path)
            if there is not None and there.live:
                raise FileExistsError(
                    errno.EEXIST, f"{there.in_words.capitalize()} is at work there (a {there.action})", directory
                )
            self._version = self._write(version)
        except BaseException as error:
            self._owner.end()
            if isinstance(error, stores.ChangedError):
                raise FileExistsError(
                    errno.EEXIST, "Another process began to work there at the same time", directory
                ) from error
            raise
        # Where the program is ending, no thread can be started any more.
        with contextlib.suppress(RuntimeError):
            self._renewing = threading.Thread(
                target=_keep, args=(weakref.ref(self), self._ended), name="jaxckpt-claim", daemon=True
            )
            self._renewing.start()

    def _content(self) -> bytes:
        owner = self._owner
        fields = {"action": self._action, "staged": self._staged}
        process = {"host": owner.host, "pid": owner.pid, "start": owner.start, "token": owner.token}
        return json.dumps({**fields, **process, "time": time.time()}).encode()

    def _write(self, expected: bytes) -> bytes:
        """Writes the note over the version that is expected; returns its new one. Raises ChangedError if somebody else was there."""
        try:
            return stores.write_if(self._path, self._content(), expected)
        except stores.ChangedError:
            there, version = read_versioned(os.path.dirname(self._path))
            if there is None or there.owner != self._owner:
                raise
            # It was written, but the answer got lost, and what tried again found its own work.
            return version

    def renew(self) -> bool:
        """Writes the note anew. Returns whether it is still this one's."""
        try:
            self._version = self._write(self._version)
        except stores.ChangedError:
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
        if there is None or there.owner != self._owner:
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
        self._owner.end()

    def release(self) -> None:
        """Removes the note: the work is done. Raises OSError."""
        self.stop()
        stores.remove(self._path)


def _keep(claim: "weakref.ref[Claim]", ended: threading.Event) -> None:
    """Keeps the note of a claim fresh until it ends, or has been dropped."""
    while not ended.wait(RENEW_SECS):
        held = claim()
        if held is None or not held.renew():
            return
        del held
