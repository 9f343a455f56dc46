"""The page of ``jaxckpt diff --html``: a heat strip for each kind of leaf, with a cell for each layer."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxckpt._lib.output import count
from jaxckpt.cli.comparing import Difference, subtrees
from jaxckpt.cli.folding import natural
from jaxckpt.cli.page import FONT, Section, Table, graphs, safe, short, write_page

_NUMBER = re.compile(r"(?<![^/_-])\d{1,9}(?=/|$)", re.ASCII)
_SAME, _STRUCTURE = "#e7ebf1", "#7a3e9d"
# Relative differences from here on have the strongest colour; smaller ones than the least have the weakest.
_LEAST, _MOST = -9.0, 1.0


def write(path: str, a: str, b: str, names: Sequence[str], differences: Sequence[Difference], ignored: int) -> None:
    """Writes the page.

    Args:
      path: path of the page.
      a: path of checkpoint A.
      b: path of checkpoint B.
      names: the names of all leaves that were compared.
      differences: their differences.
      ignored: number of leaves that were left out.
    """
    by_name = {difference.name: difference for difference in differences}
    strips, others = strips_of(names)
    left_out = f" {count(ignored, 'leaf', 'leaves')} left out." if ignored else ""
    about = f"A: {a}. B: {b}. {len(differences):,} of {count(len(names), 'leaf', 'leaves')} differ.{left_out}"
    legend = (
        "Colour: the root mean square of the differences, relative to that of A, on a logarithmic scale. Grey is the same bit for bit; "
        "violet differs in structure, shape or type, or is no number."
    )
    sections = []
    if strips:
        columns = sorted({number for cells in strips.values() for number in cells})
        rows = [(kind, [cells.get(number) for number in columns]) for kind, cells in strips.items()]
        sections.append(
            Section(
                "By layer and kind",
                legend,
                [_heat(rows, [str(number) for number in columns], by_name, ("layer", "kind of leaf"))],
            )
        )
    if others:
        rows = [(name, [name]) for name in others]
        sections.append(Section("Other leaves", "" if strips else legend, [_heat(rows, [""], by_name, ("", "leaf"))]))
    summary = subtrees(names, differences)
    tables = []
    if summary:
        header = ("subtree", "differ", "of", "largest", "rms", "relative")
        tables.append(Table(header, summary, range(1, 6), "by subtree, the worst first"))
    if differences:
        worst = sorted(differences, key=lambda difference: [-each for each in difference.badness])
        cells = [(each.name, each.kind, each.text) for each in worst]
        tables.append(Table(("leaf", "differs in", "how"), cells, (), "by leaf, the worst first"))
    sections.append(Section("Differences" if differences else "No difference", tables=tables))
    write_page(path, "diff of two checkpoints", about, sections)


def strips_of(names: Sequence[str]) -> tuple[dict[str, dict[int, str]], list[str]]:
    """Returns for each kind of leaf that several layers have, its leaf of each layer; and the other leaves.

    A kind is a name with ``*`` in place of the number of the layer: the first number for which there is more than one layer.

    Args:
      names: names of leaves.
    """
    kinds: dict[str, dict[int, str]] = {}
    for name in names:
        for match in _NUMBER.finditer(name):
            kind = f"{name[: match.start()]}*{name[match.end() :]}"
            kinds.setdefault(kind, {})[int(match[0])] = name
    strips: dict[str, dict[int, str]] = {}
    others = []
    for name in sorted(names, key=natural):
        found = None
        for match in _NUMBER.finditer(name):
            kind = f"{name[: match.start()]}*{name[match.end() :]}"
            if len(kinds[kind]) > 1:
                found = kind
                break
        if found is None:
            others.append(name)
        else:
            # Two spellings of a number, such as 1 and 01, would be in the same cell.
            number = int(match[0])
            if strips.setdefault(found, {}).setdefault(number, name) != name:
                others.append(name)
    return strips, others


def _heat(
    rows: Sequence[tuple[str, Sequence[str | None]]],
    columns: Sequence[str],
    by_name: Mapping[str, Difference],
    titles: tuple[str, str],
) -> Any:
    """Returns a heat map.

    Args:
      rows: a row for each kind, with the name of a leaf in each cell, or None.
      columns: the names of the columns.
      by_name: the differences.
      titles: of the two axes, the horizontal one first; empty for an axis of one column.
    """
    go = graphs()
    labels = [safe(short(kind)) for kind, _ in rows]
    places = list(range(len(rows)))
    across = list(range(len(columns)))
    hover = [[_hover(name, by_name) for name in cells] for _, cells in rows]

    def layer(value: Any) -> list[list[float | None]]:
        return [[None if name is None else value(by_name.get(name)) for name in cells] for _, cells in rows]

    def same(found: Difference | None) -> float | None:
        return 0.0 if found is None else None

    def structure(found: Difference | None) -> float | None:
        return 0.0 if found is not None and found.relative is None else None

    common = {
        "x": across,
        "y": places,
        "xgap": 2,
        "ygap": 2,
        "customdata": hover,
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    figure = go.Figure()
    for value, colour in ((same, _SAME), (structure, _STRUCTURE)):
        figure.add_heatmap(z=layer(value), colorscale=[[0, colour], [1, colour]], showscale=False, **common)
    figure.add_heatmap(
        z=layer(_heat_of),
        zmin=_LEAST,
        zmax=_MOST,
        colorscale=[[0, "#fff3c4"], [0.4, "#fdae4b"], [0.7, "#e4572e"], [1, "#7f0f1e"]],
        colorbar={
            "title": {"text": "relative difference", "side": "right"},
            "tickvals": [-9, -7, -5, -3, -1, 1],
            "ticktext": ["≤1e-9", "1e-7", "1e-5", "0.1%", "10%", "≥10"],
            "lenmode": "pixels",
            "len": max(150, min(320, 24 * len(rows) + 60)),
            "thickness": 14,
            "outlinewidth": 0,
        },
        **common,
    )
    figure.update_xaxes(
        tickvals=across,
        ticktext=[safe(word) for word in columns],
        title=titles[0],
        side="top",
        showgrid=False,
        zeroline=False,
    )
    if len(columns) > 40:
        step = math.ceil(len(columns) / 40)
        figure.update_xaxes(tickvals=across[::step], ticktext=[safe(word) for word in columns[::step]])
    figure.update_yaxes(
        title=titles[1],
        tickvals=places,
        ticktext=labels,
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        automargin=True,
    )
    figure.update_layout(
        height=max(230, 100 + 24 * len(rows)),
        margin={"l": 10, "r": 10, "t": 60, "b": 10},
        font=FONT,
        plot_bgcolor="white",
        width=None if len(columns) > 1 else 640,
    )
    return figure


def _heat_of(found: Difference | None) -> float | None:
    if found is None or found.relative is None:
        return None
    return _LEAST if found.relative == 0 else min(max(math.log10(found.relative), _LEAST), _MOST)


def _hover(name: str | None, by_name: Mapping[str, Difference]) -> str:
    if name is None:
        return ""
    found = by_name.get(name)
    about = "the same, bit for bit" if found is None else f"{found.kind}: {found.text}"
    return f"<b>{safe(name)}</b><br>{safe(about)}"
