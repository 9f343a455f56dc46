"""Who owns unfinished work: which process does it, and whether that process may still be at it.

A killed process leaves things behind. All unfinished work therefore says whose it is: a temporary directory by its name, a directory in a
bucket by a note in it. A process of this machine (and process namespace) is alive as long as the system says so. Of a process on
another machine, all we know is when it last gave a sign of life.
"""

import os
import re
import secrets
import weakref
from dataclasses import dataclass

from jaxckpt._lib import processes

_MARK = ".jaxckpt-tmp-"
_NAME = re.compile(
    r"(?P<final>.+)\.jaxckpt-tmp-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-(?P<token>[0-9a-f]{8})", re.DOTALL
)
# Work of this process that goes on, by token. Work that an interrupt dropped is not in it: what it left is nobody's.
_at_work: "weakref.WeakValueDictionary[str, object]" = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Owner:
    """One piece of work of one process.

    Attributes:
      host: identifies the machine and the process namespace.
      pid: of the process.
      start: when the process started, which tells it from a later one with the same `pid`; 0 for not known.
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
          token_bytes: how many random bytes the token stands for.
        """
        return cls(processes.host(), os.getpid(), processes.start(), secrets.token_hex(token_bytes))

    def begin(self, work: object) -> None:
        """Notes that this process is at work.

        Args:
          work: the object that does the work. When it is gone, the work is over, whether it was ended or dropped.
        """
        _at_work[self.token] = work

    def end(self) -> None:
        """Notes that the work is over. Idempotent."""
        _at_work.pop(self.token, None)

    def is_alive(self, silent_secs: float, patience_secs: float) -> bool:
        """Whether the work may still be going on.

        Args:
          silent_secs: how long ago the owner gave its last sign of life, in seconds.
          patience_secs: an owner on another machine that has been silent for longer is dead.
        """
        if self.host != processes.host():
            return silent_secs < patience_secs
        if self.pid == os.getpid() and self.token not in _at_work:
            return False
        return processes.is_running(self.pid, self.start)

    def in_words(self, alive: bool) -> str:
        """Returns which process it is, for a message.

        Args:
          alive: what `is_alive` says.
        """
        where = "" if self.host == processes.host() else " of another machine"
        return f"process {self.pid}{where}" + ("" if alive else ", which has ended")


def temporary_path(final: str, owner: Owner) -> str:
    """Returns the path of the temporary directory beside `final` in which an owner works.

    Args:
      final: path of what the directory is for.
      owner: whose token stands for four bytes.
    """
    return f"{final}{_MARK}{owner.host}-{owner.pid}-{owner.start}-{owner.token}"


def of_temporary(name: str) -> tuple[str, Owner] | None:
    """Returns what a temporary directory of jaxckpt was made for, and by whom; None for any other name.

    Args:
      name: of the directory, without the path.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return match["final"], Owner(match["host"], int(match["pid"]), int(match["start"]), match["token"])


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a temporary directory of jaxckpt."""
    return _NAME.fullmatch(name) is not None


def final_name(name: str) -> str:
    """Returns the name of the checkpoint that the temporary directory `name` was made for; any other name as it is."""
    match = _NAME.fullmatch(name)
    return name if match is None else match["final"]
