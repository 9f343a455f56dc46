"""Converts JSON values to declared types. A value that does not fit raises here, so that later code need not check."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable
from typing import Any

_SHOWN_CHARS = 40
# Types that JSON has itself. A message may hold 100,000 of their values, so a sequence of them is checked as a whole, which is faster.
_PLAIN = frozenset((int, str, bool))
Read = Callable[[Any], Any]


class UnfitError(ValueError):
    """A value is not of the declared type. The message names the value and the type."""


@functools.cache
def reader_of(hint: Any) -> Read:
    """Returns the function that converts a JSON value to a type.

    Args:
      hint: int, float, str, bool, Any, ``X | None``, ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]`` or a dataclass of those.
        A JSON list becomes a tuple.

    Returns:
      A function that returns the converted value, and raises UnfitError if the value does not fit. A float must be finite.

    Raises:
      TypeError: the type is not one of these.
    """
    if hint is Any:
        return lambda value: value
    if hint in _PLAIN:
        return _exactly(hint)
    if hint is float:
        return _finite
    if dataclasses.is_dataclass(hint):
        return functools.partial(build, hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType and len(arguments) == 2 and arguments[1] is type(None):
        return _or_none(reader_of(arguments[0]))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _several_plain(arguments[0]) if arguments[0] in _PLAIN else _several(reader_of(arguments[0]))
    if origin is tuple:
        return _row_plain(arguments) if set(arguments) <= _PLAIN else _row([reader_of(each) for each in arguments])
    if origin is dict and arguments[0] is str:
        return _mapping(reader_of(arguments[1]))
    raise TypeError(f"no value of JSON can be read as {hint}")


def build(cls: Any, value: Any) -> Any:
    """Returns an instance of a dataclass, built from a JSON object.

    Args:
      cls: the dataclass.
      value: a JSON value. It must be an object with exactly the fields of the dataclass.

    Raises:
      UnfitError: a field is missing, unknown, or not of its type. The message names the field.
    """
    if not isinstance(value, dict):
        raise _unfit(value, "an object")
    readers = _readers(cls)
    if value.keys() != readers.keys():
        raise UnfitError(f"its fields are {', '.join(sorted(value)) or 'none'}"[: 5 * _SHOWN_CHARS])
    read = {}
    for name, reader in readers.items():
        try:
            read[name] = reader(value[name])
        except UnfitError as error:
            raise UnfitError(f"its {name!r}: {error}") from None
    return cls(**read)


@functools.cache
def _readers(cls: Any) -> dict[str, Read]:
    hints = typing.get_type_hints(cls)
    return {field.name: reader_of(hints[field.name]) for field in dataclasses.fields(cls)}


def _unfit(value: Any, wanted: str) -> UnfitError:
    shown = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return UnfitError(f"{shown[:_SHOWN_CHARS]} is not {wanted}")


def _exactly(kind: type) -> Read:
    def read(value: Any) -> Any:
        # Not isinstance, for which True is an int.
        if type(value) is not kind:
            raise _unfit(value, f"of type {kind.__name__}")
        return value

    return read


def _finite(value: Any) -> float:
    if type(value) not in (int, float):
        raise _unfit(value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _unfit(value, "a finite number")
    return number


def _or_none(reader: Read) -> Read:
    return lambda value: None if value is None else reader(value)


def _several(reader: Read) -> Read:
    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _unfit(value, "a list")
        return tuple([reader(each) for each in value])

    return read


def _row(readers: list[Read]) -> Read:
    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(readers):
            raise _unfit(value, f"a list of {len(readers)}")
        return tuple([reader(each) for reader, each in zip(readers, value, strict=True)])

    return read


def _several_plain(kind: type) -> Read:
    one = _exactly(kind)

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _unfit(value, "a list")
        if not {kind}.issuperset(map(type, value)):
            for each in value:
                one(each)
        return tuple(value)

    return read


def _row_plain(kinds: tuple[type, ...]) -> Read:
    wanted = list(kinds)
    careful = _row([_exactly(kind) for kind in kinds])

    def read(value: Any) -> tuple[Any, ...]:
        return tuple(value) if type(value) is list and [*map(type, value)] == wanted else careful(value)

    return read


def _mapping(reader: Read) -> Read:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _unfit(value, "an object")
        return {key: reader(each) for key, each in value.items()}

    return read
