"""``losses.csv``: the loss of every step, correct after a kill at any moment."""

import os
from typing import Self

import numpy as np

_HEADER = b"step,loss\n"


class LossLog:
    """Appends a line for every step, and takes back the steps that a restore takes back.

    Each line goes to the system with one write as soon as it is known, so a killed program loses no line of a step that
    a checkpoint may hold. What a kill cut short, and the steps after the checkpoint that is restored, are removed before
    training goes on.
    """

    def __init__(self, path: str, last_step: int) -> None:
        """Opens the log at `path`, or makes it, and removes what comes after `last_step`.

        Raises:
          ValueError: the file is something else.
          OSError: it cannot be written.
        """
        self.path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by close()
        self._file.seek(0)
        content = self._file.readall() or b""
        if not content.startswith(_HEADER) and not _HEADER.startswith(content):
            self._file.close()
            raise ValueError(
                f"{path}: this file is in the way: it is no log of losses. Move it, or choose another --dir."
            )
        self._file.truncate(_end_of(content, last_step))
        if len(content) < len(_HEADER):
            self._file.truncate(0)
            self._file.write(_HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, step: int, loss: np.float32) -> None:
        """Adds a step. The text of the loss is the shortest that gives exactly the same float32."""
        self._file.write(f"{step},{loss!s}\n".encode())


def read(path: str) -> tuple[list[int], list[float]]:
    """Returns the steps and the losses of a log; nothing if there is no log."""
    if not os.path.exists(path):
        return [], []
    with open(path, encoding="ascii") as file:
        rows = [line.split(",") for line in file.read().splitlines()[1:]]
    return [int(step) for step, _ in rows], [float(loss) for _, loss in rows]


def _end_of(content: bytes, last_step: int) -> int:
    """Returns where the complete lines of steps up to `last_step` end."""
    end = len(_HEADER) if content.startswith(_HEADER) else 0
    for line in content[end:].splitlines(keepends=True):
        step = line.partition(b",")[0]
        if not line.endswith(b"\n") or not step.isdigit() or int(step) > last_step:
            break
        end += len(line)
    return end
