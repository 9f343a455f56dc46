"""The values that a key may hold, by the type annotation of the argument that it becomes: a test, and words for messages."""

import inspect
import numbers
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_WORDS: dict[object, str] = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


@dataclass(frozen=True)
class Only:
    """Narrows an annotation: ``Annotated[int, Only("a positive whole number", lambda value: value > 0)]``."""

    words: str
    test: Callable[[Any], bool]


def _is_count(value: int) -> bool:
    return value > 0


def _is_duration(value: float) -> bool:
    return 0 < value <= sys.float_info.max


PositiveInt = Annotated[int, Only("a positive whole number", _is_count)]
PositiveFloat = Annotated[float, Only("a positive number", _is_duration)]


def fits(annotation: Any, value: object, *, narrow: bool = True) -> bool:
    """Whether `value` is of the annotated type. A type that this module does not know fits: the constructor decides.

    Args:
      annotation: the resolved annotation, `Annotated` included.
      value: what is to be tested.
      narrow: whether `Only` counts, or just the type.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        only = [extra for extra in arguments[1:] if isinstance(extra, Only)]
        return fits(arguments[0], value) and (not narrow or all(each.test(value) for each in only))
    if origin in (Union, UnionType):
        return any(fits(argument, value, narrow=narrow) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if annotation in (None, NoneType):
        return value is None
    if annotation in (int, float):
        # Those of numpy as well.
        accepted = numbers.Integral if annotation is int else numbers.Real
        return isinstance(value, accepted) and not isinstance(value, bool)
    if inspect.isclass(annotation) and annotation is not Any and origin is None:
        return isinstance(value, annotation)
    return callable(value) if origin is Callable else True


def words(annotation: Any) -> str:
    """Says what an annotation allows, in the words of config files; empty for what this module does not know."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next((only.words for only in arguments[1:] if isinstance(only, Only)), words(arguments[0]))
    if origin in (Union, UnionType):
        # null comes last: "a number, or null"
        parts = [words(argument) for argument in sorted(arguments, key=lambda argument: argument is NoneType)]
        return ", or ".join(part for part in parts if part)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    return _WORDS.get(NoneType if annotation is None else annotation, "")
