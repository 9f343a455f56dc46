"""Programs as forks of this process, which has imported everything and used nothing yet: a program starts in milliseconds."""

import os
import sys
from collections.abc import Callable


class ChildProgram(BaseException):
    """Carries the program of a child process out of the loop that started it, so that it ends as any program does."""


def fork(program: Callable[[int], int], output: int) -> tuple[int, int]:
    """Starts a program, whose stderr goes to a file.

    Args:
      program: is given a descriptor that it may write to, and returns its exit status.
      output: descriptor of the file.

    Returns:
      The process id, and a descriptor from which to read what the program writes.

    Raises:
      ChildProgram: in the child process.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.dup2(output, 2)
        raise ChildProgram(lambda: program(write))
    os.close(write)
    return pid, read
