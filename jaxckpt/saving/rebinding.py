"""Notices a program that saves the same arrays again and again, because it updates its variables and not the Checkpoint::

params = update(params)
manager.save()  # Saves what checkpoint.params was at first.
"""

import sys
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxckpt.tree.flatten import Flat

_PACKAGE = __name__.partition(".")[0]
_STEPS = frozenset({"step", "steps", "global_step", "iteration", "iterations", "epoch"})


@dataclass
class Seen:
    """What one save was given. Keeps no array alive.

    Attributes:
      step: the manager's step; None if there is none.
      steps: of each value that is called like a step: itself, or what refers to it weakly.
      arrays: what refers weakly to each other array of JAX.
      texts: the strings and bytes, such as the states of data iterators.
      learns: whether there is an array that training would change.
      is_frozen: whether what is unchanged by identity is unchanged. NumPy's arrays can be written into.
    """

    step: int | None
    steps: list[Any] = field(default_factory=list)
    arrays: list["weakref.ref[Any]"] = field(default_factory=list)
    texts: list[str | bytes] = field(default_factory=list)
    learns: bool = False
    is_frozen: bool = False


class RebindingWatch:
    """Compares each save of a Checkpoint with the one before."""

    def __init__(self) -> None:
        self._last: Seen | None = None
        self._has_warned = False

    def forget(self) -> None:
        """Forgets the last save, because the values have been given others since, by a restore."""
        self._last = None

    def saved(self, seen: Seen) -> None:
        """Warns, once, if a save was given what the one before was given although the step has moved."""
        last, self._last = self._last, seen
        if self._has_warned or last is None or not _is_stale(last, seen):
            return
        self._has_warned = True
        warnings.warn(
            "The step has moved since the last save, but every array of this Checkpoint is still the very same object. A Checkpoint "
            "holds the values that it was given: after `params = update(params)` tell it, `checkpoint.params = params`, before it is "
            "saved. (If the arrays are not meant to change, ignore this warning; it comes once.)",
            UserWarning,
            stacklevel=_callers_level(),
        )


def look(flats: Sequence[Flat], step: int | None) -> Seen:
    """Returns what a save is given.

    Args:
      flats: the values, taken apart.
      step: the manager's step; None if there is none.
    """
    seen = Seen(step)
    rest = []
    for flat in flats:
        if len(flat.leaves) == 1 and len(flat.leaves[0].path) == 1 and flat.leaves[0].path[0].text in _STEPS:
            value = flat.leaves[0].value
            seen.steps.append(weakref.ref(value) if isinstance(value, jax.Array) else value)
        else:
            rest.append(flat)
    if step is None and not seen.steps:
        return seen
    leaves = [leaf.value for flat in rest for leaf in flat.leaves]
    kinds = set(map(type, leaves))
    jax_types = tuple(kind for kind in kinds if issubclass(kind, jax.Array))
    if any(issubclass(kind, np.ndarray) for kind in kinds):
        return seen
    seen.is_frozen = True
    seen.texts = [value for value in leaves if type(value) in (str, bytes)] if kinds & {str, bytes} else []
    arrays = [value for value in leaves if type(value) in jax_types]
    seen.learns = any(jnp.issubdtype(array.dtype, jnp.inexact) for array in arrays)
    seen.arrays = list(map(weakref.ref, arrays))
    return seen


def _is_stale(last: Seen, seen: Seen) -> bool:
    if not (seen.learns and seen.is_frozen and last.is_frozen) or len(seen.arrays) != len(last.arrays):
        return False
    # References to one object are one object, but after it has died, its address may be another's. Mostly the first differs.
    for one, other in zip(last.arrays, seen.arrays, strict=True):
        array = one()
        if array is None or array is not other():
            return False
    if last.texts != seen.texts:
        return False
    if last.step is not None and seen.step is not None and last.step != seen.step:
        return True
    return len(last.steps) == len(seen.steps) and any(map(_has_moved, last.steps, seen.steps))


def _has_moved(last: Any, now: Any) -> bool:
    if isinstance(last, weakref.ref) and isinstance(now, weakref.ref):
        return last() is not now()
    return type(last) is type(now) and bool(last != now)


def _callers_level() -> int:
    """Returns the `stacklevel` of the first caller outside of this package, for a call of `warnings.warn` by the caller."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level
