"""Lines and tables on a terminal, by rich. `output` has made every text safe to show before it comes here.

Texts never pass through rich's markup: brackets in them are only brackets.
"""

import re
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Columns between two cells.
_GAP = 2
# The indentation of a line, and its bullet.
_HEAD = re.compile(r" *(?:->? )?")
# Columns by which the further lines of a row are indented.
_INDENT = 4


def console(stream: TextIO) -> Console:
    """Returns rich's console for a stream. It follows NO_COLOR and TERM=dumb."""
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def print_line(text: str, stream: TextIO, style: str = "") -> None:
    """Prints a line, wrapped between words. What is wrapped begins where the text of the line does: below its indentation, or its bullet.

    Args:
      text: the line.
      stream: the terminal.
      style: rich's name of a style; empty for none.
    """
    out = console(stream)
    head = _HEAD.match(text)
    assert head is not None
    _print_wrapped(out, Text(text[head.end() :], style), " " * min(head.end(), out.width // 2), Text(head[0], style))
    stream.flush()


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: AbstractSet[int],
    styles: Sequence[str],
    legend: bool = False,
    optional: Sequence[int] = (),
) -> None:
    """Prints a table on stdout; see `output.print_table`."""
    out = console(sys.stdout)
    kept = list(range(len(rows[0])))
    for column in optional:
        if _width(header, rows, kept) > out.width:
            kept.remove(column)
    header, rows = [header[index] for index in kept if header], [[row[index] for index in kept] for row in rows]
    right = {position for position, index in enumerate(kept) if index in right}
    meanings: list[str] = []
    if legend and _width(header, rows, range(len(kept))) > out.width:
        meanings = list(dict.fromkeys(row[-1] for row in rows if row[-1]))
        rows = [[*row[:-1], f"[{meanings.index(row[-1]) + 1}]" if row[-1] else ""] for row in rows]
    if not _print_aligned(out, header, rows, right, styles):
        _print_stacked(out, header, rows, styles)
    for number, meaning in enumerate(meanings, 1):
        _print_wrapped(out, Text(f"[{number}] {meaning}", "dim"), "")
    out.file.flush()


def _width(header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    everything = [header, *rows] if header else rows
    widths = [max(cell_len(row[index]) for row in everything) for index in columns]
    return sum(widths) + _GAP * (len(widths) - 1)


def _print_aligned(
    out: Console, header: Sequence[str], rows: Sequence[Sequence[str]], right: AbstractSet[int], styles: Sequence[str]
) -> bool:
    """Prints a table with aligned columns, of which the last one may wrap. Returns False, and prints nothing, if it does not fit."""
    everything = [header, *rows] if header else rows
    columns = list(zip(*everything, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    last = len(widths) - 1
    longest_word = max((cell_len(word) for cell in columns[-1] for word in cell.split()), default=0)
    left = out.width - sum(widths[:-1]) - _GAP * last
    if left < longest_word or (last in right and left < widths[-1]):
        return False
    widths[-1] = min(widths[-1], left)
    grid = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=bool(header), header_style="dim")
    for index, width in enumerate(widths):
        grid.add_column(
            Text(header[index]) if header else "",
            width=width,
            justify="right" if index in right else "left",
            no_wrap=index != last,
        )
    for number, row in enumerate(rows):
        style = styles[number] if number < len(styles) else ""
        grid.add_row(*[Text(cell, "" if index else style) for index, cell in enumerate(row)])
    out.print(grid)
    return True


def _print_stacked(out: Console, header: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
    for number, row in enumerate(rows):
        name = row[0]
        _print_wrapped(out, Text(name, styles[number] if number < len(styles) else ""), "")
        cells = zip(header[1:] or [""] * (len(row) - 1), row[1:], strict=True)
        rest = "  ".join(f"{title} {cell}".strip() for title, cell in cells if cell)
        if rest:
            depth = len(name) - len(name.lstrip())
            # Below a deep name, the details still need some columns.
            _print_wrapped(out, Text(rest), " " * min(depth + _INDENT, out.width // 2))


def _print_wrapped(out: Console, text: Text, indent: str, first: Text | None = None) -> None:
    """Prints a text, wrapped between words. A word that is longer than a line stays whole, so that it can be copied.

    Args:
      out: the terminal.
      text: the text.
      indent: begins each line.
      first: begins the first line instead; None for the same.
    """
    for number, line in enumerate(text.divide(_breaks(text.plain, out.width - len(indent)))):
        line.rstrip()
        out.print((first if first is not None and not number else Text(indent)) + line, soft_wrap=True)


def _breaks(text: str, width: int) -> list[int]:
    """Returns where a text is broken: before words that do not fit on their line."""
    breaks, column = [], 0
    for match in re.finditer(r"\s*\S+", text):
        size = cell_len(match[0])
        if column and column + size > width:
            word = match[0].lstrip()
            breaks.append(match.end() - len(word))
            size, column = cell_len(word), 0
        column += size
    return breaks
