"""``losses.csv``: a log with the loss of every step, which is correct even if the program is killed at any moment."""

import os
from typing import Self

import numpy as np

_HEADER = b"step,loss\n"


class LossLog:
    """Appends a line for every step. After a restore, removes the steps that the restored checkpoint does not have.

    Each line is written with one system call before its step can be saved, so the log of a killed program has every step that
    a checkpoint has. When training resumes, an incomplete last line and the steps after the restored checkpoint are removed.
    """

    def __init__(self, path: str, last_step: int) -> None:
        """Opens or creates the log, and removes the lines after a step.

        Args:
          path: path of the file.
          last_step: the last step whose line stays.

        Raises:
          ValueError: the file at `path` is not a log of losses.
          OSError: the file cannot be written.
        """
        self.path = path
        # Closed by __exit__.
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        self._file.seek(0)
        content = self._file.readall() or b""
        if not content.startswith(_HEADER) and not _HEADER.startswith(content):
            self._file.close()
            raise ValueError(f"{path}: this file is not a log of losses. Move it, or choose another --dir.")
        self._file.truncate(_end_of(content, last_step))
        if len(content) < len(_HEADER):
            self._file.truncate(0)
            self._file.write(_HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, step: int, loss: np.float32) -> None:
        """Adds the line of a step.

        Args:
          step: number of the step.
          loss: its loss, written with the fewest digits that give exactly the same float32.
        """
        self._file.write(f"{step},{loss!s}\n".encode())


def read(path: str) -> tuple[list[int], list[float]]:
    """Returns the steps and the losses of the log at `path`; empty lists if the file does not exist."""
    if not os.path.exists(path):
        return [], []
    with open(path, encoding="ascii") as file:
        rows = [line.split(",") for line in file.read().splitlines()[1:]]
    return [int(step) for step, _ in rows], [float(loss) for _, loss in rows]


def _end_of(content: bytes, last_step: int) -> int:
    """Returns the position after the complete lines of steps up to `last_step`."""
    end = len(_HEADER) if content.startswith(_HEADER) else 0
    for line in content[end:].splitlines(keepends=True):
        step = line.partition(b",")[0]
        if not line.endswith(b"\n") or not step.isdigit() or int(step) > last_step:
            break
        end += len(line)
    return end
