"""The owner of unfinished work: the process that does it, and whether it may still be running.

A killed process leaves files behind. So all unfinished work names its owner: a temporary directory in its name, a directory in a bucket
in a lease. The operating system says whether a process of this machine (and process namespace) is running. For a process on another
machine, all we know is when it last gave a sign of life.
"""

import os
import re
import secrets
import weakref
from dataclasses import dataclass

from jaxckpt._lib import processes

MARK = ".jaxckpt-tmp-"
_NAME = re.compile(
    r"(?P<final>.+)\.jaxckpt-tmp-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-(?P<token>[0-9a-f]{8})", re.DOTALL
)
# Running work of this process, by token. Work that an interrupt dropped disappears from it, so its files count as leftovers.
_at_work: "weakref.WeakValueDictionary[str, object]" = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Owner:
    """One piece of work of one process.

    Attributes:
      host: identifies the machine and the process namespace.
      pid: process id.
      start: start time of the process, which tells it from a later one with the same `pid`; 0 if it is not known.
      token: tells this work from other work of the same process.
    """

    host: str
    pid: int
    start: int
    token: str

    @classmethod
    def new(cls, token_bytes: int) -> "Owner":
        """Returns this process as the owner of a new piece of work.

        Args:
          token_bytes: number of random bytes in the token.
        """
        return cls(processes.host(), os.getpid(), processes.start(), secrets.token_hex(token_bytes))

    def begin(self, work: object) -> None:
        """Marks the work as running.

        Args:
          work: the object that does the work. When it is garbage-collected, the work counts as over.
        """
        _at_work[self.token] = work

    def end(self) -> None:
        """Marks the work as over. Idempotent."""
        _at_work.pop(self.token, None)

    @property
    def is_this_process(self) -> bool:
        """Whether this process does the work, and has not ended it."""
        return self.token in _at_work and self.pid == os.getpid() and self.host == processes.host()

    def is_alive(self, silent_secs: float, patience_secs: float) -> bool:
        """Whether the work may still be running.

        Args:
          silent_secs: seconds since the owner's last sign of life.
          patience_secs: if an owner on another machine has been silent for this many seconds, it counts as dead.
        """
        if self.host != processes.host():
            return silent_secs < patience_secs
        if self.pid == os.getpid() and self.token not in _at_work:
            return False
        return processes.is_running(self.pid, self.start)

    def in_words(self, alive: bool) -> str:
        """Returns the process in words, for a message.

        Args:
          alive: the result of `is_alive`.
        """
        where = "" if self.host == processes.host() else " on another machine"
        return f"process {self.pid}{where}" + ("" if alive else ", which has ended")


def temporary_path(final: str, owner: Owner) -> str:
    """Returns the path of the temporary directory in which an owner works.

    Args:
      final: path of the checkpoint or file that the work is for. The directory is beside it.
      owner: the owner, whose token has four bytes.
    """
    return f"{final}{MARK}{owner.host}-{owner.pid}-{owner.start}-{owner.token}"


def of_temporary(name: str) -> tuple[str, Owner] | None:
    """Parses the name of a temporary directory of jaxckpt.

    Args:
      name: name of a directory, without its path.

    Returns:
      The name of the checkpoint or file that it was made for, and its owner; None for any other name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return match["final"], Owner(match["host"], int(match["pid"]), int(match["start"]), match["token"])


def is_temporary(name: str) -> bool:
    """Whether a name is that of a temporary directory of jaxckpt."""
    return _NAME.fullmatch(name) is not None


def final_name(name: str) -> str:
    """Returns the name of the checkpoint that the temporary directory `name` was made for. Returns any other name unchanged."""
    match = _NAME.fullmatch(name)
    return name if match is None else match["final"]
