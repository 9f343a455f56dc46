"""THE rule for the names of numbered checkpoints, ``<prefix>-<number>``, and for the number that is free. Pure.

A number is written in decimal digits without leading zeros, so that a checkpoint has one name: ``ckpt-7`` is number 7 of ``ckpt``;
``ckpt-07``, ``ckpt-+7`` and ``ckpt-７`` are names like any other. The prefix may hold hyphens and digits itself: ``run-1-7`` is number
7 of ``run-1``. Names are those in one directory, not paths.
"""

import re
from collections.abc import Iterable

_NUMBERED = re.compile(r"(?P<prefix>.+)-(?P<number>0|[1-9][0-9]*)", re.DOTALL)
# No program saves that often: a larger number is part of a foreign file's name, and takes no number from us.
_COUNTABLE = 2**62


def name_of(prefix: str, number: int) -> str:
    """Returns the name, or the path, of a numbered checkpoint.

    Args:
      prefix: name before the number, or a path that ends in it.
      number: not negative.
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
    """Returns the numbers that the names of `prefix` have, ascending.

    Args:
      prefix: name before the number.
      names: of a directory; other names are skipped.
    """
    return sorted(number_of(name) for name in names if prefix_of(name) == prefix)


def belongs(name: str, prefix: str) -> bool:
    """Whether a checkpoint is called `prefix`, or is a numbered one of it."""
    return name == prefix or prefix_of(name) == prefix


def after_the_highest(prefix: str, names: Iterable[str], *others: int) -> int:
    """Returns the number after the highest one that is taken.

    Args:
      prefix: name before the number.
      names: what there is in the directory.
      *others: numbers that are taken as well, although no name has them; at least one.
    """
    return max([number for number in numbers(prefix, names) if number < _COUNTABLE] + list(others)) + 1
