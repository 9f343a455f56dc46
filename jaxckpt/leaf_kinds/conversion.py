"""Converts stored numbers to another dtype of the same kind, where that is allowed. Checks every value, so that none is loaded wrongly."""

import enum
import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxckpt._lib.aligned import aligned_empty
from jaxckpt.leaf_kinds.dtypes import number_kind

# Numbers converted at a time, so that temporary arrays stay small.
_BLOCK = 1 << 18
# JAX's versions, because they also know the dtypes that numpy does not have.
_finfo: Any = jnp.finfo
_iinfo: Any = jnp.iinfo


class Rule(enum.Enum):
    """How a conversion may change a value."""

    EXACT = "the value must be representable"
    ROUND = "a Python float is rounded to the nearest, as JAX does when a program makes an array of it"
    CAST = "the caller has asked for it"


@dataclass(frozen=True)
class Conversion:
    """How the numbers of one leaf get the dtype of its target.

    Attributes:
      name: the leaf's name, for errors.
      path: the checkpoint's path, for errors.
      stored: the dtype of the stored numbers.
      dtype: the target's dtype.
      rule: how values may change.
    """

    name: str
    path: str
    stored: np.dtype[Any]
    dtype: np.dtype[Any]
    rule: Rule

    @property
    def change(self) -> str:
        """Both dtypes, as a text."""
        return f"{self.stored} → {self.dtype}"

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Returns a new array of the target's dtype.

        Args:
          stored: the stored numbers.

        Raises:
          ValueError: the dtype cannot hold a value; the message names the leaf, the value and the dtype.
        """
        new = aligned_empty(stored.shape, self.dtype)
        source, target = np.ascontiguousarray(stored).reshape(-1), new.reshape(-1)
        if number_kind(self.dtype) == "c":
            # Real and imaginary part must fit each.
            source, target = source.view(source.real.dtype), target.view(target.real.dtype)
        convert = self._integers if number_kind(self.dtype) == "i" else self._floats
        for start in range(0, source.size, _BLOCK):
            convert(source[start : start + _BLOCK], target[start : start + _BLOCK])
        return new

    def _integers(self, source: np.ndarray, target: np.ndarray) -> None:
        limits = _iinfo(self.dtype)
        # Compared as Python ints, because numpy turns an int64 and a uint64 into floats.
        for value in (int(source.min()), int(source.max())):
            if not int(limits.min) <= value <= int(limits.max):
                raise self._refusal(value, f"holds {limits.min} to {limits.max}")
        target[...] = source.astype(target.dtype)

    def _floats(self, source: np.ndarray, target: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            target[...] = source.astype(target.dtype)
            if _holds_all(target.dtype, source.dtype):
                return
            largest = float(_finfo(target.dtype).max)
            bad = (np.isnan(source) != np.isnan(target)) | (np.isinf(source) != np.isinf(target))
            if not np.isinf(np.asarray(np.inf).astype(target.dtype)):
                # A dtype without infinity may turn every larger number into its largest one.
                bad |= np.isfinite(source) & (np.abs(source.astype(np.float64)) > largest)
            if bad.any():
                raise self._refusal(source[bad][0], f"holds finite numbers up to {largest:.6g}")
            if self.rule is Rule.EXACT:
                bad = (target.astype(source.dtype) != source) & ~np.isnan(source)
                if bad.any():
                    nearest = target[bad][0]
                    raise self._refusal(source[bad][0], f"has {nearest} as the nearest number")

    def _refusal(self, value: Any, reason: str) -> ValueError:
        advice = "Restore into a target of the stored dtype, or of a wider one."
        if self.rule is Rule.EXACT and number_kind(self.dtype) != "i":
            advice = (
                "Restore into a target of the stored dtype, or pass cast=True to restore() or read(), which rounds."
            )
        return ValueError(
            f"{self.name}: {self.path} holds {value}, which the target's dtype {self.dtype} cannot hold: it {reason}. {advice}"
        )


@functools.cache
def _holds_all(wide: Any, narrow: Any) -> bool:
    """Whether the floating dtype `wide` holds every number of the dtype `narrow`."""
    if {wide, narrow} - {np.dtype(each) for each in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64)}:
        return False
    a, b = _finfo(wide), _finfo(narrow)
    return bool(a.nmant >= b.nmant and a.maxexp >= b.maxexp)


def scalar_rule(stored: np.dtype[Any], note: str | None) -> Rule:
    """Returns the rule for a scalar.

    A Python float does not have a dtype: it is stored in 64 bits, and JAX rounds it when a program makes an array of it. So it may be
    rounded here too. The dtype of a numpy scalar was chosen by the program, so its value must stay exact; so must an int.

    Args:
      stored: the stored dtype.
      note: the word of the leaf's note; None for a Python scalar.
    """
    return Rule.ROUND if note is None and stored in _PYTHON else Rule.EXACT


_PYTHON = (np.dtype(np.float64), np.dtype(np.complex128))
