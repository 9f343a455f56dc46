"""Counts the bytes of one save or restore, for lines about its progress."""

import threading


class Transfer:
    """The bytes of one operation. Several threads may report to it.

    Attributes:
      total: how many bytes this process has to write or read, as far as it knows. 0 if it does not know yet.
      done: how many of them it has written or read.
    """

    def __init__(self) -> None:
        """Creates a transfer of which nothing is known yet."""
        self.total = 0
        self.done = 0
        self._lock = threading.Lock()

    def expect(self, nbytes: int) -> None:
        """Adds to `total`.

        Args:
          nbytes: bytes that this process is about to write or read.
        """
        with self._lock:
            self.total += nbytes

    def add(self, nbytes: int) -> None:
        """Adds to `done`.

        Args:
          nbytes: bytes that have been written or read.
        """
        with self._lock:
            self.done += nbytes
