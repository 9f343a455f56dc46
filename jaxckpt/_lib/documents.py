"""Parsing files of a checkpoint into typed values. Every failure becomes a `CorruptCheckpointError` that names the file.

`parse` reads JSON. The `as_*` functions check the type and range of one value in it. All of them raise `DamagedError`. A block
`with damage(where):` around them turns that error, and any other error that a hostile file can make Python raise, into
`CorruptCheckpointError`.
"""

import json
import math
from typing import Any

from jaxckpt._lib import bounds
from jaxckpt.errors import CheckpointError, CorruptCheckpointError

_INT64 = 1 << 63


class DamagedError(ValueError):
    """The content of a file is not what was written, or is not valid."""


# In lower case, because it is used like a function.
class damage:  # noqa: N801
    """Turns errors inside the block into `CorruptCheckpointError`.

    OSError and MemoryError pass unchanged, because they do not mean that the checkpoint is damaged.
    """

    def __init__(self, where: str, what: str = "this file") -> None:
        """Makes the context manager.

        Args:
          where: the file, or the leaf, that the block reads.
          what: the subject of the error's sentence.
        """
        self._where = where
        self._what = what

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)):
            if isinstance(error, CheckpointError):
                return
            text = str(error) if isinstance(error, DamagedError) else f"{type(error).__name__}: {str(error)[:200]}"
            raise CorruptCheckpointError.at(
                self._where, f"{self._what} is damaged: {text}. Restore another checkpoint."
            ) from error


def parse(content: bytes | str) -> Any:
    """Parses JSON in UTF-8 and requires that every number is finite. Raises DamagedError."""
    return _decoded(_DECODER, content)


def parse_strictly(content: bytes | str) -> Any:
    """Parses JSON like `parse`, and also refuses objects with a repeated key. Slower, so for small files only."""
    return _decoded(_STRICT_DECODER, content)


def _decoded(decoder: json.JSONDecoder, content: bytes | str) -> Any:
    try:
        return decoder.decode(content if isinstance(content, str) else content.decode("utf-8", "surrogatepass"))
    except DamagedError:
        raise
    except RecursionError:
        # The text of the RecursionError would talk about Python, not about the file.
        raise DamagedError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise DamagedError(f"its JSON is not readable ({str(error)[:200]})") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DamagedError(f"its number {text[:40]} is out of range")
    return value


def _constant(text: str) -> float:
    raise DamagedError(f"{text} is not a valid JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DamagedError("it has a key twice")
    return found


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_constant)
_STRICT_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_constant, object_pairs_hook=_unique)


def as_dict(value: Any, what: str) -> dict[str, Any]:
    """Returns a JSON object. Raises DamagedError."""
    if type(value) is not dict:
        raise DamagedError(f"{what} is {_kind(value)}, not an object")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """Returns a JSON array. Raises DamagedError."""
    if type(value) is not list:
        raise DamagedError(f"{what} is {_kind(value)}, not an array")
    return value


def as_text(value: Any, what: str) -> str:
    """Returns a JSON string. Raises DamagedError."""
    if type(value) is not str:
        raise DamagedError(f"{what} is {_kind(value)}, not a string")
    return value


def as_int(value: Any, what: str, low: int = 0, high: int = _INT64 - 1) -> int:
    """Returns a JSON integer from `low` to `high`. Raises DamagedError."""
    if type(value) is not int:
        raise DamagedError(f"{what} is {_kind(value)}, not an integer")
    if not low <= value <= high:
        raise DamagedError(f"{what} is out of range")
    return value


def as_bool(value: Any, what: str) -> bool:
    """Returns a JSON truth value. Raises DamagedError."""
    if type(value) is not bool:
        raise DamagedError(f"{what} is {_kind(value)}, not true or false")
    return value


def as_extents(value: Any, what: str, low: int = 0, axes: int | None = None) -> tuple[int, ...]:
    """Returns the extents of a shape, given as a JSON array of integers. Raises DamagedError.

    Args:
      value: the parsed JSON value.
      what: its name in the message.
      low: the smallest allowed extent.
      axes: the required number of extents; None if any number is allowed.
    """
    extents = tuple(as_int(extent, what, low) for extent in as_list(value, what))
    if len(extents) > bounds.AXES:
        raise DamagedError(f"{what} has {len(extents)} axes, more than {bounds.AXES}")
    if axes is not None and len(extents) != axes:
        raise DamagedError(f"{what} has {len(extents)} axes instead of {axes}")
    return extents


def _kind(value: Any) -> str:
    return {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}.get(
        type(value), "a number"
    )
