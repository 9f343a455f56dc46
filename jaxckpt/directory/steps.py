"""When a manager saves: the step counter, and which step counts as saved."""

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
    """A step that counts as saved: from the start of its save on, unless that fails."""

    step: int
    committed: bool = False


class SavedSteps:
    """Follows which step was saved last while saves are in flight: one that fails gives its place back.

    Safe for several threads; never waits for a save.
    """

    def __init__(self, last: int | None) -> None:
        self._lock = threading.Lock()
        # The last committed step (if any), then those of saves that have started and not ended.
        self._steps = [] if last is None else [SavedStep(last, committed=True)]

    @property
    def last(self) -> int | None:
        """The step that counts as saved last; None if none does."""
        with self._lock:
            return self._steps[-1].step if self._steps else None

    def begin(self, current: int, interval: int | None) -> SavedStep | None:
        """Counts the current step as saved, if it is time for a save; otherwise returns None.

        Args:
          current: the current step.
          interval: how many steps have to lie between two saves; None for any other step than the last one.
        """
        with self._lock:
            last = self._steps[-1].step if self._steps else None
            if last is not None and (current == last or (interval is not None and current < last + interval)):
                return None
            self._steps.append(SavedStep(current))
            return self._steps[-1]

    def commit(self, step: SavedStep) -> None:
        """The save of a step has succeeded."""
        with self._lock:
            step.committed = True
            self._steps = [step, *(other for other in self._steps if other is not step and not other.committed)]

    def fail(self, step: SavedStep) -> None:
        """The save of a step has failed: the step before it counts again. No effect after `commit`."""
        with self._lock:
            if not step.committed:
                self._steps = [other for other in self._steps if other is not step]

    def restored(self, step: int) -> None:
        """A checkpoint was restored: its step counts as saved."""
        with self._lock:
            self._steps = [SavedStep(step, committed=True)]


def step_reader(step_counter: Any) -> Callable[[], int]:
    """Returns a function that reads a step counter.

    Args:
      step_counter: a function without arguments, or an object with `__int__` or `__index__` whose value can change (an
        NNX Variable, a numpy array without dimensions), which is read once to see whether it gives a step.

    Raises:
      TypeError: it is neither. The function raises it as well.
      ValueError: it can never change, so only the first step would ever be saved.
    """
    kind = type(step_counter)
    # An NNX Variable can be called too: it forwards the call to its value.
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
        # A read-only view shows the changes of the array that it is a view of.
        while isinstance(value, np.ndarray):
            if value.flags.writeable:
                return False
            value = value.base
        return True
    return isinstance(value, (numbers.Number, np.generic, jax.Array))


def _refuse_other_kinds(value: Any) -> None:
    shape, kind = getattr(value, "shape", ()), getattr(getattr(value, "dtype", None), "kind", "")
    # Kinds of numpy's dtypes: bool, bytes, str, object, times.
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
    """Whether `int()` cut something off. An object with `__int__` alone says nothing else than that."""
    try:
        return hasattr(type(value), "__float__") and number != float(value)
    except (TypeError, ValueError, OverflowError):
        return False
