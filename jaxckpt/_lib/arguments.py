"""Checks of arguments; `what` names the argument in the error."""

import functools
import math
import operator
import os
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np

_Result = TypeVar("_Result")
StrPath: TypeAlias = str | os.PathLike[str]


def type_name(value: Any) -> str:
    """Returns the name of a value's class, with its module: another library may have a class of the same name."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def also_named(ours: str, theirs: str) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Lets callers name an argument of a function as TensorFlow does.

    Args:
      ours: name of the first parameter.
      theirs: TensorFlow's name of it, which is taken as a keyword. Giving both is a TypeError.
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


def index(what: str, value: Any) -> int:
    """Returns an int, also of numpy or jax. Raises TypeError for anything else, bool and float included."""
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
