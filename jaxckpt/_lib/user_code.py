"""Warnings that point at a line of the program, not at one of this package or of the threads that it starts."""

import sys
import warnings
from typing import Any, NamedTuple

_PACKAGE = __name__.partition(".")[0]
# What calls this package without the program: threads, the end of the program, and the garbage collection.
_CALLERS = frozenset(("threading", "concurrent", "weakref", "contextlib", "functools"))


class Line(NamedTuple):
    """A line of the program.

    Attributes:
      file: path of the file.
      number: number of the line.
      module: name of the module.
      registry: where Python notes the warnings of this module that it has shown.
    """

    file: str
    number: int
    module: str
    registry: dict[Any, Any]


def line() -> Line | None:
    """Returns the line of the program that is being executed: the innermost one outside of this package. None on a thread of its own."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in (_PACKAGE, *_CALLERS):
            registry = frame.f_globals.setdefault("__warningregistry__", {})
            return Line(frame.f_code.co_filename, frame.f_lineno, module or "<unknown>", registry)
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def warn(text: str, category: type[Warning], about: Line | None = None) -> None:
    """Issues a warning about a line of the program.

    Args:
      text: the warning.
      category: its class.
      about: the line; None for the one that is being executed. If there is not any, the line that called this function is named.
    """
    about = about or line()
    if about is None:
        warnings.warn(text, category, stacklevel=2)
    else:
        warnings.warn_explicit(text, category, about.file, about.number, about.module, about.registry)
