"""Lines and tables on a terminal, by rich. `output` has made every text safe to show before it comes here.

Texts never pass through rich's markup: brackets in them are only brackets.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Columns between two cells.
_GAP = 2
# Columns by which the further lines of a row are indented.
_INDENT = 4


def console(stream: TextIO) -> Console:
    """Returns rich's console for a stream. It follows NO_COLOR and TERM=dumb."""
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def print_line(text: str, stream: TextIO, style: str = "") -> None:
    """Prints a line, wrapped between words.

    Args:
      text: the line.
      stream: the terminal.
      style: rich's name of a style; empty for none.
    """
    out = console(stream)
    _print_wrapped(out, Text(text, style), "")
    stream.flush()


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: AbstractSet[int], styles: Sequence[str]
) -> None:
    """Prints a table on stdout; see `output.print_table`."""
    import sys

    out = console(sys.stdout)
    everything = [header, *rows] if header else rows
    columns = list(zip(*everything, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    longest_word = max((cell_len(word) for cell in columns[-1] for word in cell.split()), default=0)
    left = out.width - sum(widths[:-1]) - _GAP * (len(widths) - 1)
    if left < min(longest_word, widths[-1]):
        _print_stacked(out, header, rows, styles)
        return
    widths[-1] = min(widths[-1], left)
    grid = Table(box=None, padding=0, pad_edge=False, show_header=bool(header), header_style="dim")
    for index, width in enumerate(widths):
        is_last = index == len(widths) - 1
        gap = 0 if is_last else _GAP
        grid.add_column(
            Text(header[index]) if header else "",
            width=width + (gap if index not in right else 0),
            justify="right" if index in right else "left",
            no_wrap=not is_last,
        )
        if index in right and gap:
            grid.add_column("", width=gap)
    for number, row in enumerate(rows):
        cells = []
        for index, cell in enumerate(row):
            cells.append(Text(cell, styles[number] if index == 0 and number < len(styles) else ""))
            if index in right and index != len(widths) - 1:
                cells.append(Text(""))
        grid.add_row(*cells)
    out.print(grid)
    out.file.flush()


def _print_stacked(out: Console, header: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
    if header:
        _print_wrapped(out, Text("  ".join(header), "dim"), "")
    for number, row in enumerate(rows):
        name = row[0]
        _print_wrapped(out, Text(name, styles[number] if number < len(styles) else ""), "")
        rest = "  ".join(cell for cell in row[1:] if cell)
        if rest:
            depth = len(name) - len(name.lstrip())
            # Below a deep name, the details still need some columns.
            _print_wrapped(out, Text(rest), " " * min(depth + _INDENT, out.width // 2))
    out.file.flush()


def _print_wrapped(out: Console, text: Text, indent: str) -> None:
    """Prints a text, wrapped between words. A word that is longer than a line stays whole, so that it can be copied."""
    width = max(1, out.width - len(indent))
    lines = text.wrap(out, width, overflow="ignore") if text.cell_len > width else [text]
    for line in lines:
        line.rstrip()
        out.print(Text(indent) + line, soft_wrap=True)
