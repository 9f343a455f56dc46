"""Tests whether a value fits a key, by the type annotation of the argument that the key becomes, and words for messages."""

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
    """Narrows an annotation, as in ``Annotated[int, Only("a positive whole number", lambda value: value > 0)]``.

    Attributes:
      words: the allowed values in words, for messages.
      test: tells whether a value of the annotated type is allowed.
    """

    words: str
    test: Callable[[Any], bool]


def _is_count(value: int) -> bool:
    return value > 0


def _is_duration(value: float) -> bool:
    return 0 < value <= sys.float_info.max


PositiveInt = Annotated[int, Only("a positive whole number", _is_count)]
PositiveFloat = Annotated[float, Only("a positive number", _is_duration)]


def fits(annotation: Any, value: object, *, narrow: bool = True) -> bool:
    """Whether a value is of the annotated type. True for types that this module does not know, because the constructor checks those.

    Args:
      annotation: the resolved annotation, which may be `Annotated`.
      value: the value to test.
      narrow: whether to apply the test of `Only` too.
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
        # numpy's numbers are accepted too.
        accepted = numbers.Integral if annotation is int else numbers.Real
        return isinstance(value, accepted) and not isinstance(value, bool)
    if inspect.isclass(annotation) and annotation is not Any and origin is None:
        return isinstance(value, annotation)
    return callable(value) if origin is Callable else True


def words(annotation: Any) -> str:
    """Returns the values that an annotation allows, in the words of config files; empty if this module does not know the type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next((only.words for only in arguments[1:] if isinstance(only, Only)), words(arguments[0]))
    if origin in (Union, UnionType):
        # null comes last, as in "a number, or null".
        parts = [words(argument) for argument in sorted(arguments, key=lambda argument: argument is NoneType)]
        return ", or ".join(part for part in parts if part)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    return _WORDS.get(NoneType if annotation is None else annotation, "")
