"""Checks of arguments. In each function `what` is the argument's name for the error message."""

import functools
import math
import operator
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

_Result = TypeVar("_Result")
_Error = TypeVar("_Error", TypeError, ValueError)
StrPath: TypeAlias = str | os.PathLike[str]


def type_name(value: Any) -> str:
    """Returns the name of a value's class, with its module, because two libraries may have classes of the same name."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class Refusal(NamedTuple):
    """Why an argument is refused, in words that do not name the argument.

    Attributes:
      reason: the words, without a full stop.
      says_expected: whether the words tell the expected and the given value ("expected a positive number, got 0").
    """

    reason: str
    says_expected: bool


def refusal(kind: type[_Error], subject: str, reason: str, *, expected: str = "") -> _Error:
    """Returns the error for a refused argument. `refusal_of` gets the reason back from it.

    Args:
      kind: TypeError or ValueError.
      subject: the argument's name, with its value if that helps.
      reason: why the argument is refused, without a full stop.
      expected: which values are allowed; empty if the reason says so.
    """
    may_be = f"; expected {expected}" if expected else ""
    return _carrying(kind(f"{subject}: {reason}{may_be}."), Refusal(reason, False))


def mismatch(kind: type[_Error], subject: str, expected: str, got: str) -> _Error:
    """Returns the error for an argument that differs from the expected one. `refusal_of` gets the reason back from it.

    Args:
      kind: TypeError or ValueError.
      subject: the argument's name.
      expected: which values are allowed.
      got: the given value, without a full stop.
    """
    reason = f"expected {expected}, got {got}"
    return _carrying(kind(f"{subject}: {reason}."), Refusal(reason, True))


def _carrying(error: _Error, refusal: Refusal) -> _Error:
    error.refusal = refusal  # type: ignore[attr-defined]
    return error


def refusal_of(error: TypeError | ValueError) -> Refusal:
    """Returns why an argument is refused: the reason given to `refusal` or `mismatch`, or the whole text of any other error."""
    found = getattr(error, "refusal", None)
    return found if isinstance(found, Refusal) else Refusal(str(error).rstrip("."), False)


def also_named(ours: str, theirs: str) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Lets callers pass a function's first argument under TensorFlow's name too.

    Args:
      ours: name of the first parameter.
      theirs: TensorFlow's name for it, accepted as a keyword. A call that gives both raises TypeError.
    """

    def decorate(function: Callable[..., _Result]) -> Callable[..., _Result]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> _Result:
            if theirs in named:
                if arguments or ours in named:
                    raise TypeError(
                        f"{function.__name__}() got both {ours} and {theirs}, which mean the same; give one."
                    )
                arguments = (named.pop(theirs),)
            return function(*arguments, **named)

        return call

    return decorate


def flag(what: str, value: object) -> bool:
    """Returns `value`, which must be a bool. Raises TypeError for anything else, numpy's bool included."""
    if not isinstance(value, bool):
        raise mismatch(TypeError, what, "True or False", f"{value!r} of type {type(value).__name__}")
    return value


def byte_count(what: str, value: object, least: int) -> int:
    """Returns a number of bytes as an int.

    Args:
      what: the argument's name.
      value: its value.
      least: the smallest number that is allowed.

    Raises:
      TypeError: `value` is not an int.
      ValueError: `value` is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise mismatch(TypeError, what, "a number of bytes as an int", f"{value!r} of type {type(value).__name__}")
    if not least <= value < 2**63:
        raise mismatch(ValueError, what, f"a number of bytes, at least {least} and less than 2**63", str(value))
    return int(value)


def seconds(what: str, value: object) -> float:
    """Returns a number of seconds that Python can wait for.

    Args:
      what: the argument's name.
      value: its value.

    Raises:
      TypeError: `value` is not a number.
      ValueError: `value` is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise mismatch(TypeError, what, "a number of seconds", f"{value!r} of type {type(value).__name__}")
    # This comparison refuses nan too.
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise mismatch(
            ValueError,
            what,
            f"a positive, finite number of seconds, at most {threading.TIMEOUT_MAX:.0f}",
            f"{value}. Every wait has a bound; give a large one to wait long",
        )
    return value if isinstance(value, int) else float(value)


def index(what: str, value: Any) -> int:
    """Returns an int, from numpy or JAX too. Raises TypeError for anything else, bool and float included."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an int, got {type(value).__name__}.")
    return operator.index(value)


def positive_int(what: str, value: Any) -> int | None:
    """Returns a positive int, or None for None. Raises TypeError or ValueError."""
    if value is None:
        return None
    number = index(what, value)
    if number <= 0:
        raise ValueError(f"{what} must be a positive int or None, got {number}.")
    return number


def positive_number(what: str, value: Any) -> float | None:
    """Returns a positive, finite number, or None for None. Raises TypeError or ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise TypeError(f"{what} must be a number or None, got {type(value).__name__}.")
    if not 0 < value < math.inf:
        raise ValueError(f"{what} must be a positive, finite number or None, got {value}.")
    return float(value)
