"""`save_counter`: which number the next save of a Checkpoint takes."""

import os
from typing import Any

from jaxckpt._lib import numbering
from jaxckpt.directory import free_numbers, paths, registration


class SaveCounter:
    """The counter of one Checkpoint, and the numbers that its saves have been given.

    Attributes:
      number: the number used by the most recent save. A save with a number of the caller's choice only increments it.
    """

    def __init__(self) -> None:
        self.number = 0
        # Absolute prefix → the highest number that a save got there. After restoring an older checkpoint such a number is not given
        # again, whether its checkpoint has been deleted or not.
        self._given: dict[str, int] = {}

    def copy(self) -> "SaveCounter":
        """Returns another counter that has counted the same saves."""
        other = SaveCounter()
        other.number, other._given = self.number, dict(self._given)
        return other

    def assign(self, value: Any) -> None:
        """Lets the program decide which number comes next.

        Args:
          value: the number of the last save.

        Raises:
          TypeError: it is not an int.
          ValueError: it is out of range.
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
          owner: the save, which the reservation lasts no longer than.
          prefix: directory and name, as they were given.
          place: the same as an absolute path.
          number: that of the caller's choice, whose checkpoint may be replaced; None for the next one.

        Returns:
          The value of `save_counter` after the save, and the path of the checkpoint.

        Raises:
          CheckpointError: the directory holds TensorFlow's checkpoints.
          OSError: with errno; the directory cannot be read.
        """
        exact = paths.spelled(prefix)
        registration.refuse_tensorflow(os.path.dirname(paths.absolute(exact)))
        if number is None:
            return free_numbers.reserve_unused(owner, exact, self.number + 1, self._given.get(place, 0))
        path = numbering.name_of(exact, number)
        free_numbers.reserve(owner, path)
        # As in TensorFlow, a number of the caller's choice leaves the counter to count saves.
        return self.number + 1, path

    def give(self, place: str, number: int) -> None:
        """Notes that a save got a number, which no later one gets.

        Args:
          place: directory and name, as an absolute path.
          number: of the checkpoint.
        """
        self._given[place] = max(self._given.get(place, 0), number)
