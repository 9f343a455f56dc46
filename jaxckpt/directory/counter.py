"""`save_counter`: chooses the number of the next save of a Checkpoint."""

import os
from typing import Any

from jaxckpt._lib import numbering
from jaxckpt.directory import free_numbers, paths, registration


class SaveCounter:
    """The counter of one Checkpoint, and the numbers that its saves have used.

    Attributes:
      number: the number used by the most recent save. A save with an explicit number only increments it.
    """

    def __init__(self) -> None:
        self.number = 0
        # Absolute prefix → the highest number that a save used there. Such a number is never used again, even after an older checkpoint was
        # restored, and even if the checkpoint of that number was deleted.
        self._given: dict[str, int] = {}

    def copy(self) -> "SaveCounter":
        """Returns a copy of the counter. It counts on independently."""
        other = SaveCounter()
        other.number, other._given = self.number, dict(self._given)
        return other

    def assign(self, value: Any) -> None:
        """Sets the counter, so that the next save uses the number after it.

        Args:
          value: the number that counts as the last one used.

        Raises:
          TypeError: `value` is not an int.
          ValueError: `value` is out of range.
        """
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"save_counter must be an int, got {type(value).__name__}.")
        number = value.__index__()
        if not 0 <= number < 2**63:
            raise ValueError(f"save_counter must be from 0 to 2**63 - 1, got {number}.")
        self._given.clear()
        self.number = number

    def reserve(self, owner: object, prefix: str, place: str, number: int | None) -> tuple[int, str]:
        """Chooses and reserves the number of a save.

        Args:
          owner: the save. The reservation ends with it at the latest.
          prefix: directory and name, as the caller gave them.
          place: the same as an absolute path.
          number: the caller's explicit number, whose checkpoint may be replaced; None for the next free number.

        Returns:
          The value of `save_counter` after the save, and the path of the checkpoint.

        Raises:
          CheckpointError: the directory holds TensorFlow's checkpoints.
          OSError: the directory cannot be read; has errno.
        """
        exact = paths.spelled(prefix)
        registration.refuse_tensorflow(os.path.dirname(paths.absolute(exact)))
        if number is None:
            return free_numbers.reserve_unused(owner, exact, self.number + 1, self._given.get(place, 0))
        path = numbering.name_of(exact, number)
        free_numbers.reserve(owner, path)
        # As in TensorFlow, a save with an explicit number only increments the counter.
        return self.number + 1, path

    def give(self, place: str, number: int) -> None:
        """Notes that a save used a number, so that later saves do not use it again.

        Args:
          place: directory and name, as an absolute path.
          number: the checkpoint's number.
        """
        self._given[place] = max(self._given.get(place, 0), number)
