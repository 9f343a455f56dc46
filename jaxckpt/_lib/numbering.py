"""The one rule for names of numbered checkpoints, ``<prefix>-<number>``, and for the next free number. Pure functions.

A number is written in decimal digits without leading zeros, so that each number has one name: ``ckpt-7`` is number 7 of ``ckpt``;
``ckpt-07``, ``ckpt-+7`` and ``ckpt-７`` are ordinary names without a number. The prefix may contain hyphens and digits: ``run-1-7`` is
number 7 of ``run-1``. All names are names in one directory, not paths.
"""

import re
from collections.abc import Iterable

_NUMBERED = re.compile(r"(?P<prefix>.+)-(?P<number>0|[1-9][0-9]*)", re.DOTALL)
# A program never saves that often. A larger number is part of another program's file name, and does not count.
_COUNTABLE = 2**62


def name_of(prefix: str, number: int) -> str:
    """Returns the name, or the path, of a numbered checkpoint.

    Args:
      prefix: name before the number, or a path that ends in that name.
      number: the checkpoint's number, at least 0.
    """
    return f"{prefix}-{number}"


def prefix_of(name: str) -> str | None:
    """Returns the part of a name before the number; None for a name that is not numbered."""
    found = _NUMBERED.fullmatch(name)
    return found and found["prefix"]


def number_of(name: str) -> int:
    """Returns the number of a name, or of a path.

    Raises:
      ValueError: the name is not numbered.
    """
    found = _NUMBERED.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} does not end in '-' and a number.")
    return int(found["number"])


def numbers(prefix: str, names: Iterable[str]) -> list[int]:
    """Returns the numbers of the names that have this prefix, ascending.

    Args:
      prefix: name before the number.
      names: names in a directory. Names without this prefix are skipped.
    """
    return sorted(number_of(name) for name in names if prefix_of(name) == prefix)


def belongs(name: str, prefix: str) -> bool:
    """Whether `name` is `prefix` itself, or `prefix` with a number."""
    return name == prefix or prefix_of(name) == prefix


def after_the_highest(prefix: str, names: Iterable[str], *others: int) -> int:
    """Returns the number after the highest one in use.

    Args:
      prefix: name before the number.
      names: all names in the directory.
      *others: further numbers in use, which do not appear in `names`; at least one.
    """
    return max([number for number in numbers(prefix, names) if number < _COUNTABLE] + list(others)) + 1


def natural(name: str) -> list[tuple[str, int, str]]:
    """Returns a key by which names are sorted as people do: ``step_5`` comes before ``step_10``.

    Args:
      name: the name, or a path.
    """
    parts = re.split(r"([0-9]{1,18})", name)
    digits = [*parts[1::2], ""]
    return [(text, int(number or -1), number) for text, number in zip(parts[::2], digits, strict=True)]
