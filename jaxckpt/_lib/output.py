"""Output of the commands: lines, JSON, sizes, ages, tables, errors, warnings, and a progress line on stderr.

Leaf names, paths and messages may come from a stranger's file. Every line passes through `printable`, so that such text cannot move the
cursor, forge a line or change the order of the text. Commands must print with the functions of this module only.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import threading
import time
import traceback
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TextIO

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


def print_line(text: str = "") -> None:
    """Prints a line on stdout. Characters that cannot be shown there are escaped."""
    _print(text, sys.stdout)


def print_error(text: str) -> None:
    """Prints a line on stderr. Characters that cannot be shown there are escaped."""
    _print(text, sys.stderr)


def print_traceback(error: BaseException) -> None:
    """Prints the traceback of an exception on stderr."""
    for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
        print_error(line)


def _print(text: str, stream: TextIO) -> None:
    print(_encodable(printable(text), stream), file=stream, flush=True)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


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


class Progress:
    """A progress line on stderr. It appears after a second, and only if stderr is a terminal.

    Use it as a context manager. Inside the block, print with `say` and `complain` only.
    """

    _EVERY_SECS = 0.2

    def __init__(self, text: str, *, after_secs: float = 1.0) -> None:
        """Makes a progress line.

        Args:
          text: the text to begin with; `update` changes it.
          after_secs: seconds from the beginning of the block until the line appears.
        """
        self._text = text
        self._after = after_secs
        self._began = 0.0
        self._shown = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._draw_until_done, name="jaxckpt progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            with self._lock:
                self._clear()

    def update(self, text: str) -> None:
        """Changes the text of the line. The line is drawn a few times a second, however often this is called."""
        self._text = text

    def say(self, text: str) -> None:
        """Clears the progress line and prints a line on stdout."""
        with self._lock:
            self._clear()
            print_line(text)

    def complain(self, text: str) -> None:
        """Clears the progress line and prints a line on stderr."""
        with self._lock:
            self._clear()
            print_error(text)

    def _draw_until_done(self) -> None:
        self._done.wait(self._after)
        while not self._done.is_set():
            with self._lock:
                line = f"{self._text}  {human_age(max(1.0, time.monotonic() - self._began))}"
                width = shutil.get_terminal_size().columns - 1
                self._write(f"\r\x1b[K{_encodable(printable(line), sys.stderr)[:width]}")
                self._shown = True
            self._done.wait(self._EVERY_SECS)

    def _clear(self) -> None:
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = False

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            # The terminal is gone. The command goes on without its progress line.
            pass
