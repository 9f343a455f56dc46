"""Decides when a manager saves: reads the step counter, and remembers which steps count as saved."""

import numbers
import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(eq=False)
class SavedStep:
    """A step that counts as saved, from the start of its save until the save fails.

    Attributes:
      step: the step.
      is_saved: whether its save has succeeded.
    """

    step: int
    is_saved: bool = False


class SavedSteps:
    """Remembers which step was saved last while saves are running. If a save fails, its step no longer counts.

    Safe for several threads. Never waits for a save.
    """

    def __init__(self, last: int | None) -> None:
        """Starts with one saved step.

        Args:
          last: the step; None if there is none.
        """
        self._lock = threading.Lock()
        # The last saved step (if any), then the steps of running saves.
        self._steps = [] if last is None else [SavedStep(last, is_saved=True)]

    @property
    def last(self) -> int | None:
        """The step that counts as saved last; None if none does."""
        with self._lock:
            return self._steps[-1].step if self._steps else None

    def begin(self, current: int, interval: int | None) -> SavedStep | None:
        """Counts the current step as saved and returns it, if it is time for a save; otherwise returns None.

        Args:
          current: the current step.
          interval: smallest number of steps between two saves; None if every step other than the last saved one is due.
        """
        with self._lock:
            last = self._steps[-1].step if self._steps else None
            if last is not None and (current == last or (interval is not None and current < last + interval)):
                return None
            self._steps.append(SavedStep(current))
            return self._steps[-1]

    def commit(self, step: SavedStep) -> None:
        """Notes that the save of a step has succeeded."""
        with self._lock:
            step.is_saved = True
            self._steps = [step, *(other for other in self._steps if other is not step and not other.is_saved)]

    def fail(self, step: SavedStep) -> None:
        """Notes that the save of a step has failed, so that the step before it counts again. No effect after `commit`."""
        with self._lock:
            if not step.is_saved:
                self._steps = [other for other in self._steps if other is not step]

    def restored(self, step: int) -> None:
        """Makes the step of a restored checkpoint the last saved one."""
        with self._lock:
            self._steps = [SavedStep(step, is_saved=True)]


def step_reader(step_counter: Any) -> Callable[[], int]:
    """Returns a function that reads a step counter.

    Args:
      step_counter: a function without arguments; or an object with `__int__` or `__index__` whose value can change, such as an NNX
        Variable or a numpy array without dimensions. Such an object is read once here, to check that it gives a step.

    Raises:
      TypeError: `step_counter` is neither. The returned function raises TypeError if the value is not a step.
      ValueError: the object's value can never change, so only the first step would ever be saved.
    """
    kind = type(step_counter)
    # An NNX Variable is callable too (it forwards the call to its value), so `__int__` is checked first.
    if callable(step_counter) and not (hasattr(kind, "__int__") or hasattr(kind, "__index__")):
        return lambda: _step(step_counter())
    if step_counter is None:
        return lambda: _step(step_counter)
    _step(step_counter)
    if _never_changes(step_counter):
        raise ValueError(
            f"step_counter={step_counter!r} can never change, so the manager would save this step and then nothing "
            "more. Give a function that reads the current step: step_counter=lambda: checkpoint.step"
        )
    return lambda: _step(step_counter)


def _never_changes(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        # A read-only view changes if it is a view of a writable array.
        while isinstance(value, np.ndarray):
            if value.flags.writeable:
                return False
            value = value.base
        return True
    return isinstance(value, (numbers.Number, np.generic, jax.Array))


def _refuse_other_kinds(value: Any) -> None:
    shape, kind = getattr(value, "shape", ()), getattr(getattr(value, "dtype", None), "kind", "")
    # The letters are numpy's kinds of dtypes: bool, bytes, str, object, timedelta and datetime.
    if (
        isinstance(value, (bool, str, bytes, bytearray))
        or kind in tuple("bSUOmM")
        or (isinstance(shape, tuple) and shape)
    ):
        advice = (
            " Give a function that reads it: step_counter=lambda: checkpoint.step." if isinstance(value, str) else ""
        )
        raise TypeError(f"step_counter must give the current step, an int; got {value!r}.{advice}")


def _step(value: Any) -> int:
    _refuse_other_kinds(value)
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"step_counter must give the current step, an int; got {type(value).__name__}: {error}"
        ) from error
    if _is_fraction_of(number, value):
        raise TypeError(f"step_counter must give the current step, an int; got {value!r}.")
    return number


def _is_fraction_of(number: int, value: Any) -> bool:
    """Whether `int()` cut off a fraction. An object that has only `__int__` counts as whole."""
    try:
        return hasattr(type(value), "__float__") and number != float(value)
    except (TypeError, ValueError, OverflowError):
        return False
