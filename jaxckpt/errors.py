"""The errors of jaxckpt: one hierarchy. Each error is also a subclass of the builtin that a caller would catch."""

from collections.abc import Iterable
from typing import Self


class CheckpointError(Exception):
    """Base class of every error that is specific to jaxckpt."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """A checkpoint, or a part of it, is damaged. The message names the leaf or the file.

    Restoring, reading and verifying raise it. A restore that raises it has not changed any target.

    Attributes:
      where: the name of the leaf or the path of the file that is damaged; None if the error is not about a single one.
      what: what is wrong with it; None if `where` is None.
    """

    def __init__(self, message: str = "", *, where: str | None = None, what: str | None = None) -> None:
        """Creates the error; `at` builds the message of an error about one leaf or file.

        Args:
          message: the text.
          where: see the attribute.
          what: see the attribute.
        """
        super().__init__(message)
        self.where = where
        self.what = what

    @classmethod
    def at(cls, where: str, what: str) -> Self:
        """Returns an error about one leaf or file.

        Args:
          where: the name of the leaf, or the path of the file.
          what: what is wrong with it, and what to do about it.
        """
        return cls(f"{where}: {what}", where=where, what=what)


class ConfigError(CheckpointError, ValueError):
    """A config file or mapping holds mistakes; the message lists all of them."""


class ProcessError(CheckpointError, RuntimeError):
    """Another process of the job failed, did not join in time, or made a different call.

    Attributes:
      processes: indices of the processes that the error is about, ascending.
    """

    def __init__(self, message: str, processes: Iterable[int] = ()) -> None:
        """Creates the error.

        Args:
          message: the text.
          processes: indices of the processes that the error is about.
        """
        super().__init__(message)
        self.processes: tuple[int, ...] = tuple(sorted(processes))

    def __reduce__(self) -> tuple[type["ProcessError"], tuple[str, tuple[int, ...]]]:
        return type(self), (str(self), self.processes)
