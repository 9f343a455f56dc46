"""Output of the commands: lines, JSON, sizes, ages, tables, errors and warnings. `progress` has the progress line on stderr.

Leaf names, paths and messages may come from a stranger's file. Every line passes through `printable`, so that such text cannot move the
cursor, forge a line or change the order of the text. Commands must print with the functions of these modules only. On a terminal, lines
wrap between words, and rich colours them; elsewhere text is plain and complete. Rich is imported when needed, because that takes time.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

# Invisible characters that Unicode classifies as letters or marks: a combining joiner and the fillers of Hangul.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")


def printable(text: str) -> str:
    """Returns `text` with every character escaped that is invisible or that controls a terminal.

    These are control characters (C0 and C1, with escape and line breaks), line and paragraph separators, formatting characters (text
    direction, zero width), lone surrogates (bytes of a file name that are not text), and unassigned code points. Other text stays as it
    is, whatever its script.
    """
    if text.isprintable() and _INVISIBLE.isdisjoint(text):
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if (character.isprintable() and character not in _INVISIBLE) or unicodedata.category(character) == "Zs":
        return character
    return ascii(character)[1:-1]


def print_json(value: Any) -> None:
    """Prints `value` as indented JSON, in which control characters and all that is not ASCII are escaped."""
    print(json.dumps(value, indent=2, default=str))


def print_line(text: str = "", style: str = "") -> None:
    """Prints a line on stdout. Characters that cannot be shown there are escaped.

    Args:
      text: the line.
      style: rich's name of a style, such as "bold green", for terminals; empty for none.
    """
    _print(text, sys.stdout, style)


def print_error(text: str) -> None:
    """Prints a line on stderr. Characters that cannot be shown there are escaped."""
    _print(text, sys.stderr)


def print_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Iterable[int] = (),
    styles: Sequence[str] = (),
    *,
    legend: bool = False,
    optional: Sequence[int] = (),
) -> None:
    """Prints a table on stdout.

    On a terminal that is too narrow, optional columns are left out, and the last column wraps between words; if that is not enough, each
    row takes several lines, its first cell on a line of its own. No word is cut.

    Args:
      header: titles of the columns; empty for none.
      rows: the cells, row by row.
      right: indices of the columns that are aligned at the right.
      styles: for each row rich's name of a style of its first cell on a terminal; empty for none.
      legend: whether a terminal that is too narrow shows a number in the last column, and below the table what the numbers mean.
      optional: indices of columns that a terminal may leave out, the first one first.
    """
    rows = list(rows)
    if sys.stdout.isatty() and rows:
        from jaxckpt._lib import terminal

        clean = [[shown(cell, sys.stdout) for cell in row] for row in rows]
        terminal.print_table(header, clean, {*right}, styles, legend, optional)
        return
    for line in table([*([header] if header else []), *rows], right):
        print_line(line)


def print_traceback(error: BaseException) -> None:
    """Prints the traceback of an exception on stderr."""
    for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
        print_error(line)


def _print(text: str, stream: TextIO, style: str = "") -> None:
    clean = shown(text, stream)
    if stream.isatty() and (style or len(clean) >= shutil.get_terminal_size().columns):
        from jaxckpt._lib import terminal

        terminal.print_line(clean, stream, style)
    else:
        print(clean, file=stream, flush=True)


def shown(text: str, stream: TextIO) -> str:
    """Returns `text` as a stream can show it: `printable`, and without characters that its encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


@contextlib.contextmanager
def warnings_as_lines(command: str) -> Iterator[None]:
    """Prints warnings from inside the block (of `warnings` and `logging`) as lines on stderr that name the command.

    Args:
      command: the command's name.
    """

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print_error(f"jaxckpt {command}: warning: {_one_line(str(message))}")

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    handler = Lines(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logging.getLogger().removeHandler(handler)


def sum_bytes(sizes: Iterable[int | None]) -> int | None:
    """Returns the sum of sizes; None if one of them is unknown."""
    listed = list(sizes)
    return None if None in listed else sum(size for size in listed if size is not None)


def human_bytes(count: int | None) -> str:
    """Returns a number of bytes in words, such as ``"17.3 MiB"``; "?" for None, an unknown size."""
    if count is None:
        return "?"
    if count < 1024:
        return f"{count} B"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min((count.bit_length() - 1) // 10, len(units))
    return f"{count / 1024**power:.1f} {units[power - 1]}"


def human_count(number: int) -> str:
    """Returns a number in words, such as ``"950"`` or ``"1.24 M"``."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def human_age(seconds: float) -> str:
    """Returns a duration in words, such as ``"3 min"``; "now" for less than a second, or a time in the future of this clock."""
    if seconds < 1:
        return "now"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def human_millis(seconds: float) -> str:
    """Returns a short duration in milliseconds with about three digits, such as ``"1.23 ms"`` or ``"456 ms"``."""
    millis = seconds * 1000
    return f"{millis:.{0 if millis >= 100 else 1 if millis >= 10 else 2}f} ms"


def human_seconds(seconds: float) -> str:
    """Returns a duration with about three digits, such as ``"4.56 ms"`` or ``"12.3 s"``."""
    if seconds < 1:
        return human_millis(seconds)
    return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 100 else 0}f} s"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """Returns a number with its noun: ``"1 leaf"``, ``"2 leaves"``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def table(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Returns a table as lines, with aligned columns.

    Args:
      rows: the cells, row by row. All rows have the same number of cells.
      right: indices of the columns that are aligned at the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    right = set(right)
    # Below the first combining character, each takes one column.
    if all(character < "\u0300" for row in rows for cell in row for character in cell):
        cells: Callable[[str], int] = len
    else:
        # Some characters take two columns, and some none.
        from rich.cells import cell_len

        cells = cell_len
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]

    def padded(cell: str, index: int) -> str:
        blank = " " * (widths[index] - cells(cell))
        return blank + cell if index in right else cell + blank

    return ["  ".join(padded(cell, index) for index, cell in enumerate(row)).rstrip() for row in rows]


def describe(error: BaseException) -> str:
    """Returns an exception's message and its notes as one line, with the file of an OSError first. Names are not escaped here."""
    if isinstance(error, BaseExceptionGroup):
        text = "; ".join(describe(one) for one in error.exceptions)
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    elif isinstance(error, KeyError) and error.args:
        # str() would put the message in quotes.
        text = str(error.args[0])
    else:
        text = str(error) or type(error).__name__
    return " ".join(map(_one_line, [text, *getattr(error, "__notes__", ())]))


def _one_line(text: str) -> str:
    lines = list(filter(None, map(str.strip, text.split("\n"))))
    # A heading with a list, as in a ConfigError, becomes "heading: item; item".
    if lines and lines[0].endswith(":"):
        return f"{lines[0]} {'; '.join(lines[1:])}"
    return "; ".join(lines)
