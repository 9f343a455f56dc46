"""Detects a common mistake: the program updates its own variable and not the Checkpoint, so every save stores the first arrays again.

For example::

    params = update(params)
    manager.save()  # Saves checkpoint.params, which is still the first value.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxckpt._lib import user_code
from jaxckpt.tree.flatten import Flat

_STEPS = frozenset({"step", "steps", "global_step", "iteration", "iterations", "epoch"})


@dataclass
class Seen:
    """The values that one save stored. Refers to arrays weakly, so that it does not keep them alive.

    Attributes:
      step: the manager's step; None if there is none.
      steps: each value whose name says that it is a step counter, or a weak reference to it.
      arrays: a weak reference to each other jax.Array.
      texts: the strings and bytes, such as the states of data iterators.
      learns: whether there is an array that training would change (one of a floating dtype).
      is_frozen: whether a value that is the same object must have the same content. Not so for NumPy arrays, which are mutable.
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
        """Forgets the last save. Called after a restore, which replaces the values."""
        self._last = None

    def saved(self, seen: Seen) -> None:
        """Warns, once, if the step has moved since the last save and the arrays are still the same objects.

        Args:
          seen: the values of this save.
        """
        last, self._last = self._last, seen
        if self._has_warned or last is None or not _is_stale(last, seen):
            return
        self._has_warned = True
        user_code.warn(
            "The step has moved since the last save, but every array of this Checkpoint is still the very same object. A Checkpoint "
            "keeps the values that were assigned to it: after `params = update(params)` assign `checkpoint.params = params`, and then "
            "save. (If the arrays are not meant to change, ignore this warning; it is issued once.)",
            UserWarning,
        )


def look(flats: Sequence[Flat], step: int | None) -> Seen:
    """Returns a record of the values that a save stores.

    Args:
      flats: the flattened values.
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
    # Compare the objects themselves: when one has died, another may have its address. In most programs the first pair differs.
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
